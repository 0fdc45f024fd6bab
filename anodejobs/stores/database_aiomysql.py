"""Connections of aiomysql that notice a silent network, and leave nothing open when they end."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import aiomysql  # type: ignore[import-untyped]

from anodejobs.stores.database_sockets import notice_silence


class _Connection(aiomysql.Connection):  # type: ignore[misc]  # it has no types
    _writer: Any = None  # where its arguments are refused it has none, and is deleted all the same

    async def ensure_closed(self) -> None:
        """Say goodbye and close; also where the server has closed it before."""
        try:
            with contextlib.suppress(OSError):
                await super().ensure_closed()
        finally:
            self.close()


async def connected(*, timeout: float, **arguments: Any) -> aiomysql.Connection:
    """Return a new connection, or raise TimeoutError after so many seconds.

    ``aiomysql.connect`` and its own timeout lose cancellations, and connections with them.
    """
    connection = _Connection(**arguments)
    try:
        async with asyncio.timeout(timeout):
            await connection.ping()  # which connects first
        notice_silence(connection._writer.transport)
    except BaseException:
        connection.close()
        raise
    return connection
