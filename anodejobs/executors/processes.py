"""Jobs as child processes of this process.

Every job gets a session of its own and two pipes. Nothing but the standard library and psutil is
imported here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from anodejobs.errors import ExecutorError, one_line
from anodejobs.events import (
    Adopted,
    Attempt,
    Exited,
    Lost,
    Started,
    StartFailed,
    StopFailed,
    StopRequested,
    utc_now,
)
from anodejobs.executors import cgroups, supervisors, tree
from anodejobs.executors.base import (
    STREAMS,
    Executor,
    Host,
    Launch,
    OnGrowth,
    Stream,
    Tell,
    TreeUsage,
)
from anodejobs.executors.children import AsyncioChild, Child, Children
from anodejobs.executors.deaths import POLL_S
from anodejobs.executors.endings import KILL_PATIENCE_S, Endings
from anodejobs.executors.jobpipes import new_pipe, open_again, open_for_both
from anodejobs.executors.limiting import account_of, argv_of, new_cgroup, verdict
from anodejobs.executors.looks import Looks
from anodejobs.executors.marks import Marking
from anodejobs.executors.pidfds import Reapings
from anodejobs.executors.pump import LogPump, Pipe
from anodejobs.executors.samples import OwnPeak, Samples
from anodejobs.executors.spawner import Order, Spawner, is_possible, kill_and_reap
from anodejobs.logs import LogFile, Reader
from anodejobs.regular import remove
from anodejobs.threads import in_thread

LOG = logging.getLogger("anodejobs")


@dataclass(slots=True, eq=False)
class _Held:
    """An attempt in our hands."""

    launch: Launch
    attempt: Attempt
    pipes: dict[Stream, Pipe]
    child: Child | None
    """None where it was adopted."""
    pidfd: int | None = None
    """Of what was adopted, where there are pidfds."""
    stop_was_asked: bool = False
    stop_has_reached: bool = False

    def let_go(self) -> None:
        """Close what is open for the process as soon as it is of no use: descriptors are few."""
        if self.child is not None:
            self.child.let_go()
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None

    @property
    def is_limited(self) -> bool:
        return bool(self.launch.limits) or self.attempt.cgroup is not None

    @property
    def is_alive(self) -> bool:
        return self.child is not None and self.child.is_alive


@dataclass(slots=True, eq=False)
class _Follow:
    """A reader of what an attempt writes, which is told of growth from when the pipe is there."""

    tail: Reader
    on_growth: Callable[[], None]
    pump: LogPump | None = None
    pipe: Pipe | None = None

    def attach(self, pump: LogPump, pipe: Pipe) -> None:
        self.pump, self.pipe = pump, pipe
        pipe.log.readers.add(self.tail)
        pump.follow(pipe, self.on_growth)

    def detach(self) -> None:
        if self.pump is not None and self.pipe is not None:
            self.pump.unfollow(self.pipe, self.on_growth)
            self.pipe.log.readers.discard(self.tail)
            self.pump.trim(self.pipe.log)


class Processes(Executor):
    """Runs jobs as children of this process, in which their pumps run too; they end with it.

    ``marking`` is for a process that starts nothing else.
    """

    outlives_host = False

    def __init__(self, marking: Marking | None = None) -> None:
        self._marking = marking
        self.supervisor = supervisors.new_supervisor()
        self._held: dict[str, _Held] = {}
        self._owners: dict[Pipe, tuple[str, Stream]] = {}
        self._follows: dict[tuple[str, Stream], dict[_Follow, None]] = {}
        """By token and stream; some come before the attempt does."""
        self._logs: dict[str, LogFile] = {}
        self._left_logs: WeakValueDictionary[str, LogFile] = WeakValueDictionary()
        """Of what runs on though its job is over."""
        self._looks = Looks()
        self._endings = Endings(self._looks, self._note_use, self._note_ending)
        self._samples: Samples | None = None
        self._own_peak = OwnPeak()
        self._on_growth: OnGrowth | None = None
        self._pump: LogPump | None = None
        self._null = -1
        """The stdin of all; opened for each, it would be one more descriptor a start."""
        self._spawner: Spawner | None = None
        self._children: Children | None = None
        self._reapings: Reapings | None = None
        self._host: Host | None = None
        self._leftovers: dict[str, Attempt] = {}
        """Of what had ended before it could be taken on: they are being ended."""
        self._is_closed = False

    async def open(self, host: Host) -> None:
        self._host = host

    def is_alive(self, supervisor: str) -> bool:
        return supervisors.is_alive(supervisor)

    async def outlive(self, supervisor: str) -> None:
        await supervisors.outlive(supervisor)

    async def held(self) -> set[str]:
        return set(self._held)

    async def prepare(self) -> None:
        """Do nothing: there is nobody beside us."""

    async def start(
        self,
        launch: Launch,
        attempt: Attempt,
        number: int,
        *,
        about_to: Callable[[], None] | None = None,
    ) -> Started | StartFailed | Lost:
        """As the contract says; ``about_to`` is called right before the process is spawned.

        That may be in another thread. Where it raises OSError nothing is spawned.
        """
        at, started_monotonic = utc_now(), time.monotonic()
        ours: dict[Stream, int] = {}
        theirs: dict[Stream, int] = {}
        cgroup: str | None = None
        try:
            # All that takes descriptors or threads of ours, before there is a process.
            self._pumping()
            tree.boot_id()
            if launch.earlier:
                await in_thread(_remove_earlier, launch, number)
                self._refuse_if_closed()
            cgroup = new_cgroup(launch, attempt)
            for stream in STREAMS:
                ours[stream], theirs[stream] = new_pipe()
            marks = launch.marks(number, attempt.token)
            argv = argv_of(launch, cgroup)
            child = await self._started(launch, marks, theirs, argv=argv, about_to=about_to)
            start_time = await self._start_time(child)
        except BaseException as error:
            for fd in ours.values():
                os.close(fd)
            if cgroup is not None:
                cgroups.remove(cgroup, patience_s=0)
            if isinstance(error, (OSError, ValueError)):
                return StartFailed(error=one_line(error))
            raise
        finally:
            for fd in theirs.values():
                os.close(fd)
        attempt = Attempt(
            token=attempt.token,
            supervisor=attempt.supervisor,
            pid=child.pid,
            start_time=start_time,
            boot_id=tree.boot_id(),
            started_monotonic=started_monotonic,
            pipes=(os.fstat(ours["stdout"]).st_ino, os.fstat(ours["stderr"]).st_ino),
            cgroup=cgroup,
        )
        self._hold(launch, attempt, ours, child)
        return Started(at=at, attempt=attempt)

    async def _started(
        self,
        launch: Launch,
        marks: dict[str, str],
        fds: dict[Stream, int],
        *,
        argv: Sequence[str],
        about_to: Callable[[], None] | None,
    ) -> Child:
        """Return the child once it is its program. Who calls closes the ``fds`` that are left.

        Raises OSError and ValueError where that is refused.
        """
        if self._null < 0:
            self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        if not is_possible() or not tree.HAS_PIDFDS:
            if about_to is not None:
                about_to()
            return await self._started_by_asyncio(launch, marks, fds, argv)
        if self._children is None:
            self._children = Children()
        if self._spawner is None:
            self._spawner = Spawner(self._marking)
        pid = await self._spawner.spawn(
            Order(
                argv=argv,
                cwd=launch.cwd,
                base_env=launch.base_env,
                own_env={**launch.envs, **marks},
                stdin=self._null,
                stdout=fds.pop("stdout"),
                stderr=fds.pop("stderr"),
                token=marks["ANODEJOBS_TOKEN"],
                umask=launch.umask,
                about_to=about_to,
            )
        )
        try:
            self._refuse_if_closed()
            return self._children.watch(pid)
        except (OSError, ExecutorError):
            # It is to be said that it did not start, so it must not go on.
            kill_and_reap(pid)
            raise

    async def _started_by_asyncio(
        self,
        launch: Launch,
        marks: dict[str, str],
        fds: dict[Stream, int],
        argv: Sequence[str],
    ) -> Child:
        umask = -1  # as ours is
        if self._marking is not None:
            self._marking.mark(marks["ANODEJOBS_TOKEN"])
            # It spawns before it waits for anything.
            asyncio.get_running_loop().call_soon(self._marking.unmark)
            umask = -1 if launch.umask is None else launch.umask
        with open_for_both(fds) as own_fds:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=self._null,
                stdout=own_fds["stdout"],
                stderr=own_fds["stderr"],
                cwd=launch.cwd,
                env={**launch.base_env, **launch.envs, **marks},
                start_new_session=True,
                umask=umask,
            )
        return AsyncioChild(process)

    async def _start_time(self, child: Child) -> float | None:
        """Return when the child began; None where it has ended, and nothing could be signalled.

        Where that cannot be known it is killed, as it could be neither signalled nor found again,
        and OSError is raised. So it is where nobody would have it: ExecutorError.
        """
        try:
            self._refuse_if_closed()
            return tree.start_time(child.pid) if child.is_alive else None
        except (OSError, ExecutorError):
            child.kill()
            await child.wait()
            child.let_go()
            raise

    def _hold(
        self,
        launch: Launch,
        attempt: Attempt,
        fds: dict[Stream, int],
        child: Child | None,
        pidfd: int | None = None,
    ) -> None:
        pipes: dict[Stream, Pipe] = {}
        logs, pump = launch.logs, self._pumping()
        for stream, fd in fds.items():
            name = logs.stdout if stream == "stdout" else logs.stderr
            log = LogFile(name, logs.max_bytes, logs.backups, replaces=child is not None)
            earlier = self._logs.get(name) or self._left_logs.get(name)
            if earlier is not None:
                earlier.retire()  # of something an earlier run left behind
            self._logs[name] = log
            pipe = pipes[stream] = pump.add(fd, log)
            self._owners[pipe] = (launch.job_id, stream)
            for follow in self._follows.get((attempt.token, stream), ()):
                follow.attach(pump, pipe)
        self._held[attempt.token] = _Held(launch, attempt, pipes, child, pidfd)
        if self._samples is None:
            self._samples = Samples()
        self._samples.watch(attempt)

    def has_ended(self, token: str) -> bool:
        return not self._held[token].is_alive

    async def adopt(self, launch: Launch, attempt: Attempt) -> Adopted | Lost:
        with _lack_told(f"job {launch.job_id!r} cannot be taken on now"):
            event = await self._taken_on(launch, attempt)
        if isinstance(event, Lost) and self._host is not None:
            self._host.own(self.end_leftovers(launch, attempt), f"leftovers of {launch.job_id}")
        return event

    async def end_leftovers(self, launch: Launch, attempt: Attempt) -> None:
        """End what an attempt left behind that is in nobody's hands; or leave it, as launched."""
        if attempt.boot_id not in (None, tree.boot_id()):
            return  # what has its pid now is a stranger
        if launch.leftovers == "kill":
            self._leftovers[attempt.token] = attempt
            await self.stop(attempt, launch.stop_grace)
            del self._leftovers[attempt.token]

    async def _taken_on(self, launch: Launch, attempt: Attempt) -> Adopted | Lost:
        if attempt.pid is None:
            attempt = await self._found_by_token(attempt)
        elif attempt.boot_id != tree.boot_id():
            return Lost(error="the machine was restarted while it ran")
        pid, started = attempt.pid, attempt.start_time
        if pid is None:
            return Lost(error=_DOUBTFUL)
        # The pidfd before all else: with it, an end that comes now is seen.
        pidfd = None if started is None else tree.open_pidfd(pid, started)
        if pidfd is None and (
            tree.HAS_PIDFDS or started is None or not tree.is_alive(pid, started)
        ):
            return Lost(error=_UNSEEN)
        try:
            self._pumping()  # there may be no thread for it, and then no pipe is to be open
            fds = open_again(pid, attempt)
        except BaseException:
            if pidfd is not None:
                os.close(pidfd)
            raise
        self._hold(launch, attempt, fds, None, pidfd)
        # Whoever had it may have died between reading from a pipe and writing to the log.
        return Adopted(attempt=attempt, gap=True)

    async def _found_by_token(self, attempt: Attempt) -> Attempt:
        """Return the attempt with the process that bears its token, if there is one."""
        snapshot = await self._looks.take()
        main = snapshot.main(attempt.token)
        if main is None:
            return attempt
        return replace(
            attempt,
            pid=main.pid,
            start_time=main.start_time,
            boot_id=tree.boot_id(),
            started_monotonic=time.monotonic(),
            cgroup=cgroups.of(main.pid, attempt.token),
        )

    async def wait(self, token: str, tell: Tell) -> Exited | Lost:
        held = self._mine(token)
        code = await self._code_in_time(held, tell)
        ended_at = time.monotonic()
        held.let_go()
        # Before the exit is told: who waits for it may open the logs at once.
        for pipe in held.pipes.values():
            await self._pumping().settle(pipe)
        if code is None:
            return Lost(error=_UNSEEN if held.child is None else _TAKEN)
        started_at = held.attempt.started_monotonic or ended_at
        account = await account_of(held.attempt)
        cpu_seconds, peak_memory_bytes = self._used(held, account)
        refused = limit = None
        if held.is_limited:
            refused, limit = await verdict(held.launch, code, account)
        return Exited(
            exit_code=code,
            evidence="observed" if held.child else "adopted",
            ended_by_itself=held.stop_was_asked and not held.stop_has_reached,
            in_start_grace=bool(refused) or ended_at - started_at < held.launch.start_grace,
            limit=refused or limit,
            log_error=next((p.error for p in held.pipes.values() if p.error), None),
            cpu_seconds=cpu_seconds,
            peak_memory_bytes=peak_memory_bytes,
        )

    def _used(self, held: _Held, account: cgroups.Account) -> tuple[float | None, int | None]:
        """Return the CPU time and the most memory of an attempt that has ended, as far as known."""
        assert self._samples is not None
        seen = self._samples.forget(held.attempt.token)
        reaped = None if held.child is None else held.child.rusage
        cpu, peak = account.cpu_seconds, account.peak_memory_bytes
        if cpu is None and reaped is not None:
            cpu = round(max(reaped.ru_utime + reaped.ru_stime, seen.cpu_seconds), 6)
        if peak is None:
            peak = max(self._own_peak.above(reaped), seen.memory_bytes) or None
        return cpu, peak

    def _code_in_time(self, held: _Held, tell: Tell) -> Awaitable[int | None]:
        """Return the exit code, having stopped the attempt if its time was over before."""
        # No coroutine more than there must be: each is memory for as long as the job runs.
        timeout, started_at = held.launch.timeout, held.attempt.started_monotonic
        if timeout is None or started_at is None:
            return self._code(held)
        return self._timed_code(held, tell, timeout, started_at)

    async def _timed_code(
        self, held: _Held, tell: Tell, timeout: float, started_at: float
    ) -> int | None:
        try:
            async with asyncio.timeout(max(0.0, started_at + timeout - time.monotonic())):
                return await self._code(held)
        except TimeoutError:
            await tell(StopRequested(error=f"timed out after {timeout:g} s"))
            try:
                is_gone = await self.stop(held.attempt, held.launch.stop_grace)
            except ExecutorError as error:  # it is waited for all the same
                LOG.error("job %s timed out: %s", held.launch.job_id, error)
                is_gone = False
            if not is_gone:
                await tell(StopFailed())
            return await self._code(held)

    def _code(self, held: _Held) -> Awaitable[int | None]:
        return self._adopted_end(held) if held.child is None else held.child.wait()

    async def _adopted_end(self, held: _Held) -> int | None:
        if held.pidfd is not None:
            if self._reapings is None:
                self._reapings = Reapings()
            return await self._reapings.wait(held.pidfd)
        pid, started = held.attempt.pid, held.attempt.start_time
        assert pid is not None and started is not None
        while process := tree.look_at(pid, started):
            await in_thread(tree.wait_gone, [process], POLL_S)
        return None

    async def clean(self, token: str) -> None:
        held = self._held.get(token)
        if held is None:
            return
        if held.launch.leftovers == "kill":
            try:
                snapshot = await self._looks.take_soon()
                if left := snapshot.members(held.attempt, has_just_ended=True):
                    await self._endings.stop(held.attempt, held.launch.stop_grace, left=left)
            except OSError as error:
                # Descriptors lack: those of the job are let go of all the more.
                job_id, why = held.launch.job_id, one_line(error)
                LOG.error("what job %s left behind was not ended: %s", job_id, why)
            for pipe in held.pipes.values():
                if pipe.fd is not None:
                    await self._pumping().release(pipe)
        for pipe in held.pipes.values():
            del self._owners[pipe]
            name = pipe.log.name
            if self._logs.get(name) is pipe.log:
                del self._logs[name]
                if pipe.fd is not None:
                    self._left_logs[name] = pipe.log
        held.let_go()
        self._held.pop(token, None)
        if held.attempt.cgroup is None:
            return
        if held.launch.leftovers == "kill":
            await in_thread(cgroups.remove, held.attempt.cgroup, patience_s=KILL_PATIENCE_S)
        else:
            await in_thread(cgroups.leave, held.attempt.cgroup)

    async def stop(self, attempt: Attempt, grace: float, *, may_hasten: bool = True) -> bool:
        if held := self._held.get(attempt.token):
            held.stop_was_asked = True
        with _lack_told("the job cannot be stopped now"):
            is_gone = await self._endings.stop(attempt, grace, may_hasten=may_hasten)
        if attempt.cgroup is not None and (self._is_closed or attempt.token not in self._held):
            await in_thread(cgroups.remove, attempt.cgroup, patience_s=0)
        return is_gone

    async def _note_use(self, attempt: Attempt, members: list[tree.Process]) -> None:
        """Add up what they have used, while they can be asked."""
        if self._samples is not None:
            await self._samples.add(attempt.token, members)

    def _note_ending(self, attempt: Attempt) -> None:
        if held := self._held.get(attempt.token):
            held.stop_has_reached = True

    async def signal(self, attempt: Attempt, signum: int) -> None:
        with _lack_told("the job cannot be signalled now"):
            await self._endings.signal(attempt, signum)

    async def usage(self, attempt: Attempt) -> TreeUsage:
        with _lack_told("the job cannot be measured now"):
            snapshot = await self._looks.take()
            return await in_thread(tree.measure, snapshot.members(attempt))

    @contextmanager
    def follow(
        self, token: str, stream: Stream, tail: Reader, on_growth: Callable[[], None]
    ) -> Iterator[None]:
        follow = _Follow(tail, on_growth)
        follows = self._follows.setdefault((token, stream), {})
        follows[follow] = None
        try:
            held = self._held.get(token)
            if held and stream in held.pipes:
                follow.attach(self._pumping(), held.pipes[stream])
            yield
        finally:
            del follows[follow]
            if not follows:
                del self._follows[token, stream]
            follow.detach()

    def report_growth(self, on_growth: OnGrowth | None) -> None:
        self._on_growth = on_growth
        self._pumping().reports_all = on_growth is not None

    def _tell(self, pipe: Pipe, offset: int) -> None:
        owner = self._owners.get(pipe)
        if owner is not None and self._on_growth is not None:
            self._on_growth(*owner, offset)

    def attend(self) -> None:
        """Do nothing: who waits for the others' attempts is rung for by the store."""

    def wind_down(self) -> None:
        self._looks.is_pressed.set()

    def holds(self, token: str) -> bool:
        """Return whether the attempt is in its hands."""
        return token in self._held

    @property
    def child_pids(self) -> set[int]:
        """The pids of the children whose exit codes are yet to be read, or have been."""
        return {held.child.pid for held in self._held.values() if held.child is not None}

    async def close(self) -> None:
        self._is_closed = True
        # Nobody is left for them to be supervised by: as a rule there are none any more.
        left = [held.attempt for held in self._held.values() if held.is_alive]
        left += self._leftovers.values()
        ends = (self.stop(attempt, 0) for attempt in left)
        try:
            for attempt, end in zip(
                left, await asyncio.gather(*ends, return_exceptions=True), strict=True
            ):
                if isinstance(end, Exception):
                    LOG.error("process %s could not be ended: %r", attempt.pid, end)
        finally:
            await self.leave()

    async def leave(self) -> None:
        """Let go of everything; the processes run on and wait for their next reader."""
        self._is_closed = True
        async with AsyncExitStack() as parts:  # cancelled in one, it goes on with the others
            parts.callback(self._let_go)
            if self._pump is not None:
                parts.push_async_callback(self._pump.close)
            if self._spawner is not None:
                parts.push_async_callback(self._spawner.close)

    def _let_go(self) -> None:
        if self._reapings is not None:
            self._reapings.close()
        if self._children is not None:
            self._children.close()
        if self._samples is not None:
            self._samples.close()
        for held in self._held.values():
            held.let_go()
        self._held.clear()
        self._owners.clear()
        if self._null >= 0:
            os.close(self._null)
            self._null = -1
        supervisors.give_up(self.supervisor)

    def _mine(self, token: str) -> _Held:
        try:
            return self._held[token]
        except KeyError:
            raise ExecutorError("this attempt is not in the executor's hands") from None

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise ExecutorError("the executor is closed")

    def _pumping(self) -> LogPump:
        self._refuse_if_closed()
        if self._pump is None:
            self._pump = LogPump(asyncio.get_running_loop(), self._tell)
        return self._pump


def _remove_earlier(launch: Launch, number: int) -> None:
    """Remove what earlier runs left that would be taken for the attempt's. Waits for the disk."""
    for n in range(1, launch.earlier + 1) if number == 1 else (number,):
        for path in (launch if n == number else launch.of_attempt(n)).traces(n):
            try:
                remove(path)
            except OSError as error:
                why = f"what an earlier run left cannot be removed: {one_line(error)}"
                raise OSError(error.errno, why) from error


@contextmanager
def _lack_told(what: str) -> Iterator[None]:
    """Raise ExecutorError where descriptors or memory lack: that says nothing of the processes."""
    try:
        yield
    except (OSError, MemoryError) as error:
        raise ExecutorError(f"{what}: {one_line(error)}") from error


_TAKEN = "the application, or something in it, took the exit code before it could be read"
_DOUBTFUL = "its supervisor died before it had started it, or soon after; the log may have a gap"
_UNSEEN = "it ended while no supervisor was there to see how; the log may have a gap"
