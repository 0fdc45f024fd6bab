"""Who else is there: at the other end of a Unix socket, or with files in the folder."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import Any

ONE_USER = "run all that use the directory as one user, and give that one all there is (chown -R)"
"""What to do about files of another user."""


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


def owned_by_another(folder: Path) -> str | None:
    """Say what is another user's, the folder of a shim or a file in it; None where nothing is.

    What the shim of one user leaves behind, that of another cannot open. Raises OSError.
    """
    user = os.geteuid()
    if (owner := folder.stat().st_uid) != user:
        return f"{folder} belongs to user {owner}, and this is user {user}"
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has gone meanwhile
            if (owner := path.lstat().st_uid) != user:
                return f"{path} belongs to user {owner}, and this is user {user}"
    return None
