"""Files where a job may put something else: a link elsewhere, a pipe that nobody fills, a folder.

Nothing here knows what is in a file, or whose it is. Only the standard library is imported.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat


def open_regular(path: str | os.PathLike[str], flags: int) -> int:
    """Return a descriptor of a regular file: no link is followed, no pipe is waited for.

    A file that is made is its owner's alone. Raises OSError, also for what is no regular file.
    """
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
        if flags & os.O_CREAT and mode & 0o600 != 0o600:
            os.fchmod(fd, 0o600)  # the umask is that of any job, where these are spawned meanwhile
    except BaseException:
        os.close(fd)
        raise
    return fd


def remove(path: str | os.PathLike[str]) -> None:
    """Remove what is there, if anything is, a folder with all that is in it."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError:
        if not os.path.isdir(path) or os.path.islink(path):
            raise
        shutil.rmtree(path)
