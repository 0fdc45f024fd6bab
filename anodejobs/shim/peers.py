"""Who is at the other end of a Unix socket."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any


def peer(connection: Any) -> tuple[int | None, int | None]:
    """Return pid and user of the process at the other end, None where the system does not say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None, None
    size = struct.calcsize("3i")
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, _ = struct.unpack("3i", data)
    return pid, uid


def is_friend(uid: int | None) -> bool:
    """Return whether the user may talk to us: ourselves, and who may do everything anyway."""
    return uid in (None, os.geteuid(), 0)
