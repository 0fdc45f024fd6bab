"""A Python function as a job: the command that calls it, and the program that this command runs.

``call_argv`` makes the command in the application. ``main`` is what it executes, in a process of
its own that has neither the application's memory nor its event loop, only its module path.
"""

from __future__ import annotations

import importlib
import keyword
import os
import sys
from collections.abc import Awaitable, Sequence
from types import TracebackType

from anodejobs import this_job
from anodejobs.errors import InvalidJob

__all__ = ["call_argv", "main"]

_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[2:]; from anodejobs.calls import main; main(sys.argv[1])"
)


def call_argv(call: str, path: Sequence[str] | None = None) -> list[str]:
    """Return the command that calls ``package.module:function`` with the job's payload.

    It finds modules where the application finds them now (``path``: its ``sys.path``), whatever
    the job's ``cwd``. The function is not imported here: a name that is well formed but leads
    nowhere fails the job, and its stderr says so. Raises InvalidJob where the name is not.
    """
    module, colon, function = call.partition(":")
    if not (colon and _is_dotted_name(module) and _is_dotted_name(function)):
        raise InvalidJob("call", f"must be like 'package.module:function', not {call!r}")
    if module in ("__main__", "__mp_main__"):
        problem = "is in the program's main module: move it to one that can be imported"
        raise InvalidJob("call", f"{function} {problem}")
    if not sys.executable:
        raise InvalidJob("call", "the application does not know where its Python is")
    entries = [os.path.abspath(entry) for entry in (sys.path if path is None else path)]
    # -P: where the job happens to start, other modules may bear the same names.
    return [sys.executable, "-P", "-c", _PROGRAM, call, *dict.fromkeys(entries)]


def _is_dotted_name(text: str) -> bool:
    parts = text.split(".")
    return all(part.isidentifier() and not keyword.iskeyword(part) for part in parts)


def main(call: str) -> None:
    """Call the function with the job's payload and make what it returns the job's result.

    A payload that is an object gives keyword arguments, an array positional ones, another value
    the only one; without a payload there are none. ``async def`` is awaited. None is no result:
    one that the function has set itself stands. What the function raises goes to stderr as if it
    had been called by nobody, with exit code 1; ``SystemExit`` ends the process as it says.
    """
    sys.argv[:] = [call]
    try:
        value = _called(call)
    except Exception as error:
        _print_traceback(error)
        sys.exit(1)
    if value is None:
        return
    try:
        this_job.set_result(value)
    except (TypeError, ValueError, OSError) as error:
        sys.exit(f"{call} has returned, but not its result: {error}")


def _called(call: str) -> object:
    module, _, function = call.partition(":")
    target: object = importlib.import_module(module)
    for name in function.split("."):
        target = getattr(target, name)
    if not callable(target):
        raise TypeError(f"{call} is no function")
    payload = this_job.payload()
    if isinstance(payload, dict):
        value = target(**payload)
    elif isinstance(payload, list):
        value = target(*payload)
    elif payload is not None:
        value = target(payload)
    else:
        value = target()
    return _awaited(value) if isinstance(value, Awaitable) else value


def _awaited(value: Awaitable[object]) -> object:
    # Imported here: most functions do not need it, and it takes longer than all else together.
    import asyncio

    async def result() -> object:
        return await value

    return asyncio.run(result())


def _print_traceback(error: Exception) -> None:
    import traceback

    traceback.print_exception(error.with_traceback(_theirs(error.__traceback__)))


def _theirs(frames: TracebackType | None) -> TracebackType | None:
    """Return the frames without ours, and without those that an import or a loop put between."""
    theirs = frame = frames
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == __file__:
            theirs = frame.tb_next
        frame = frame.tb_next
    while theirs is not None and _is_importing(theirs.tb_frame.f_code.co_filename):
        theirs = theirs.tb_next
    return theirs


def _is_importing(filename: str) -> bool:
    return filename == importlib.__file__ or filename.startswith("<frozen importlib")
