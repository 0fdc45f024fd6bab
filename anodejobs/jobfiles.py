"""What a job is given and gives back, as files beside its logs.

A job's *payload* is JSON in a file it may read; its *result* is JSON in a file it may write; its
*progress* is the last line of a file it may append to. They lie in three folders, each for all
jobs, which are there before any job starts: a job that uses none of them costs nothing.

Nothing here knows records or processes. Calls that are said to block belong in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from anodejobs.regular import open_regular, remove
from anodejobs.this_job import MOST_RESULT_BYTES

__all__ = ["MOST_RESULT_BYTES", "JobFiles", "Result", "job_files"]


_STALE_PART_S = 3600.0
"""How old a half-written file is that nobody writes any more."""


@cache
def job_files(folder: str) -> JobFiles:
    """Return the files of a folder; the same object each time."""
    return JobFiles(folder)


@dataclass(frozen=True, slots=True)
class Result:
    """What an attempt wrote as its result: a JSON value, or one line on why it is none."""

    value: object = None
    error: str | None = None


class JobFiles:
    """The files of all jobs of a directory; ``logfile`` is the safe name that its logs bear."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = os.path.abspath(folder)
        self._parts = os.path.join(self._folder, "parts")
        """Holds what is being written, until it is put in its place."""
        self.progress_folder = Path(self._folder, "progress")
        """Holds one file for each attempt that has told its progress."""

    def open(self) -> None:
        """Make the folders, where they are not there yet. Blocks."""
        for name in ("payloads", "results", "progress", "parts"):
            os.makedirs(os.path.join(self._folder, name), mode=0o700, exist_ok=True)
        # makedirs leaves those above to the umask.
        os.chmod(self._folder, 0o700)
        self._remove_stale_parts()

    def _remove_stale_parts(self) -> None:
        """Remove what processes that died had half written."""
        before = time.time() - _STALE_PART_S
        with os.scandir(self._parts) as parts:
            for part in parts:
                with contextlib.suppress(FileNotFoundError):  # another application was quicker
                    if part.stat(follow_symlinks=False).st_mtime < before:
                        remove(part.path)

    def variables(self, logfile: str, attempt_number: int) -> dict[str, str]:
        """Return what the attempt has in its environment to find its files by. Does not block."""
        return {
            "ANODEJOBS_RESULT": self._result(logfile, attempt_number),
            "ANODEJOBS_PROGRESS": self.progress(logfile, attempt_number),
        }

    def hand_out(self, logfile: str, payload: object) -> None:
        """Write the payload. Blocks.

        Two who start the same attempt may both do so, while the job runs or before.
        """
        data = json.dumps(payload, separators=(",", ":")).encode()
        # Put in place at once: no reader sees half of it, also not after a crash.
        part = os.path.join(self._parts, str(uuid.uuid4()))
        try:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(data)
            try:
                os.replace(part, self.payload(logfile))
            except IsADirectoryError:  # which a job has put there
                remove(self.payload(logfile))
                os.replace(part, self.payload(logfile))
        except BaseException:
            remove(part)
            raise

    def has_result(self, logfile: str, attempt_number: int) -> bool:
        """Return whether the attempt wrote a result. A look at a name, which does not block."""
        return os.access(self._result(logfile, attempt_number), os.F_OK)

    def has_progress(self, logfile: str, attempt_number: int) -> bool:
        """Return whether the attempt said anything of its progress, likewise."""
        return os.access(self.progress(logfile, attempt_number), os.F_OK)

    def result(self, logfile: str, attempt_number: int) -> Result | None:
        """Return the attempt's result, None where it wrote none. Blocks.

        Read it once the attempt has ended. What is no JSON, not a regular file, or longer than
        ``MOST_RESULT_BYTES`` is a result with an ``error``.
        """
        try:
            data = _read(self._result(logfile, attempt_number))
        except FileNotFoundError:
            return None
        except OSError as error:
            return Result(error=f"the result cannot be read: {_reason(error)}")
        if len(data) > MOST_RESULT_BYTES:
            return Result(error=f"the result is longer than {MOST_RESULT_BYTES} bytes")
        # Imported here: programs that only need the names stay small.
        from pydantic_core import from_json

        try:
            value = from_json(data, allow_inf_nan=False)
            json.dumps(value, allow_nan=False)  # 1e999 was read as an infinite number
            return Result(value)
        except ValueError as error:
            return Result(error=f"the result is not JSON: {error}")

    def answers(self, logfile: str, attempt_number: int) -> tuple[str, str]:
        """Return the files in which the attempt gives something back. Does not block."""
        return self._result(logfile, attempt_number), self.progress(logfile, attempt_number)

    def payload(self, logfile: str) -> str:
        """Return the file that the job reads its payload from."""
        return f"{self._folder}/payloads/{logfile}.json"

    def _result(self, logfile: str, attempt_number: int) -> str:
        return f"{self._folder}/results/{logfile}.{attempt_number}.json"

    def progress(self, logfile: str, attempt_number: int) -> str:
        """Return the file that the attempt appends its progress to."""
        return f"{self._folder}/progress/{logfile}.{attempt_number}"


def _read(path: str) -> bytes:
    """Return the content, or enough of it to see that it is too much."""
    # A job can put anything there: a link to what only we may read, or a pipe that nobody fills.
    with open(open_regular(path, os.O_RDONLY), "rb") as file:
        return file.read(MOST_RESULT_BYTES + 1)


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "it is a symbolic link"
    return error.strerror or type(error).__name__
