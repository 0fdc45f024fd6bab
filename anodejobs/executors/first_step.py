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
    """Runs a coroutine, the first step of it inside the contexts, the first of them outermost."""

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Result],
        *contexts: AbstractContextManager[None],
    ) -> None:
        self._coroutine = coroutine
        self._contexts = contexts

    def __await__(self) -> Generator[Any, Any, Result]:
        return self

    def send(self, value: Any) -> Any:
        if not self._contexts:
            return self._coroutine.send(value)
        context, *rest = self._contexts
        self._contexts = tuple(rest)
        with context:
            return self.send(value)

    def throw(self, *args: Any) -> Any:
        return self._coroutine.throw(*args)
