"""Starting programs without holding up the event loop: posix_spawn, in threads of its own.

Who spawns waits until the child has become its program, longer than all that Python does for a
short job. The ways of the standard library keep the interpreter all that time; called through
ctypes, the C library lets it go, and it neither forks nor copies what is mapped here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import functools
import logging
import os
import signal
import stat
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread

from anodejobs.executors.environment import EnvironmentBlock
from anodejobs.executors.marks import Marking
from anodejobs.threads import start

LOG = logging.getLogger("anodejobs")

# From <spawn.h>.
_SETSIGDEF = 0x04
_SETSID = 0x80
_OPAQUE_BYTES = 1024
"""More than any C library's posix_spawnattr_t, posix_spawn_file_actions_t and sigset_t have."""
PYTHON_IGNORES = (signal.SIGPIPE, signal.SIGXFSZ)
"""These are errors in Python; a program has them as they were meant."""


_MOST_UNTOLD = 16
"""How many pids wait to be told together while more is started: each telling wakes the loop, and
all that follows a start (writing, sending, committing) is done for all at once."""
_PATIENCE_S = 0.01
"""How long they wait at most where nothing more is ordered: a start may hang, on a dead network
filesystem for example."""
_CLOSING_S = 5.0
"""How long closing waits for starts that are under way."""
_MOST_THREADS = 2
"""How many programs are started at once where nothing is marked: who waits for one to be exec'd
uses no processor. More threads would be in each other's way, and one alone starts sooner."""


@dataclass(slots=True, eq=False, kw_only=True)
class Order:
    """A program to be started in a session of its own, with three descriptors and no other."""

    argv: Sequence[str]
    cwd: str
    base_env: dict[str, str] = field(repr=False)
    own_env: Mapping[str, str] = field(repr=False)
    """What differs from the base, which many orders share."""
    stdin: int
    stdout: int
    stderr: int
    """Ends of pipes to write to, which ``spawn`` takes over and closes. What the program has is
    open for reading, too: without a reader of ours it gets no SIGPIPE, it waits.
    """
    token: str
    """What it is marked with, where that is done."""
    umask: int | None = None
    """None: that of this process. Heeded where there is marking; else it has that anyway."""
    about_to: Callable[[], None] | None = None
    """Called right before it is started, in the thread; an OSError keeps it from that."""


class Spawner:
    """Starts programs in the order in which they are ordered.

    With ``marking`` one at a time, as a mark is the whole process's, which starts nothing else.
    Raises OSError where there can be no thread.
    """

    def __init__(self, marking: Marking | None) -> None:
        libc = _libc()
        assert libc is not None, "asked for where it is not possible"
        self._libc = libc
        self._marking = marking
        self._attributes = libc.attributes(PYTHON_IGNORES if marking is None else None)
        self._umask: int | None = None
        """This process's, where it is changed: to what each program is to have, as the mark is."""
        self._loop = asyncio.get_running_loop()
        self._orders: SimpleQueue[tuple[Order, asyncio.Future[int]] | None] = SimpleQueue()
        self._outcomes: deque[tuple[asyncio.Future[int], int | Exception]] = deque()
        self._has_rung = False
        self._under_way = 0
        self._has_delivered = asyncio.Event()
        self._threads: list[Thread] = []
        self._most_threads = _MOST_THREADS if marking is None else 1
        self._add_thread()

    def _add_thread(self) -> None:
        thread = Thread(target=self._work, name="anodejobs spawner", daemon=True)
        start(thread)
        self._threads.append(thread)

    async def spawn(self, order: Order) -> int:
        """Return the pid once the program is exec'd; it is a child of this process.

        Raises OSError, ValueError where it is refused. What is under way when this is cancelled is
        started all the same, and killed.
        """
        pid: asyncio.Future[int] = self._loop.create_future()
        self._under_way += 1
        self._orders.put((order, pid))
        if self._under_way > len(self._threads) < self._most_threads:
            try:
                self._add_thread()
            except OSError:  # the one will do
                self._most_threads = len(self._threads)
        try:
            return await pid
        except asyncio.CancelledError:
            if not pid.cancelled() and pid.exception() is None:  # told, and not heard
                kill_and_reap(pid.result())
            raise

    async def close(self) -> None:
        """Return when nothing is under way and the threads have ended. Idempotent.

        Or when that takes too long: what hangs is killed once it is there.
        """
        try:
            async with asyncio.timeout(_CLOSING_S):
                while self._under_way:
                    self._has_delivered.clear()
                    await self._has_delivered.wait()
        except TimeoutError:
            LOG.warning("a start took %g s: it is not waited for, and will be undone", _CLOSING_S)
        finally:
            threads, self._threads = self._threads, []
            for _ in threads:
                self._orders.put(None)
        for thread in threads if not self._under_way else ():
            thread.join()  # it has nothing else to do
        if self._umask is not None:
            os.umask(self._umask)
            self._umask = None

    def _deliver(self) -> None:
        self._has_rung = False
        while self._outcomes:
            future, outcome = self._outcomes.popleft()
            self._under_way -= 1
            if future.cancelled():
                if isinstance(outcome, int):
                    kill_and_reap(outcome)
            elif isinstance(outcome, int):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)
        self._has_delivered.set()

    # In the threads.

    def _work(self) -> None:
        block = EnvironmentBlock()
        if self._marking is not None:
            self._umask = os.umask(0o077)
        while (ordered := self._next()) is not None:
            order, future = ordered
            outcome: int | Exception
            try:
                outcome = self._spawned(order, block)
            except Exception as error:  # who has ordered it is told, and the thread goes on
                outcome = error
            self._outcomes.append((future, outcome))
            if len(self._outcomes) >= min(self._under_way, _MOST_UNTOLD):
                self._tell()

    def _tell(self) -> None:
        if self._has_rung:
            return
        self._has_rung = True
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # the loop was closed before us: nobody can be told
            self._has_rung = False
            self._end_untold()

    def _end_untold(self) -> None:
        with contextlib.suppress(IndexError):  # the other thread may have taken the last one
            while True:
                _, outcome = self._outcomes.popleft()
                if isinstance(outcome, int):
                    kill_and_reap(outcome)

    def _next(self) -> tuple[Order, asyncio.Future[int]] | None:
        with contextlib.suppress(Empty):
            return self._orders.get_nowait()
        if self._marking is not None:
            self._marking.unmark()
        # What another thread's start holds back is told by that thread, unless it hangs.
        if self._outcomes and not self._has_rung:
            with contextlib.suppress(Empty):
                return self._orders.get(timeout=_PATIENCE_S)
            self._tell()
        return self._orders.get()

    def _spawned(self, order: Order, block: EnvironmentBlock) -> int:
        try:
            return self._tried(order, block)
        finally:
            self._libc.close(order.stdout)
            self._libc.close(order.stderr)

    def _tried(self, order: Order, block: EnvironmentBlock) -> int:
        argv = [os.fsencode(argument) for argument in order.argv]
        if any(b"\0" in argument for argument in argv):
            raise ValueError("embedded null byte")
        arguments = (ctypes.c_char_p * (len(argv) + 1))(*argv)
        environment = block.holding(order.base_env, order.own_env)
        if self._marking is not None:
            self._marking.mark(order.token)
        if self._umask is not None:
            os.umask(self._umask if order.umask is None else order.umask)
        refusal, code = 0, errno.ENOENT
        libc, pid = self._libc, ctypes.c_int()
        with _file_actions(libc, order) as actions:
            if order.about_to is not None:
                order.about_to()
            for program in _programs(argv[0], order):
                code = libc.spawn(
                    ctypes.byref(pid), program, actions, self._attributes, arguments, environment
                )
                if code == 0:
                    return pid.value
                if code not in (errno.ENOENT, errno.ENOTDIR):
                    refusal = refusal or code
        raise _refused(refusal or code, order)


def is_possible() -> bool:
    """Return whether the C library can do all that is asked of it here.

    It must be glibc 2.34 or later on Linux: an earlier one would leave descriptors open.
    """
    return _libc() is not None


def _programs(name: bytes, order: Order) -> Iterator[bytes]:
    """Yield what to execute, as a shell would look for it; the system has the last word."""
    if b"/" in name:
        yield name
        return
    path = order.own_env.get("PATH", order.base_env.get("PATH", os.defpath))
    for folder in os.fsencode(path).split(os.fsencode(os.pathsep)):
        candidate = os.path.join(folder, name)
        with contextlib.suppress(OSError):
            # Looked at first: a child for each folder would be costly.
            if stat.S_ISREG(os.stat(os.path.join(os.fsencode(order.cwd), candidate)).st_mode):
                yield candidate


def _refused(code: int, order: Order) -> OSError:
    """Return the error, which names the directory where it is that which is at fault."""
    try:
        os.close(os.open(order.cwd, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        is_allowed = os.access(order.cwd, os.X_OK)
        culprit = order.argv[0] if is_allowed else order.cwd
    except OSError as error:
        return OSError(error.errno, os.strerror(error.errno or code), order.cwd)
    return OSError(code, os.strerror(code), culprit)


def kill_and_reap(pid: int) -> None:
    """Kill and reap a child that nobody waits for, unless somebody else has reaped it."""
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        reaped, status = os.waitpid(pid, os.WNOHANG)
        if not reaped or os.WIFSTOPPED(status):  # ours, and alive; we may be told of its stops
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


# What the C library is asked for.


class _LibC:
    """Its functions, and what is the same for all programs. Raises AttributeError if one lacks."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self.spawn = library.posix_spawn
        # Of nothing that is quickly done the interpreter is let go: each time the event loop may
        # take it, and keep it for longer than all of this lasts.
        held = ctypes.PyDLL(None, use_errno=True)
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self.spawn.argtypes = (pointer, ctypes.c_char_p, pointer, pointer, pointer, pointer)
        self.init_actions = held.posix_spawn_file_actions_init
        self.init_actions.argtypes = (pointer,)
        self.destroy_actions = held.posix_spawn_file_actions_destroy
        self.destroy_actions.argtypes = (pointer,)
        self.add_dup2 = held.posix_spawn_file_actions_adddup2
        self.add_dup2.argtypes = (pointer, number, number)
        self.add_chdir = held.posix_spawn_file_actions_addchdir_np
        self.add_chdir.argtypes = (pointer, ctypes.c_char_p)
        self.add_close_from = held.posix_spawn_file_actions_addclosefrom_np
        self.add_close_from.argtypes = (pointer, number)
        self._held = held

    def reopen(self, fd: int) -> int:
        """Return a descriptor of its own for the same file or pipe, to read and write."""
        opened: int = self._held.open(b"/proc/self/fd/%d" % fd, os.O_RDWR | os.O_CLOEXEC)
        if opened < 0:
            _check(ctypes.get_errno())
        return opened

    def close(self, fd: int) -> None:
        """As ``os.close``."""
        if self._held.close(fd) < 0:
            _check(ctypes.get_errno())

    def attributes(self, defaults: Collection[signal.Signals] | None) -> _Opaque:
        """Return those of a program in a session of its own, with the usual meaning of signals.

        ``defaults`` are those which are ignored here and not to be there; None: none is to be, and
        the child need not look at each.
        """
        attributes, signals = _opaque(), _opaque()
        self._held.posix_spawnattr_init(attributes)
        if defaults is None:
            self._held.sigfillset(signals)
        else:
            self._held.sigemptyset(signals)
            for signum in defaults:
                self._held.sigaddset(signals, ctypes.c_int(signum))
        self._held.posix_spawnattr_setsigdefault(attributes, signals)
        self._held.posix_spawnattr_setflags(attributes, ctypes.c_short(_SETSID | _SETSIGDEF))
        return attributes


@functools.cache
def _libc() -> _LibC | None:
    if sys.platform != "linux":
        return None
    try:
        return _LibC()
    except AttributeError:
        return None


_Opaque = ctypes.Array[ctypes.c_char]


def _opaque() -> _Opaque:
    return ctypes.create_string_buffer(_OPAQUE_BYTES)


@contextmanager
def _file_actions(libc: _LibC, order: Order) -> Iterator[_Opaque]:
    """Yield what is done between the birth of the child and its program."""
    actions, opened = _opaque(), []
    libc.init_actions(actions)
    try:
        # Here: the child would have to be entered into /proc for it.
        for fd in (order.stdout, order.stderr):
            opened.append(libc.reopen(fd))
        for place, fd in enumerate([order.stdin, *opened]):
            if fd <= 2:  # an application without descriptors of its own: one would end another
                fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
                opened.append(fd)
            _check(libc.add_dup2(actions, fd, place))
        _check(libc.add_chdir(actions, os.fsencode(order.cwd)))
        _check(libc.add_close_from(actions, 3))
        yield actions
    finally:
        libc.destroy_actions(actions)
        for fd in opened:
            libc.close(fd)


def _check(code: int) -> None:
    if code:
        raise OSError(code, os.strerror(code))
