"""Jobs as children of a shim, which outlives the application.

This is the application's side: it finds the directory's shim or starts one, asks, and hears what
happens. A shim that dies is replaced at once; whoever waits goes on waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from anodejobs import faults
from anodejobs.errors import ExecutorError, StoreError
from anodejobs.events import Adopted, Attempt, Exited, Lost, Started, StartFailed
from anodejobs.executors import supervisors, tree
from anodejobs.executors.base import (
    Executor,
    Host,
    Launch,
    OnGrowth,
    Stream,
    Superseded,
    Tell,
    TreeUsage,
)
from anodejobs.executors.deaths import readable
from anodejobs.executors.looks import Looks
from anodejobs.executors.pidfds import Reapings, exit_code
from anodejobs.executors.shim_link import Link, connected
from anodejobs.executors.shim_start import start_shim
from anodejobs.logs import Reader
from anodejobs.shim.draining import draining_sockets
from anodejobs.shim.peers import ONE_USER, is_friend, owned_by_another, peer
from anodejobs.shim.protocol import (
    VERSION,
    Message,
    Told,
    TooLong,
    event_from_json,
    request_of,
    start_request,
)
from anodejobs.threads import in_thread

LOG = logging.getLogger("anodejobs")

LINGER_S = 5.0
"""How long a shim stays after its last job and its last application."""
_HOLD_AFTER_S = 1.0
"""Jobs that are older than this have their pidfds held, for the case that the shim dies."""
_FIRST_RETRY_S = 0.01
_LONGEST_RETRY_S = 2.0
_MOST_ATTEMPTS = 8
"""How often a shim is started that does not come up, before that is an error."""
_ANSWER_S = 60.0
"""How long a shim may take to answer who connects: it may have thousands of jobs to take on."""
_DYING_S = 1.0
"""How long a shim that has hung up may take to be dead."""
_HANG_UP_S = 1.0
"""How long the shim has to read what it was last sent."""


@dataclass(slots=True, eq=False)
class _Watched:
    """An attempt that somebody here waits for, or is about to."""

    launch: Launch | None = None
    attempt: Attempt | None = None
    number: int = 1
    news: list[Told] = field(default_factory=list)  # a deque is ten times as large
    is_waited_for: bool = False
    has_ended: bool = False
    woken: asyncio.Future[None] | None = None
    pidfd: int | None = None

    def hear(self, event: Told) -> None:
        """Have the event for who waits; the end is heard once."""
        if self.has_ended:
            return
        self.has_ended = isinstance(event, Exited | Lost)
        self.news.append(event)
        if self.woken is not None and not self.woken.done():
            self.woken.set_result(None)


class Shim(Executor):
    """Runs jobs in the shim of ``folder``; they, their logs and their exits need no application."""

    outlives_host = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._host: Host | None = None
        self._link: Link | None = None
        self._draining: dict[str, Link] = {}
        self._holders: dict[str, Link] = {}
        """Of what shims that drain look after, by token, as it was when last asked for."""
        self._open_links: set[Link] = set()
        self._connecting = asyncio.Lock()
        self._failed: tuple[float, ExecutorError] | None = None
        """When last no shim could be had, and why."""
        self._newer = asyncio.Event()
        """Set where the shim that was last met is that of a newer version."""
        self._watched: dict[str, _Watched] = {}
        self._follows: dict[int, _Follow] = {}
        self._last_follow = 0
        self._on_growth: OnGrowth | None = None
        self._looks = Looks()
        self._reapings: Reapings | None = None
        self._to_hold: deque[tuple[float, str]] = deque()
        self._holding: asyncio.TimerHandle | None = None
        self._held_pidfds = 0
        self._most_pidfds = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
        self._is_closed = False
        self._pid = os.getpid()

    async def open(self, host: Host) -> None:
        self._host = host
        self._identity = await in_thread(_identity, self._folder)
        self.supervisor = supervisors.shim_supervisor(self._folder, self._identity)
        with contextlib.suppress(OSError):
            await self._connect()

    def is_mine(self, supervisor: str) -> bool:
        """As the contract says: another path may lead to the folder, and be in its name."""
        return super().is_mine(supervisor) or supervisors.is_shim_of(
            supervisor, self._folder, self._identity
        )

    def is_alive(self, supervisor: str) -> bool:
        return supervisor == self.supervisor or supervisors.is_alive(supervisor)

    async def outlive(self, supervisor: str) -> None:
        await supervisors.outlive(supervisor)

    async def held(self) -> set[str]:
        request = request_of({"do": "held"})
        tokens = set((await self._ask(request))["held"])
        holders: dict[str, Link] = {}
        for link in list(self._draining.values()):
            with contextlib.suppress(ConnectionError):
                holders |= dict.fromkeys((await link.ask(request))["held"], link)
        self._holders = holders
        return tokens | holders.keys()

    async def prepare(self) -> StartFailed | None:
        if self._link is None:
            try:
                await self._linked()
            except Superseded:
                raise
            except ExecutorError as error:
                return StartFailed(error=str(error))
        return None

    async def watch_for_newer(self) -> None:
        if self._newer.is_set():  # it may have gone
            await self._attend()
        await self._newer.wait()
        raise self._superseded()

    async def start(
        self, launch: Launch, attempt: Attempt, number: int
    ) -> Started | StartFailed | Lost:
        watched = self._watch(attempt.token, launch, attempt, number)
        try:
            event = await self._ask_to_start(launch, attempt, number)
        except TooLong:  # and so for the system, by far
            event = StartFailed(error=os.strerror(errno.E2BIG))
        except BaseException:
            self._forget(attempt.token)
            raise
        faults.reached("host: the process is known")
        if isinstance(event, Started):
            watched.attempt = event.attempt
            self._hold_later(attempt.token)
        assert isinstance(event, Started | StartFailed | Lost)
        return event

    def has_ended(self, token: str) -> bool:
        news = self._watched[token].news
        return bool(news) and isinstance(news[0], Exited)

    async def adopt(self, launch: Launch, attempt: Attempt) -> Adopted | Lost:
        watched = self._watch(attempt.token, launch, attempt, 1)
        event = await self._adopted(watched)
        if isinstance(event, Adopted):
            watched.attempt = event.attempt
            self._hold_later(attempt.token)
        return event

    async def _adopted(self, watched: _Watched) -> Adopted | Lost:
        assert watched.launch is not None and watched.attempt is not None
        # Without what a process that runs has no more need of, and may be of any length.
        launch = replace(watched.launch, argv=(), cwd="/", envs={})
        request = start_request("adopt", watched.number, watched.attempt, launch.parts())
        event = event_from_json((await self._ask(request))["event"])
        assert isinstance(event, Adopted | Lost)
        return event

    async def wait(self, token: str, tell: Tell) -> Exited | Lost:
        watched = self._watched.setdefault(token, _Watched())
        watched.is_waited_for = True
        while True:
            while watched.news:
                event = watched.news.pop(0)
                if isinstance(event, Exited):
                    faults.reached("host: the end is known")
                    return event
                if isinstance(event, Lost):
                    return await self._kernels_word(watched, event)
                if not isinstance(event, StartFailed):
                    await tell(event)
            watched.woken = asyncio.get_running_loop().create_future()
            await watched.woken
            watched.woken = None

    async def _kernels_word(self, watched: _Watched, lost: Lost) -> Exited | Lost:
        """Return what the kernel tells of an end that no shim has seen."""
        if watched.pidfd is None:
            return lost
        code = exit_code(watched.pidfd)
        if code is None:
            if self._reapings is None:
                self._reapings = Reapings()
            code = await self._reapings.wait(watched.pidfd)
        if code is None:
            return lost
        return Exited(at=lost.at, exit_code=code, evidence="adopted", log_error=_GAP)

    async def clean(self, token: str) -> None:
        faults.reached("host: the end is on record")
        self._forget(token)
        for link in self._links():
            link.send_line(b'{"do":"ack","token":"%b"}\n' % token.encode("ascii"))

    async def stop(self, attempt: Attempt, grace: float, *, may_hasten: bool = True) -> bool:
        message = {
            "do": "stop",
            "attempt": attempt.to_json(),
            "grace": grace,
            "may_hasten": may_hasten,
        }
        return bool((await self._ask_any(request_of(message)))["is_gone"])

    async def signal(self, attempt: Attempt, signum: int) -> None:
        message = {"do": "signal", "attempt": attempt.to_json(), "signum": int(signum)}
        await self._ask_any(request_of(message))

    async def usage(self, attempt: Attempt) -> TreeUsage:
        snapshot = await self._looks.take()
        return await in_thread(tree.measure, snapshot.members(attempt))

    @contextmanager
    def follow(
        self, token: str, stream: Stream, tail: Reader, on_growth: Callable[[], None]
    ) -> Iterator[None]:
        self._last_follow += 1
        number = self._last_follow
        follow = self._follows[number] = _Follow(token, stream, tail, on_growth)
        for link in self._links():
            link.send(follow.to_json(number))
        try:
            yield
        finally:
            del self._follows[number]
            for link in self._links():
                link.send({"do": "unfollow", "sub": number})

    def report_growth(self, on_growth: OnGrowth | None) -> None:
        self._on_growth = on_growth
        for link in self._links():
            link.send({"do": "growth", "on": on_growth is not None})

    def attend(self) -> None:
        if self._link is not None or self._host is None or self._newer.is_set():
            return
        if not self._connecting.locked():
            with contextlib.suppress(ExecutorError):  # closed
                self._host.own(self._attend(), "connection")

    async def _attend(self) -> None:
        async with self._connecting:
            if self._link is None and not self._is_closed:
                with contextlib.suppress(OSError, ExecutorError):  # later, when it is needed
                    await self._connect()
                    if self._host is not None:
                        # Who had been there before us may have gone before we came.
                        self._host.on_departure()

    def wind_down(self) -> None:
        """Do nothing: what is put off, the shim does."""

    async def close(self) -> None:
        self._is_closed = True
        self._link = None
        self._draining.clear()
        if self._holding is not None:
            self._holding.cancel()
        if self._reapings is not None:
            self._reapings.close()
        for token in list(self._watched):
            self._forget(token)
        await self._hang_up()  # last: it may be cancelled

    async def _hang_up(self) -> None:
        """Return when every connection is closed: the event loop may end right after."""
        for hang_up in (Link.close, Link.abort):  # the latter where the shim does not read
            links = list(self._open_links)
            for link in links:
                hang_up(link)
            if links:
                await asyncio.wait([link.gone for link in links], timeout=_HANG_UP_S)

    # What is watched here.

    def _watch(self, token: str, launch: Launch, attempt: Attempt, number: int) -> _Watched:
        watched = self._watched.setdefault(token, _Watched())
        watched.launch, watched.attempt, watched.number = launch, attempt, number
        return watched

    def _forget(self, token: str) -> None:
        watched = self._watched.pop(token, None)
        if watched is not None and watched.pidfd is not None:
            os.close(watched.pidfd)
            self._held_pidfds -= 1

    def _hold_later(self, token: str) -> None:
        """Hold the process's pidfd soon, unless it has ended by then: most jobs are short."""
        loop = asyncio.get_running_loop()
        self._to_hold.append((loop.time() + _HOLD_AFTER_S, token))
        if self._holding is None:
            self._holding = loop.call_later(_HOLD_AFTER_S, self._hold_due)

    def _hold_due(self) -> None:
        loop = asyncio.get_running_loop()
        self._holding = None
        while self._to_hold and self._to_hold[0][0] <= loop.time():
            _, token = self._to_hold.popleft()
            if (watched := self._watched.get(token)) is not None:
                self._hold(watched)
        if self._to_hold:
            self._holding = loop.call_at(self._to_hold[0][0], self._hold_due)

    def _hold(self, watched: _Watched) -> None:
        """Hold a pidfd: it is what the kernel tells a stranger the exit code for."""
        attempt = watched.attempt
        if watched.pidfd is not None or watched.has_ended or attempt is None:
            return
        if attempt.pid is None or attempt.start_time is None:
            return
        if self._held_pidfds < self._most_pidfds:
            with contextlib.suppress(OSError):  # descriptors lack
                watched.pidfd = tree.open_pidfd(attempt.pid, attempt.start_time, even_if_dead=True)
            self._held_pidfds += watched.pidfd is not None

    # What the shim says of itself.

    def _told(self, link: Link, message: Message) -> None:
        if "event" in message:
            token = message["token"]
            watched = self._watched.setdefault(token, _Watched())
            is_new = not watched.is_waited_for and watched.launch is None and not watched.news
            watched.hear(event_from_json(message["event"]))
            if is_new and self._host is not None:
                with contextlib.suppress(ExecutorError):  # closed: somebody else's, then
                    self._host.on_inherited(message["job_id"], token)
        elif "grown" in message:
            self._grown(message["grown"])
        elif "growth" in message:
            if self._on_growth is not None:
                for job_id, stream, offset in message["growth"]:
                    self._on_growth(job_id, stream, offset)
        elif "left" in message and self._host is not None:
            self._host.on_departure()
        elif "draining" in message:
            self._set_aside(link)
            self.attend()

    def _grown(self, numbers: list[int]) -> None:
        for number in numbers:
            follow = self._follows.get(number)
            if follow is None:
                continue
            follow.on_growth()
            for link in self._links():
                link.send({"do": "read", "sub": number, "offset": follow.tail.offset})

    def _lost(self, link: Link) -> None:
        """See that there is another shim, unless it is we who leave."""
        names = [name for name, other in self._draining.items() if other is link]
        for name in names:
            del self._draining[name]
        if link is self._link:
            self._link = None
        elif not names:
            return
        if self._is_closed or self._host is None:
            return
        # At once, before they end: those whose codes nobody else will know.
        for watched in self._watched.values():
            self._hold(watched)
        if not names:
            LOG.warning("the shim of %s has gone, another one is started", self._folder)
        with contextlib.suppress(ExecutorError):  # closed
            self._host.own(self._replaced(link.pid if names else None), "next shim")

    async def _replaced(self, drained: int | None) -> None:
        """Have another shim, however long that takes, and see what it knows."""
        if drained is not None:
            await _died(drained)
        rest_s = _FIRST_RETRY_S
        while not self._is_closed:
            try:
                known = self._link
                link = await self._linked()
                if link is known:  # it is to look for what a draining shim has left
                    await self._hail(link)
                held = await self.held()
                for token, watched in list(self._watched.items()):
                    if token not in held and not watched.has_ended:
                        await self._replace(watched)
                return
            except (OSError, ExecutorError) as error:
                LOG.error("no shim for %s: %s", self._folder, error)
            await asyncio.sleep(rest_s)
            rest_s = min(2 * rest_s, _LONGEST_RETRY_S)

    async def _replace(self, watched: _Watched) -> None:
        """Have the shim take on an attempt that its journal does not know."""
        attempt = watched.attempt
        if not watched.is_waited_for:
            return  # it is about to be asked for
        if watched.launch is None or attempt is None or attempt.pid is None:
            watched.hear(Lost(error="the shim that knew of it has gone"))
        else:
            watched.hear(await self._adopted(watched))

    # Having a shim.

    async def _ask(self, request: str) -> Message:
        """Return the shim's answer; where it dies meanwhile, the next one is asked.

        What is asked for may therefore be done twice, so it must do no harm then.
        """
        while True:
            answer = await self._ask_of(await self._linked(), request)
            if answer is not None:
                return answer

    async def _ask_any(self, request: str) -> Message:
        """As ``_ask``, for what a shim that drains can do where the next one is a newer one."""
        try:
            return await self._ask(request)
        except Superseded:
            for link in list(self._draining.values()):
                with contextlib.suppress(ConnectionError):
                    return await link.ask(request)
            raise

    async def _ask_of(
        self, link: Link, request: str, env: dict[str, str] | None = None
    ) -> Message | None:
        """Return the answer of this shim, None where another one is to be asked."""
        try:
            if env is not None and link.env is not env:
                link.send({"do": "env", "vars": env})
                link.env = env
            answer = await link.ask(request)
        except ConnectionError:
            return None
        if not answer.get("is_draining"):
            return answer
        self._set_aside(link)
        return None

    async def _ask_to_start(self, launch: Launch, attempt: Attempt, number: int) -> Told:
        """Return how a start went, however long it takes to have a shim that can tell.

        That there is none says nothing: one that has died may have done it, for us or for another
        application that found it on record.
        """
        request = start_request("start", number, attempt, launch.parts())
        earlier, rest_s = self._link, _FIRST_RETRY_S
        while True:
            try:
                try:
                    link = await self._linked()
                except Superseded:
                    # A newer application finds it on record, and has its own shim start it.
                    if await self._is_over(launch.job_id, attempt):
                        return Lost(error="it has ended, and that is on record")
                    raise
                # A shim knows what has ended while we were connected, as we were to the one that
                # was there when this was put on record. With the next one the record tells; looked
                # at now, when nothing more can be forgotten.
                if link is not earlier and await self._is_over(launch.job_id, attempt):
                    return Lost(error="it has ended, and that is on record")
                answer = await self._ask_holder(attempt.token, request)
                if answer is None:
                    answer = await self._ask_of(link, request, launch.base_env)
                if answer is not None:
                    return event_from_json(answer["event"])
                continue
            except (_NoShim, Superseded, StoreError, ConnectionError) as error:
                LOG.error("job %s: how its start went is not known yet: %s", launch.job_id, error)
            await asyncio.sleep(rest_s)
            rest_s = min(2 * rest_s, _LONGEST_RETRY_S)

    async def _ask_holder(self, token: str, request: str) -> Message | None:
        """Return the answer of a shim that drains and has the attempt, None where none has."""
        holder = self._holders.get(token)
        if holder is None:
            return None
        answer = await self._ask_of(holder, request)
        # What it had is the next one's, which has to look for that.
        if holder.is_lost and holder.pid is not None:
            await _died(holder.pid)
            await self._hail(await self._linked())
        return answer

    async def _is_over(self, job_id: str, attempt: Attempt) -> bool:
        return self._host is not None and await self._host.is_over(job_id, attempt.token)

    def _links(self) -> list[Link]:
        current = [self._link] if self._link is not None else []
        return [*current, *self._draining.values()]

    async def _linked(self) -> Link:
        """Return a connection to the shim, which is started where there is none."""
        if self._link is not None and os.getpid() == self._pid:
            return self._link
        self._refuse_if_closed()
        if os.getpid() != self._pid:
            raise ExecutorError("this Jobs was opened before a fork; make one in each process")
        asked_at = asyncio.get_running_loop().time()
        async with self._connecting:
            if self._failed is not None and self._failed[0] > asked_at:
                raise self._failed[1]  # of somebody who has tried while we waited
            rest_s = _FIRST_RETRY_S
            problem = "it does not answer"
            for _ in range(_MOST_ATTEMPTS):
                if self._link is not None:
                    return self._link
                try:
                    return await self._connect()
                except ExecutorError as refusal:
                    self._failed = asyncio.get_running_loop().time(), refusal
                    raise
                except OSError:
                    self._refuse_if_closed()
                    word = await start_shim(self._folder, LINGER_S)
                if word not in ("ready", "taken"):
                    problem = word
                # Another shim may be about to listen, or about to leave. The one place where we
                # look again and again: neither can tell us.
                if word != "ready":
                    await asyncio.sleep(rest_s)
                    rest_s = min(2 * rest_s, _LONGEST_RETRY_S)
            error = _NoShim(f"there is no shim for {self._folder}: {problem}")
            self._failed = asyncio.get_running_loop().time(), error
            raise error

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise ExecutorError("the executor is closed")

    async def _connect(self) -> Link:
        """Connect to the shim that listens. Raises OSError where none does, and Superseded."""
        self._newer.clear()
        for name in await in_thread(draining_sockets, self._folder):
            if name not in self._draining:
                with contextlib.suppress(OSError):
                    self._draining[name], _ = await self._greet(name)
        link, version = await self._greet("socket")
        if version < VERSION:
            await self._drain(link)
            raise ConnectionRefusedError("an older shim was there")
        if version > VERSION:
            link.close()
            self._newer.set()
            raise self._superseded()
        self._link = link
        for number, follow in self._follows.items():
            link.send(follow.to_json(number))
        if self._on_growth is not None:
            link.send({"do": "growth", "on": True})
        return link

    async def _greet(self, name: str) -> tuple[Link, int]:
        loop = asyncio.get_running_loop()
        with connected(self._folder, name) as connection:
            if not is_friend(peer(connection)[1]):
                raise ExecutorError(f"another user listens in {self._folder}")
            _, link = await loop.create_unix_connection(
                lambda: Link(self._told, self._lost, self._open_links), sock=connection
            )
        try:
            self._refuse_if_closed()  # closing knew nothing of this link
            async with asyncio.timeout(_ANSWER_S):
                version = await self._hail(link)
        except TimeoutError:
            link.abort()
            what = f"the shim of {self._folder} does not answer: is it stopped?"
            raise _NoShim(what) from None
        except BaseException:
            link.close()
            raise
        return link, version

    async def _hail(self, link: Link) -> int:
        """Say what we watch, and return the shim's version."""
        hello = {"do": "hello", "version": VERSION, "mine": list(self._watched)}
        answer = await link.ask(request_of(hello))
        link.pid = answer["pid"]
        return int(answer["version"])

    def _superseded(self) -> Superseded:
        return Superseded(f"{self._folder} has the shim of a newer anodejobs; upgrade")

    async def _drain(self, link: Link) -> None:
        """Have an older shim see its jobs through, and make room for ours."""
        await link.ask(request_of({"do": "drain"}))
        link.close()

    def _set_aside(self, link: Link) -> None:
        """Keep the link to a shim that drains; the next one asked is the one in its place."""
        if self._link is link:
            self._link = None
            self._draining[f"was {id(link)}"] = link


class _NoShim(ExecutorError):
    """There is none that answers; later there may be one."""


@dataclass(slots=True, eq=False)
class _Follow:
    """A reader of a log that the shim pumps."""

    token: str
    stream: Stream
    tail: Reader
    on_growth: Callable[[], None]

    def to_json(self, number: int) -> Message:
        return {
            "do": "follow",
            "sub": number,
            "token": self.token,
            "stream": self.stream,
            "offset": self.tail.offset,
        }


_GAP = "the log may have a gap"


def _identity(folder: Path) -> str:
    """Return the name of the folder's shims that no other folder's have; the first one makes it.

    Raises ExecutorError where another user has it: one that may write there all the same, as root
    may, would keep the other's shims from starting ever after.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (found := owned_by_another(folder)) is not None:
        raise ExecutorError(f"{found}: {ONE_USER}")
    return supervisors.identity(folder / "id")


async def _died(pid: int) -> None:
    """Return when a process that has hung up is dead: its lock is unlocked a moment later only."""
    if not tree.HAS_PIDFDS:
        return
    # It is, or descriptors or memory lack: the next shim looks again by itself.
    with contextlib.suppress(OSError):
        fd = os.pidfd_open(pid)
        try:
            await readable(fd, within_s=_DYING_S)
        finally:
            os.close(fd)
