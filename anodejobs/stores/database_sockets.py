"""Sockets on which a network that has gone silent is noticed.

A firewall forgets a connection without a word, or a machine is there no more; who waits for an
answer would wait for as long as a slow server is waited for. The system tells the two apart: it
gets no word from the other one's system, however busy the server is.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

SILENCE_S: Final = 5
"""How long the other side's system may say nothing, before the connection counts as lost."""
_PROBE_AFTER_S: Final = 3
_PROBE_EVERY_S: Final = 1

_OPTIONS: Final = {
    "TCP_USER_TIMEOUT": SILENCE_S * 1000,
    "TCP_KEEPIDLE": _PROBE_AFTER_S,
    "TCP_KEEPALIVE": _PROBE_AFTER_S,  # as macOS calls it
    "TCP_KEEPINTVL": _PROBE_EVERY_S,
    "TCP_KEEPCNT": SILENCE_S - _PROBE_AFTER_S,
}


def notice_silence(transport: asyncio.BaseTransport) -> None:
    """Have the connection lost where the network is silent; one on this machine never is."""
    connected = transport.get_extra_info("socket")
    if connected.family in (socket.AF_INET, socket.AF_INET6):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _OPTIONS.items():
            if (option := getattr(socket, name, None)) is not None:
                connected.setsockopt(socket.IPPROTO_TCP, option, value)
