"""Follower: what a job writes, as it writes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, aclosing, suppress

from anodejobs.errors import ExecutorError, JobNotFound
from anodejobs.executors.base import Executor, Stream
from anodejobs.jobdb import JobDB
from anodejobs.logs import LogChunk, LogTail
from anodejobs.records import JobRecord, Status
from anodejobs.sequels import begun_attempt
from anodejobs.stores.base import Stored
from anodejobs.threads import in_thread
from anodejobs.transitions import SIGNALLABLE
from anodejobs.waits import Waiter

_LIVE_BYTES = 64 * 1024
_CATCH_UP_BYTES = 256 * 1024
_TURN_BYTES = 256 * 1024
"""How much is given before the event loop has its turn."""


class Follower:
    """Reads the logs of one attempt from given offsets on, until it has ended and all is read.

    ``record`` tells of the attempt, ``stored`` is how the job is now. It reads the files, so a slow
    reader costs the job nothing; rotated files are kept until it has read them.
    """

    def __init__(
        self,
        jobdb: JobDB,
        executor: Executor,
        stored: Stored,
        record: JobRecord,
        offsets: Mapping[Stream, int],
    ) -> None:
        self._jobdb = jobdb
        self._executor = executor
        self._stored = stored
        self._record = record
        logs = stored.launch.logs.of_attempt(record.attempt)
        self._tails = {
            stream: LogTail(logs.path(stream), offset) for stream, offset in offsets.items()
        }

    async def chunks(self) -> AsyncGenerator[LogChunk, None]:
        """Give the bytes of each stream in order."""
        woken = asyncio.Event()
        with ExitStack() as stack:
            for stream, tail in self._tails.items():
                stack.callback(tail.close)
                follow = self._executor.follow
                stack.enter_context(follow(self._stored.attempt.token, stream, tail, woken.set))
            end = stack.enter_context(self._jobdb.waits.wait_for_attempt(self._record))
            end.future.add_done_callback(lambda _: woken.set())
            end.consider(self._stored.record)
            if self._record.status is Status.starting and not await self._has_begun(end):
                return
            while True:
                woken.clear()
                is_over = end.future.done() and _has_ended(end.future)
                async with aclosing(self._unread()) as unread:
                    async for chunk in unread:
                        yield chunk
                if is_over:
                    return
                await woken.wait()

    async def _has_begun(self, end: Waiter) -> bool:
        """Return whether the attempt was begun, once that is known.

        Before it is, there may be logs of an earlier run.
        """
        with (
            suppress(JobNotFound),
            self._jobdb.waits.wait(self._record.self_id, SIGNALLABLE) as begun,
        ):
            begun.consider((await self._jobdb.stored(self._record.self_id)).record)
            await asyncio.wait((begun.future, end.future), return_when=asyncio.FIRST_COMPLETED)
            if not end.future.done():
                return True
            after = end.future.result()
            is_same_run = after.created_at == self._record.created_at
            return is_same_run and begun_attempt(after) >= self._record.attempt
        return False

    async def _unread(self) -> AsyncGenerator[LogChunk, None]:
        """Give what is in the files now, a piece of each in turn."""
        streams, given = list(self._tails), 0
        while streams:
            for stream in list(streams):
                tail = self._tails[stream]
                try:
                    data = await _read(tail)
                except OSError as error:
                    raise unreadable(self._record.self_id, error) from error
                if not data:
                    streams.remove(stream)
                    continue
                yield LogChunk(stream, tail.offset - len(data), data)
                given += len(data)
                if given >= _TURN_BYTES:
                    # What is in memory is read without waiting, and there may always be more.
                    given = 0
                    await asyncio.sleep(0)


def _has_ended(end: asyncio.Future[JobRecord]) -> bool:
    """Return True, or raise why it is not known; a job that is deleted has ended."""
    with suppress(JobNotFound):
        end.result()
    return True


def unreadable(job_id: str, error: OSError) -> ExecutorError:
    """Return the error of a log that is there and cannot be read: a job may put anything there."""
    return ExecutorError(f"a log of job {job_id!r} cannot be read: {error}")


async def _read(tail: LogTail) -> bytes:
    """Return the next bytes; without a thread where they are in the system's memory."""
    try:
        return tail.read_cached(_LIVE_BYTES)
    except BlockingIOError:
        return await in_thread(tail.read, _CATCH_UP_BYTES)
