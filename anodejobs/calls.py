"""The command that calls a Python function in a process of its own.

Such a process has neither the application's memory nor its event loop, only its module path. What
it does is in ``calling.py``.
"""

from __future__ import annotations

import keyword
import os
import sys
from collections.abc import Sequence

from anodejobs.errors import InvalidJob, one_line
from anodejobs.interpreter import interpreter, is_frozen

__all__ = ["call_argv"]

_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[2:]; from anodejobs.calling import main; main(sys.argv[1])"
)


def call_argv(call: str, path: Sequence[str] | None = None) -> list[str]:
    """Return the command that calls ``package.module:function`` with the job's payload.

    It finds modules where the application finds them now (``path``: its ``sys.path``), whatever
    the job's ``cwd``. The function is not imported here: a name that is well formed but leads
    nowhere fails the job, and its stderr says so. Raises InvalidJob where the name is not,
    and where no Python can be started that would find the function.
    """
    module, colon, function = call.partition(":")
    if not (colon and _is_dotted_name(module) and _is_dotted_name(function)):
        raise InvalidJob("call", f"must be like 'package.module:function', not {call!r}")
    if module in ("__main__", "__mp_main__"):
        problem = "is in the program's main module: move it to one that can be imported"
        raise InvalidJob("call", f"{function} {problem}")
    if is_frozen():
        problem = "this application is frozen: no other Python finds its functions; use a command"
        raise InvalidJob("call", problem)
    try:
        python = interpreter()
    except OSError as error:
        raise InvalidJob("call", one_line(error)) from error
    entries = [os.path.abspath(entry) for entry in (sys.path if path is None else path)]
    # -P: where the job happens to start, other modules may bear the same names.
    return [python, "-P", "-c", _PROGRAM, call, *dict.fromkeys(entries)]


def _is_dotted_name(text: str) -> bool:
    parts = text.split(".")
    return all(part.isidentifier() and not keyword.iskeyword(part) for part in parts)
