"""Connections of asyncpg that notice a silent network, and are closed there all the same."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import asyncpg  # type: ignore[import-untyped]

from anodejobs.stores.database_sockets import notice_silence

GOODBYE_S = 1.0
"""How long a server has to answer to the goodbye."""


class Connection(asyncpg.Connection):  # type: ignore[misc]  # it has no types
    """As its own, which waits for that answer for ever."""

    def __init__(self, protocol: Any, transport: asyncio.Transport, *others: Any) -> None:
        super().__init__(protocol, transport, *others)
        notice_silence(transport)

    async def close(self, *, timeout: float | None = None) -> None:
        """Say goodbye and close."""
        with contextlib.suppress(TimeoutError):  # it is closed all the same
            await super().close(timeout=GOODBYE_S if timeout is None else timeout)
