"""The Python that runs us, as a program that can be started. Only the standard library is imported.

A frozen application (PyInstaller, cx_Freeze) has Python inside, and starting it starts another one
of it, whatever the arguments: it is never taken for a Python.
"""

from __future__ import annotations

import os
import shutil
import sys


def is_frozen() -> bool:
    """Return whether we are a frozen application."""
    return bool(getattr(sys, "frozen", False))


def interpreter() -> str:
    """Return the Python that runs us, or one like it where another program has it embedded.

    Raises OSError where there is none.
    """
    running = "" if is_frozen() else sys.executable or ""
    if "python" in os.path.basename(running):
        return running
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    beside = os.path.join(sys.prefix, "bin", name)
    found = beside if os.path.exists(beside) else shutil.which(name) or running
    if not found:
        whose = "this frozen application" if is_frozen() else "this application"
        raise OSError(f"{whose} is no Python, and there is no {name}")
    return found
