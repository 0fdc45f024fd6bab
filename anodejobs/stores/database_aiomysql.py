"""Connections of aiomysql that notice a silent network, and leave nothing open when they end."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
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
    if "password" in arguments:
        # It sends it as Latin-1. The bytes that the server knows are those of UTF-8.
        arguments["password"] = arguments["password"].encode().decode("latin-1")
    if "ssl" in arguments:
        arguments["ssl"] = _tls(arguments["ssl"])
    connection = _Connection(**arguments)
    try:
        async with asyncio.timeout(timeout):
            await connection.ping()  # which connects first
        notice_silence(connection._writer.transport)
    except BaseException:
        connection.close()
        raise
    return connection


def _tls(asked: Mapping[str, Any]) -> ssl.SSLContext:
    """Return what a URL has asked for, ``?ssl_ca=…`` and its like, as this driver takes it.

    As other drivers have it: without the certificate of whom to trust nothing is verified.
    """
    if not isinstance(asked, Mapping):
        raise ValueError("ssl in a URL is to be said as ssl_ca=…, the file of whom to trust")
    ca, folder = asked.get("ca"), asked.get("capath")
    context = ssl.create_default_context(cafile=ca, capath=folder)
    context.check_hostname = asked.get("check_hostname", True) and (ca or folder) is not None
    if (ca or folder) is None:
        context.verify_mode = ssl.CERT_NONE
    if "cert" in asked:
        context.load_cert_chain(asked["cert"], asked.get("key"))
    if "cipher" in asked:
        context.set_ciphers(asked["cipher"])
    return context
