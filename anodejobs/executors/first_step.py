"""Awaiting a coroutine whose first step runs inside a context.

``create_subprocess_exec`` spawns, and looks up who watches the child, in its first step, before it
waits for anything. What stands for that step alone is seen by nobody else.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

Result = TypeVar("Result")


class FirstStep(Generator[Any, Any, Result]):
    """Runs a coroutine, the first step of it inside the context."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, Result], context: AbstractContextManager[None]
    ) -> None:
        self._coroutine = coroutine
        self._context: AbstractContextManager[None] | None = context

    def __await__(self) -> Generator[Any, Any, Result]:
        return self

    def send(self, value: Any) -> Any:
        context, self._context = self._context, None
        if context is None:
            return self._coroutine.send(value)
        with context:
            return self._coroutine.send(value)

    def throw(self, *args: Any) -> Any:
        return self._coroutine.throw(*args)
