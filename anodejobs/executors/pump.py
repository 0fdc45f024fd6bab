"""LogPump: the thread that carries jobs' output from their pipes into their log files.

Bytes only, and memory that does not grow with what a job writes. Only the standard library is
imported here.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import selectors
import struct
import termios
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

from anodejobs.executors.descriptors import is_kept
from anodejobs.logs import LogFile
from anodejobs.threads import start

LOG = logging.getLogger("anodejobs")

_BUFFER_BYTES = 256 * 1024
"""What is copied at once; more would not stay in a core's cache until it is written."""
_FLOOD_BYTES = 1024 * 1024
"""What a pipe is made to hold that was seen full, and how much of it is spliced at once."""
_PIPE_BYTES = 64 * 1024
"""What a pipe holds unless it was enlarged."""
_SMALL_BYTES = 4096
_TICK_S = 0.04
"""How long output may lie in a pipe that nobody follows."""
_HOT_BYTES = 32 * 1024
"""A pipe that gives more than this within a tick is served at once, not tick by tick."""
_TURN_BYTES = 1024 * 1024
"""How much one pipe may give before the others have their turn."""
_CLOSING_S = 5.0
"""How long closing waits for the thread: a log's file system may hang."""
_RETRY_S = 1.0
"""How long a log that could not be written, or a pipe that could not be looked at, rests; its job
waits meanwhile."""


class Pipe:
    """One stream on its way to a log. Its fields belong to the pump."""

    def __init__(self, fd: int, log: LogFile) -> None:
        self.fd: int | None = fd
        self.log = log
        self.on_growth: set[Callable[[], None]] = set()
        """Told of every growth at once; changed and called on the event loop."""
        self.trouble: str | None = None
        """Why the log could not be written, the last time it was tried."""
        self.offset = 0
        """Where the log ended when last something was written to it."""
        self.capacity = _PIPE_BYTES
        """How many bytes it can hold."""
        self.pending = b""
        """What was read and could not be written yet."""
        self.is_flooding = False
        """Whether it gave so much last time that it is spliced."""
        self.is_hot = False
        """Whether it is served at once, not tick by tick."""
        self.is_registered = False
        """Whether a selector looks at it: that of ``is_hot``."""
        self.window_end = 0.0
        """The monotonic time until which ``window_bytes`` are counted."""
        self.window_bytes = 0

    @property
    def error(self) -> str | None:
        """Why the log lacks bytes, as far as is known."""
        if self.trouble is None and self.log.unclosed is not None:
            return _incomplete(self.log, self.log.unclosed)
        return self.trouble


def _incomplete(log: LogFile, error: OSError) -> str:
    return f"the log {log.path.name} is incomplete: {error.strerror}"


class LogPump:
    """A thread that carries the bytes of many pipes into their log files.

    A pipe is looked at tick by tick, since waking for each line is what costs; one that is
    followed, or gives much, is served at once. A log that cannot be written (a full disk) makes
    its own job wait, not the others.

    Methods are called on the event loop, and so is ``on_growth``, with a pipe and the offset at
    which its log ends now. Raises OSError where there can be no thread.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_growth: Callable[[Pipe, int], None]
    ) -> None:
        self._loop = loop
        self._on_growth = on_growth
        self.reports_all = False
        """Whether ``on_growth`` is told of all pipes; else of those that are followed."""
        self._lock = threading.Lock()
        """Held by who reads, registers or closes a pipe. Never waited for on the event loop."""
        self._now = selectors.DefaultSelector()
        self._lazy = selectors.DefaultSelector()
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self._now.register(self._wake_in, selectors.EVENT_READ)
        self._now.register(self._lazy, selectors.EVENT_READ)
        self._lazy_due: float | None = None
        self._commands: deque[Callable[[], None]] = deque()
        self._pipes: set[Pipe] = set()
        self._fresh: list[Pipe] = []
        """Pipes that are looked at when the tick is over: many a job has ended by then."""
        self._fresh_due: float | None = None
        self._stalled: dict[Pipe, float] = {}
        self._open_logs: OrderedDict[Pipe, None] = OrderedDict()
        self._most_open_logs = max(32, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8)
        self._news: dict[Pipe, int] = {}
        self._news_lock = threading.Lock()
        self._view = memoryview(bytearray(_BUFFER_BYTES))
        self._through: tuple[int, int] | None = None
        """A pipe that is empty between two turns; there once a job floods its own."""
        self._stopping = False
        self._has_ended = asyncio.Event()
        """Set when the thread has, and all is closed."""
        try:
            start(threading.Thread(target=self._run, name="anodejobs-pump", daemon=True))
        except BaseException:
            self._close_own()
            raise

    def add(self, fd: int, log: LogFile) -> Pipe:
        """Take over the read end of a pipe, one that blocks nobody."""
        pipe = Pipe(fd, log)
        self._pipes.add(pipe)
        self._fresh.append(pipe)
        if len(self._fresh) == 1:
            self._wake()
        return pipe

    def follow(self, pipe: Pipe, on_growth: Callable[[], None]) -> None:
        """Call ``on_growth`` as soon as the log has grown."""
        pipe.on_growth.add(on_growth)
        self._command(lambda: self._hasten(pipe))

    def unfollow(self, pipe: Pipe, on_growth: Callable[[], None]) -> None:
        """Undo ``follow``."""
        pipe.on_growth.discard(on_growth)

    def trim(self, log: LogFile) -> None:
        """Remove soon what a reader that has gone kept from removal."""

        def command() -> None:
            with contextlib.suppress(OSError):
                log.trim()

        self._command(command)

    async def settle(self, pipe: Pipe) -> None:
        """Return once all that the pipe holds now is in the log.

        That is not its end: another process may hold the pipe for ever. What cannot be written is
        dropped, and ``pipe.error`` says why.
        """
        if not self._settle_empty(pipe):
            await self._in_thread(lambda: self._settle(pipe))

    def _settle_empty(self, pipe: Pipe) -> bool:
        """Settle a pipe that never had a byte, which is most jobs' stderr, without the thread."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if pipe.fd is None or pipe.offset or pipe.pending:
                return False
            try:
                pipe.pending = os.read(pipe.fd, _SMALL_BYTES)
            except BlockingIOError:
                return True  # another process has its other end
            if pipe.pending:
                return False
            self._end(pipe)
            return True
        finally:
            self._lock.release()

    async def release(self, pipe: Pipe) -> None:
        """Give the pipe up, whoever may still hold its other end."""
        if pipe.fd is not None:
            await self._in_thread(lambda: self._end(pipe))

    async def close(self) -> None:
        """End the thread and close every pipe, whatever is in it. Idempotent.

        That is done when it can be, though this is cancelled or it takes too long.
        """
        self._stopping = True
        self._wake()
        try:
            async with asyncio.timeout(_CLOSING_S):
                await self._has_ended.wait()
        except TimeoutError:
            LOG.warning("a log could not be written for %g s: it is not waited for", _CLOSING_S)

    def _close_own(self) -> None:
        self._now.close()
        self._lazy.close()
        os.close(self._wake_in)
        os.close(self._wake_out)
        for fd in self._through or ():
            os.close(fd)
        self._wake_in = self._wake_out = -1

    def _end_all(self) -> None:
        while self._commands:  # that came too late for the thread
            self._commands.popleft()()
        for pipe in list(self._pipes):
            self._end(pipe)
        self._close_own()
        self._has_ended.set()

    async def _in_thread(self, work: Callable[[], None]) -> None:
        done = self._loop.create_future()

        def resolve(error: BaseException | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        def command() -> None:
            error: BaseException | None = None
            try:
                with self._lock:
                    work()
            except BaseException as caught:
                error = caught
            self._loop.call_soon_threadsafe(resolve, error)

        if self._stopping:
            return
        self._command(command)
        await done

    def _command(self, command: Callable[[], None]) -> None:
        if self._has_ended.is_set():
            command()
            return
        self._commands.append(command)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # it is to wake anyway, or was closed
            os.write(self._wake_out, b"!")

    # In the thread from here on.

    def _run(self) -> None:
        try:
            self._carry()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop was closed before the pump
                self._loop.call_soon_threadsafe(self._end_all)

    def _carry(self) -> None:
        while not self._stopping:
            ready = [key for key, _ in self._now.select(self._rest_s())]
            for key in ready:
                if key.fd == self._wake_in:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_in, 4096)
                elif key.fileobj is self._lazy:
                    # Looked at when the tick is over; until then it would only wake us again.
                    self._now.unregister(self._lazy)
                    self._lazy_due = time.monotonic() + _TICK_S
                else:
                    self._serve(key.data)
            while self._commands:
                self._commands.popleft()()
            now = time.monotonic()
            if self._fresh:
                self._see_fresh(now)
            if self._lazy_due is not None and now >= self._lazy_due:
                self._see_lazy(now)
            for pipe, due in list(self._stalled.items()):
                if now >= due:
                    self._retry(pipe)
        while self._commands:
            self._commands.popleft()()

    def _see_fresh(self, now: float) -> None:
        """Begin with the pipes that are new, a tick after the first of them came."""
        if self._fresh_due is None:
            self._fresh_due = now + _TICK_S
        elif now >= self._fresh_due:
            self._fresh_due = None
            fresh, self._fresh = self._fresh, []
            for pipe in fresh:
                with self._guarded(pipe):
                    self._register(pipe)
                self._serve(pipe)

    def _see_lazy(self, now: float) -> None:
        """See to the pipes that are served tick by tick, and be woken by them again."""
        for key, _ in self._lazy.select(0):
            self._serve(key.data)
        try:
            self._now.register(self._lazy, selectors.EVENT_READ)
            self._lazy_due = None
        except OSError:  # no memory: they are seen to at the next tick all the same
            self._lazy_due = now + _TICK_S

    def _rest_s(self) -> float | None:
        """Return how long nothing is due, None where nothing will be."""
        dues = list(self._stalled.values())
        if self._fresh_due is not None:
            dues.append(self._fresh_due)
        if self._lazy_due is not None:
            dues.append(self._lazy_due)
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def _serve(self, pipe: Pipe) -> None:
        with self._guarded(pipe):
            if pipe.fd is None or pipe in self._stalled or not self._write_pending(pipe):
                return
            got = self._drain(pipe, _TURN_BYTES)
            if pipe.fd is not None and pipe not in self._stalled:
                self._pace(pipe, got)

    @contextlib.contextmanager
    def _guarded(self, pipe: Pipe) -> Iterator[None]:
        """Keep one pipe's trouble from ending the thread of all."""
        with self._lock:
            try:
                yield
            except Exception as error:
                LOG.exception("the log %s cannot be carried on", pipe.log.path)
                pipe.trouble = f"the log {pipe.log.path.name} ends early: {error}"
                self._end(pipe)

    def _drain(self, pipe: Pipe, most: int) -> int:
        """Carry what is in the pipe, up to about ``most`` bytes; return how many it were."""
        total = 0
        while total < most and pipe.fd is not None:
            try:
                n = self._splice(pipe.fd, pipe) if pipe.is_flooding else self._copy(pipe.fd, pipe)
            except BlockingIOError:
                break
            if n == 0:
                self._end(pipe)
                break
            total += n
            pipe.is_flooding = n >= _PIPE_BYTES and self._through is not None
            if n < _PIPE_BYTES or pipe in self._stalled:
                break  # it is empty, or nearly
        return total

    def _copy(self, fd: int, pipe: Pipe) -> int:
        n = os.readv(fd, [self._view])
        if n >= pipe.capacity:
            self._enlarge(fd, pipe)  # the job can go on while we write
        self._write(pipe, self._view[:n])
        return n

    def _splice(self, fd: int, pipe: Pipe) -> int:
        """As ``_copy``, for much at once: through a pipe of our own.

        A job cannot write while its pipe is read. Moving the bytes from pipe to pipe is soon done,
        and their one copy, into the file, holds up nobody.
        """
        assert self._through is not None
        out, into = self._through
        try:
            n = left = os.splice(fd, into, _FLOOD_BYTES, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            raise
        except OSError:  # a kernel without splice, or a sandbox that refuses it
            return self._copy(fd, pipe)
        try:
            while left:
                left -= pipe.log.splice(out, left)
        except Exception as error:
            rest = os.read(out, left)  # the next job's bytes will pass here
            if not isinstance(error, OSError):
                raise
            # A file system without splice; or no room, which copying meets again.
            self._write(pipe, memoryview(rest))
        else:
            self._note_growth(pipe)
        return n

    def _write(self, pipe: Pipe, data: memoryview) -> bool:
        """Append to the log; where that fails keep the rest and let the pipe rest a while."""
        try:
            while data:
                written = pipe.log.write(data)
                data = data[written:]
        except OSError as error:
            pipe.pending = bytes(data)
            pipe.trouble = _incomplete(pipe.log, error)
            self._stall(pipe)
            return False
        finally:
            self._note_growth(pipe)
        return True

    def _note_growth(self, pipe: Pipe) -> None:
        self._note_open(pipe)
        if pipe.log.offset != pipe.offset:
            pipe.offset = pipe.log.offset
            if pipe.on_growth or self.reports_all:
                self._tell(pipe)

    def _note_open(self, pipe: Pipe) -> None:
        """Keep the number of open logs bounded: the one unused for longest is closed."""
        is_one_too_many = len(self._open_logs) >= self._most_open_logs or (
            pipe.log.fd is not None and is_kept(pipe.log.fd)
        )
        if pipe not in self._open_logs and self._open_logs and is_one_too_many:
            self._close_log(next(iter(self._open_logs)))
        self._open_logs[pipe] = None
        self._open_logs.move_to_end(pipe)

    def _close_log(self, pipe: Pipe) -> None:
        self._open_logs.pop(pipe, None)
        pipe.log.close()

    def _enlarge(self, fd: int, pipe: Pipe) -> None:
        if not hasattr(fcntl, "F_SETPIPE_SZ"):
            return
        pipe.capacity = _FLOOD_BYTES  # asked for once, had or not
        with contextlib.suppress(OSError):  # an unprivileged user may have few large pipes
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _FLOOD_BYTES)
        with contextlib.suppress(OSError):  # no descriptor may be left: then it is copied
            if self._through is None:
                self._through = os.pipe()
                fcntl.fcntl(self._through[0], fcntl.F_SETPIPE_SZ, _FLOOD_BYTES)

    def _pace(self, pipe: Pipe, got: int) -> None:
        """Move the pipe between those served at once and those served tick by tick."""
        now = time.monotonic()
        pipe.window_bytes += got
        if now < pipe.window_end and not pipe.window_bytes > _HOT_BYTES:
            return
        wants_heat = pipe.window_bytes > _HOT_BYTES or bool(pipe.on_growth)
        if wants_heat != pipe.is_hot:
            self._move(pipe, wants_heat)
        if now >= pipe.window_end:
            pipe.window_bytes = 0
            pipe.window_end = now + _TICK_S

    def _hasten(self, pipe: Pipe) -> None:
        with self._guarded(pipe):
            if pipe.fd is not None and pipe not in self._stalled and not pipe.is_hot:
                self._move(pipe, True)

    def _move(self, pipe: Pipe, hot: bool) -> None:
        self._unregister(pipe)
        pipe.is_hot = hot
        self._register(pipe)

    def _register(self, pipe: Pipe) -> None:
        if not pipe.is_registered and pipe.fd is not None and pipe not in self._stalled:
            try:
                self._selector(pipe).register(pipe.fd, selectors.EVENT_READ, pipe)
                pipe.is_registered = True
            except OSError:  # no memory: it is tried again
                self._stall(pipe)

    def _unregister(self, pipe: Pipe) -> None:
        if pipe.is_registered and pipe.fd is not None:
            self._selector(pipe).unregister(pipe.fd)
            pipe.is_registered = False

    def _selector(self, pipe: Pipe) -> selectors.BaseSelector:
        return self._now if pipe.is_hot else self._lazy

    def _stall(self, pipe: Pipe) -> None:
        self._unregister(pipe)
        self._stalled[pipe] = time.monotonic() + _RETRY_S

    def _retry(self, pipe: Pipe) -> None:
        with self._guarded(pipe):
            self._resume(pipe)

    def _resume(self, pipe: Pipe) -> None:
        """Let a stalled pipe go on if its log can be written again."""
        if self._write_pending(pipe):
            self._stalled.pop(pipe, None)
            self._register(pipe)

    def _write_pending(self, pipe: Pipe) -> bool:
        if not pipe.pending:
            return True
        data, pipe.pending = pipe.pending, b""
        if self._write(pipe, memoryview(data)):
            pipe.trouble = None
            return True
        return False

    def _settle(self, pipe: Pipe) -> None:
        if pipe in self._stalled or pipe.pending:
            self._resume(pipe)
        if pipe.pending:
            self._end(pipe)
        # Not how much it was made to hold: its job may have enlarged it.
        elif pipe.fd is not None:
            left = _bytes_in(pipe.fd)
            while pipe.fd is not None and left > 0 and not pipe.pending:
                got = self._drain(pipe, left)
                if got == 0:
                    break
                left -= got

    def _end(self, pipe: Pipe) -> None:
        """Close the pipe and its log."""
        self._pipes.discard(pipe)
        if pipe.fd is None:
            return
        self._stalled.pop(pipe, None)
        self._unregister(pipe)
        os.close(pipe.fd)
        pipe.fd = None
        self._close_log(pipe)

    def _tell(self, pipe: Pipe) -> None:
        with self._news_lock:
            is_first = not self._news
            self._news[pipe] = pipe.offset
        if is_first:
            with contextlib.suppress(RuntimeError):  # the loop was closed before the pump
                self._loop.call_soon_threadsafe(self._spread)

    def _spread(self) -> None:
        with self._news_lock:
            news, self._news = self._news, {}
        for pipe, offset in news.items():
            for on_growth in list(pipe.on_growth):
                on_growth()
            if self.reports_all:
                self._on_growth(pipe, offset)


def _bytes_in(pipe_fd: int) -> int:
    """Return how many bytes the pipe holds now."""
    number: int = struct.unpack("i", fcntl.ioctl(pipe_fd, termios.FIONREAD, bytes(4)))[0]
    return number
