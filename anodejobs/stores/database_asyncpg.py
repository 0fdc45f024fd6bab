"""Connections of asyncpg that can be closed when their server does not answer."""

from __future__ import annotations

import contextlib

import asyncpg  # type: ignore[import-untyped]

GOODBYE_S = 1.0
"""How long a server has to answer to the goodbye."""


class Connection(asyncpg.Connection):  # type: ignore[misc]  # it has no types
    """As its own, which waits for that answer for ever."""

    async def close(self, *, timeout: float | None = None) -> None:
        """Say goodbye and close."""
        with contextlib.suppress(TimeoutError):  # it is closed all the same
            await super().close(timeout=GOODBYE_S if timeout is None else timeout)
