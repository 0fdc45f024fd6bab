"""The program that is a Python function's job: calls the function, and makes its answer a result.

``calls.py`` makes the command that runs it. As little as possible is imported here before it is
needed: it is what every call waits for.
"""

from __future__ import annotations

import importlib
import sys

from anodejobs import this_job

TYPE_CHECKING = False  # typing's own costs a fifth of the start
if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import TracebackType


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
    return _awaited(value) if hasattr(value, "__await__") else value


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
