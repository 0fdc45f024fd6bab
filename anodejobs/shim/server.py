"""The shim's side of the conversation: applications ask, attempts are lived, news is passed on.

Each attempt belongs to one application at a time, which is told what happens to it and says when
that is on record. Where the application goes, another one gets the attempt; where there is none,
the next that comes. Everything is in the journal before it is told.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

from anodejobs import faults
from anodejobs.errors import ExecutorError
from anodejobs.events import Adopted, Attempt, Lost, Started, StartFailed, StopRequested
from anodejobs.executors.base import Stream
from anodejobs.executors.processes import Processes
from anodejobs.executors.supervisors import is_elsewhere
from anodejobs.shim.clients import Client, LogReader
from anodejobs.shim.draining import draining, files_of, left_journals
from anodejobs.shim.journal import Entry, Journal, load
from anodejobs.shim.listener import Listener
from anodejobs.shim.lives import Life, as_recorded, begun_life, latest_attempt
from anodejobs.shim.orphans import OrphanReaper
from anodejobs.shim.protocol import (
    VERSION,
    Message,
    Told,
    event_to_json,
    event_to_text,
)
from anodejobs.shim.tombs import Tombs

LOG = logging.getLogger("anodejobs")

_MOST_STARTS = 32
"""How many processes may be on their way at once: so many are in doubt when the shim is killed."""
_SWEEP_EVERY_S = 5.0
_TELL_ALL_AFTER_S = 2.0
"""How long an application may take to record an end before the others hear of it."""
_FORGET_EVERY_S = 60.0
"""How long, at least, a token is known after it was done with."""
HOST_GRACE_S = 5.0
"""How long jobs that are not to outlive their application are left, for another one to come."""
_HEARING_S = 0.1
"""How long it takes at most to hear one that has come: we may have been stopped meanwhile."""


class Server:
    """Lives attempts for applications, until it has neither."""

    def __init__(self, folder: Path, processes: Processes, linger_s: float) -> None:
        self._folder = folder
        self._processes = processes
        self._linger_s = linger_s
        self._journal = Journal(folder / "journal", lambda: self._lives.values())
        self._lives: dict[str, Life] = {}
        self._clients: dict[Client, None] = {}
        self._orphans = OrphanReaper(lambda: processes.child_pids, lambda: set(self._spawning))
        self._spawning: set[str] = set()
        self._turn_to_start = asyncio.Semaphore(_MOST_STARTS)
        self._unrecorded: dict[str, float] = {}
        self._put_off: list[Life] = []
        """What is to be taken on, and could not be yet."""
        self._tombs = Tombs()
        self._to_flush: set[Client] = set()
        self._is_flush_due = False
        self._is_draining = False
        self._listener = Listener(lambda: Client(self))
        self._on_drain: Callable[[], None] = lambda: None
        self._is_left = asyncio.Event()
        self._leaving: asyncio.TimerHandle | None = None
        self._abandoning: asyncio.TimerHandle | None = None
        self._is_abandoned = False
        """Whether no application has come in time, and jobs that are not to run so are ended."""
        self._telling: asyncio.TimerHandle | None = None
        self._tasks = asyncio.TaskGroup()
        self._loop = asyncio.get_running_loop()

    # From beginning to end.

    async def serve(
        self, listener: socket.socket, entries: list[Entry], on_drain: Callable[[], None]
    ) -> None:
        """Take on what earlier shims have left, then serve who connects; return when done.

        ``on_drain`` is called when no more is to be started here.
        """
        self._on_drain = on_drain
        try:
            async with self._tasks:
                await self._recover(entries)
                await self._take_over()
                self._abandon_soon()  # who has had this one started may be gone before it is heard
                await self._listener.open(listener)
                self._tasks.create_task(self._keep_house())
                self._leave_soon()
                await self._is_left.wait()
                # A start that was cut short would be a process that asyncio kills.
                for _ in range(_MOST_STARTS):
                    await self._turn_to_start.acquire()
                raise _Left
        except* _Left:
            pass
        finally:
            self._listener.close()
            self._journal.close()

    def leave(self) -> None:
        """Leave as soon as possible; jobs run on, and wait for the next shim."""
        self._is_left.set()

    async def _take_over(self) -> None:
        """Take on what shims have left that died while they were draining."""
        journals = left_journals(self._folder)
        if journals:
            entries = [entry for journal in journals for entry in inherited(journal)]
            await self._recover([e for e in entries if not self._is_known(e.attempt.token)])
            for journal in journals:
                for file in files_of(journal):
                    file.unlink(missing_ok=True)

    async def _take_over_if_possible(self) -> None:
        """As ``_take_over``; what cannot be taken on now is later."""
        if not self._is_draining:
            try:
                await self._take_over()
            except Exception:
                LOG.exception("what other shims have left waits")

    def _is_known(self, token: str) -> bool:
        return token in self._lives or token in self._tombs

    async def _recover(self, entries: list[Entry]) -> None:
        lives = [
            Life(
                entry.number,
                entry.launch,
                latest_attempt(entry),
                entry.events,
                entry.line,
                has_begun=True,
            )
            for entry in entries
            if not (entry.events and isinstance(entry.events[-1], StartFailed))
        ]
        found = {life.attempt.token: life for life in lives}
        self._lives |= found
        try:
            self._journal.open()
        except OSError:  # the disk is full, say; whoever has left them keeps them until later
            for token in found:
                del self._lives[token]
            raise
        for life in lives:
            if life.has_ended:
                self._tasks.create_task(self._clean_up_after(life))
            elif life.events and self._put_off:
                self._put_off.append(life)
            elif life.events:
                await self._adopt(life)
        # Those whose start is in doubt are looked for, all with one look.
        doubtful = [life for life in lives if not life.events]
        await asyncio.gather(*map(self._adopt, doubtful))
        self._journal.flush()

    async def _adopt(self, life: Life) -> None:
        """Take on a process that another shim has started, or put that off."""
        try:
            event = await self._processes.adopt(life.launch, life.attempt)
        except ExecutorError as error:  # which says nothing of the process
            LOG.error("it is tried again: %s", error)
            self._put_off.append(life)
            return
        except Exception as error:
            LOG.exception("job %s could not be adopted", life.launch.job_id)
            event = Lost(error=f"the shim failed: {error!r}")
        if isinstance(event, Adopted):
            life.attempt = event.attempt
            self._happened(life, event)
            self._tasks.create_task(self._see_through(life))
        else:
            self._happened(life, event)
            self._tasks.create_task(self._clean_up_after(life))

    async def _adopt_those_put_off(self) -> None:
        """Take on what could not be before, as far as that is possible now."""
        put_off, self._put_off = self._put_off, []
        for tried, life in enumerate(put_off, start=1):
            await self._adopt(life)
            if self._put_off:  # the others before it, next time
                self._put_off[:0] = put_off[tried:]
                return

    async def _keep_house(self) -> None:
        """What is to be looked after now and then; the one place where time alone wakes us."""
        next_forgetting = self._loop.time() + _FORGET_EVERY_S
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            try:
                self._orphans.sweep()
            except OSError:  # there are no more descriptors, say
                LOG.exception("no look for orphans")
            await self._adopt_those_put_off()
            await self._take_over_if_possible()
            self._find_owners()
            if not self._is_draining:
                await self._listener.open_again()
            if self._loop.time() >= next_forgetting:
                next_forgetting = self._loop.time() + _FORGET_EVERY_S
                self._forget_tombs()

    def _forget_tombs(self) -> None:
        """Forget tokens that no application can ask for again.

        Each has answered since they were done with: whatever it had sent before has been read.
        """
        if any(client.knows_tombs < self._tombs.age for client in self._clients):
            return
        self._tombs.grow_older()
        for client in self._clients:
            client.send({"age": self._tombs.age})

    # What applications say.

    def hear(self, client: Client, message: Message) -> None:
        """Do what an application asks for; once we are leaving, the next shim will."""
        if self._is_left.is_set():
            client.hang_up()
            return
        _ACTIONS[message["do"]](self, client, message)

    def _hello(self, client: Client, message: Message) -> None:
        client.is_greeted = True
        client.knows_tombs = self._tombs.age
        self._clients[client] = None
        self._is_abandoned = False
        self._cancel_timers()
        self._tasks.create_task(self._greet(client, message["id"], set(message["mine"])))

    async def _greet(self, client: Client, number: int, mine: set[str]) -> None:
        await self._take_over_if_possible()
        client.send({"re": number, "version": VERSION, "pid": os.getpid()})
        if client not in self._clients:
            return  # it has gone meanwhile
        self._expect_records()
        for token, life in self._lives.items():
            if token in mine or life.owner is None:
                self._give(life, client)

    def _find_owners(self) -> None:
        """Give the application that came last what belongs to none."""
        heir = next(reversed(self._clients), None)
        if heir is not None:
            for life in self._lives.values():
                if life.owner is None:
                    self._give(life, heir)

    def _give(self, life: Life, client: Client) -> None:
        """Make the attempt the application's, and tell it all that it cannot know."""
        self._pass_on(life, client)
        life.is_inherited = not life.is_newsworthy
        if life.is_newsworthy and not life.is_acknowledged:
            if life.has_ended:
                life.events[-1] = as_recorded(life.events[-1])
            for event in life.events:
                client.send_line(life.news(event_to_text(event)))

    def _pass_on(self, life: Life, client: Client) -> None:
        if life.owner is not None:
            life.add(life.owner)
        life.remove(client)
        life.owner = client

    def _environment(self, client: Client, message: Message) -> None:
        client.env = message["vars"]

    def _held(self, client: Client, message: Message) -> None:
        client.send({"re": message["id"], "held": list(self._lives)})

    def _start(self, client: Client, message: Message) -> None:
        faults.reached("shim: a start was asked for")
        attempt = Attempt.from_json(message["begin"])
        token = attempt.token
        life = self._lives.get(token)
        if life is None:
            if token in self._tombs:
                self._answer(client, message, Lost(error="it has ended, and that is on record"))
                return
            if self._is_draining:
                client.send({"re": message["id"], "is_draining": True})
                return
            life = self._lives[token] = begun_life(client, message, attempt)
            self._tasks.create_task(self._live(life))
        elif client is not life.owner:
            life.add(client)
            for event in life.events[1:]:
                client.send_line(life.news(event_to_text(event)))
        life.askers.append((client, message["id"]))
        self._answer_askers(life)

    def _answer_askers(self, life: Life) -> None:
        """Tell who waits for it how the start went, once anything is known of it."""
        if not life.events or not life.askers:
            return
        outcome = life.events[0]
        if isinstance(outcome, Adopted):  # by a shim that was not there to see it started
            outcome = Started(at=outcome.at, attempt=outcome.attempt)
        text = event_to_text(outcome)
        for client, number in life.askers:
            client.send_line(f'{{"re":{number},"event":{text}}}')
        life.askers.clear()

    def _adopt_for(self, client: Client, message: Message) -> None:
        attempt = Attempt.from_json(message["begin"])
        token = attempt.token
        life = self._lives.get(token)
        if life is not None:
            self._pass_on(life, client)
            found = next((e for e in life.events if isinstance(e, Started)), None)
            known = Adopted(attempt=found.attempt if found else life.attempt)
            self._answer(client, message, known)
        elif token in self._tombs:
            self._answer(client, message, Lost(error="it has ended, and that is on record"))
        else:
            life = self._lives[token] = begun_life(client, message, attempt)
            self._reply(client, message, self._adopted(life))

    async def _adopted(self, life: Life) -> Message:
        token = life.attempt.token
        try:
            self._begin(life)
            event = await self._processes.adopt(life.launch, life.attempt)
        except BaseException:
            del self._lives[token]
            raise
        life.events.append(event)
        self._journal.note(token, event_to_text(event))
        self._answer_askers(life)
        if isinstance(event, Adopted):
            life.attempt = event.attempt
            self._tasks.create_task(self._see_through(life))
        else:
            self._tasks.create_task(self._clean_up_after(life))
        return {"event": event_to_json(event)}

    def _stop(self, client: Client, message: Message) -> None:
        async def stopped() -> Message:
            attempt = Attempt.from_json(message["attempt"])
            may_hasten = message["may_hasten"]
            is_gone = await self._processes.stop(attempt, message["grace"], may_hasten=may_hasten)
            return {"is_gone": is_gone}

        self._reply(client, message, stopped())

    def _signal(self, client: Client, message: Message) -> None:
        async def signalled() -> Message:
            await self._processes.signal(Attempt.from_json(message["attempt"]), message["signum"])
            return {}

        self._reply(client, message, signalled())

    def _acknowledge(self, client: Client, message: Message) -> None:
        faults.reached("shim: an end was acknowledged")
        life = self._lives.get(message["token"])
        if life is not None and life.has_ended:
            life.is_acknowledged = True
            self._unrecorded.pop(message["token"], None)
            self._forget_if_over(life)

    def _follow(self, client: Client, message: Message) -> None:
        number = message["sub"]
        reader, following = LogReader(message["offset"]), ExitStack()
        client.follows[number] = reader, following
        follow = self._processes.follow
        following.enter_context(
            follow(message["token"], message["stream"], reader, lambda: client.tell_grown(number))
        )
        client.tell_grown(number)

    def _read(self, client: Client, message: Message) -> None:
        if message["sub"] in client.follows:
            client.follows[message["sub"]][0].offset = message["offset"]

    def _unfollow(self, client: Client, message: Message) -> None:
        _, following = client.follows.pop(message["sub"], (None, None))
        if following is not None:
            following.close()

    def _report_growth(self, client: Client, message: Message) -> None:
        client.wants_growth = message["on"]
        self._choose_growth()

    def _choose_growth(self) -> None:
        is_wanted = any(client.wants_growth for client in self._clients)
        self._processes.report_growth(self._grown if is_wanted else None)

    def _grown(self, job_id: str, stream: Stream, offset: int) -> None:
        for client in self._clients:
            if client.wants_growth:
                client.tell_growth(job_id, stream, offset)

    def _aged(self, client: Client, message: Message) -> None:
        client.knows_tombs = message["age"]

    def _drain(self, client: Client, message: Message) -> None:
        """Start no more, and leave the place to another shim; what runs is seen through."""
        if not self._is_draining:
            # The journal first: with the lock out of the way the next shim may begin.
            put_by = draining(self._folder, "journal")
            os.rename(self._journal.path, put_by)
            self._journal.path = put_by
            self._is_draining = True
            self._on_drain()
            for other in self._clients:
                other.send({"draining": True})
        client.send({"re": message["id"]})
        self._leave_soon()

    # The life of an attempt.

    async def _live(self, life: Life) -> None:
        token = life.attempt.token
        async with self._turn_to_start:
            if self._is_left.is_set():
                return  # the next shim will be asked
            self._spawning.add(token)
            try:
                outcome = await self._spawn(life)
            except Exception as error:
                LOG.exception("job %s could not be started", life.launch.job_id)
                outcome = StartFailed(error=f"the shim failed: {error!r}")
            finally:
                self._spawning.discard(token)
        life.events.append(outcome)
        self._journal.note(token, event_to_text(outcome))
        self._answer_askers(life)
        if isinstance(outcome, Started):
            life.attempt = outcome.attempt
            await self._see_through(life)
        else:
            await self._clean_up_after(life)

    async def _spawn(self, life: Life) -> Started | StartFailed | Lost:
        def begin() -> None:
            self._begin(life)
            faults.reached("shim: a start was begun")

        start = self._processes.start
        outcome = await start(life.launch, life.attempt, life.number, about_to=begin)
        faults.reached("shim: a process was spawned")
        return outcome

    def _begin(self, life: Life) -> None:
        """Say in the journal that the attempt begins, in whichever thread it does."""
        try:
            self._journal.begin(life)
        except OSError as error:
            reason = f"the shim's journal cannot be written: {error.strerror}"
            raise OSError(error.errno, reason) from error

    async def _see_through(self, life: Life) -> None:
        async def tell(event: Told) -> None:
            self._happened(life, event)

        if self._is_abandoned:
            self._end_abandoned(life)
        try:
            end = await self._processes.wait(life.attempt.token, tell)
        except Exception as error:
            LOG.exception("job %s is no longer watched", life.launch.job_id)
            end = Lost(error=f"the shim failed: {error!r}")
        faults.reached("shim: an end was seen")
        self._happened(life, end)
        self._unrecorded[life.attempt.token] = self._loop.time()
        self._expect_records()
        await self._clean_up_after(life)

    async def _clean_up_after(self, life: Life) -> None:
        token = life.attempt.token
        try:
            if self._processes.holds(token):
                await self._processes.clean(token)
            elif not isinstance(life.events[-1], StartFailed):
                # Another shim saw it end, and was gone before it had looked for these.
                await self._processes.end_leftovers(life.launch, life.attempt)
        except Exception:
            LOG.exception("what job %s left behind was not ended", life.launch.job_id)
        life.is_clean = True
        self._forget_if_over(life)
        self._leave_soon()

    def _forget_if_over(self, life: Life) -> None:
        token = life.attempt.token
        if life.is_clean and life.is_acknowledged and self._lives.pop(token, None) is not None:
            self._tombs.add(token)
            self._journal.done(token)
            self._flush_when_idle()
            self._leave_soon()

    def _happened(self, life: Life, event: Told) -> None:
        text = event_to_text(event)
        self._journal.note(life.attempt.token, text)
        if life.owner is not None:
            if life.is_inherited:  # who was told of the start may have died with that unrecorded
                life.is_inherited = False
                for told in life.events:
                    life.owner.send_line(life.news(event_to_text(told)))
            news = life.news(text)
            for client in (life.owner, *life.others):
                client.send_line(news)
        else:
            self._flush_when_idle()
        life.events.append(event)
        self._answer_askers(life)

    def _expect_records(self) -> None:
        if self._unrecorded and self._clients and self._telling is None:
            self._telling = self._loop.call_later(_TELL_ALL_AFTER_S, self._tell_all)

    def _tell_all(self) -> None:
        """Tell everybody of ends that were not recorded in time: their application may hang."""
        self._telling = None
        now = self._loop.time()
        late = [t for t, since in self._unrecorded.items() if now - since >= _TELL_ALL_AFTER_S]
        for token in late:
            self._unrecorded[token] = now
            life = self._lives.get(token)
            if life is None:
                del self._unrecorded[token]
                continue
            for client in self._clients:
                # Who has not read what it was told is not told again: it may hang for days.
                if client is not life.owner and not client.is_full:
                    for event in life.events:
                        client.send_line(life.news(event_to_text(event)))
        self._expect_records()

    # Applications come and go.

    def lose(self, client: Client) -> None:
        """Hand what the application had to another one."""
        if self._clients.pop(client, 0) == 0:
            return
        self._to_flush.discard(client)
        heir = next(reversed(self._clients), None)
        failed: list[str] = []
        for token, life in self._lives.items():
            life.remove(client)
            if life.owner is client:
                life.owner = None
                if life.has_failed_to_start:
                    failed.append(token)
                elif heir is not None:
                    self._give(life, heir)
        for token in failed:  # if that is not on record, it is asked for again: nothing has run
            del self._lives[token]
            self._journal.done(token)
        for other in self._clients:
            other.send({"left": True})
        if client.wants_growth:
            self._choose_growth()
        if not self._clients:
            self._abandon_soon()
        self._leave_soon()

    def _abandon_soon(self) -> None:
        """End the jobs that are not to run without an application, unless one comes in time."""
        self._abandoning = self._loop.call_later(HOST_GRACE_S, self._abandon_if_unheard)

    def _abandon_if_unheard(self) -> None:
        self._abandoning = self._loop.call_later(_HEARING_S, self._abandon)

    def _abandon(self) -> None:
        self._is_abandoned = True
        for life in self._lives.values():
            # What is yet to be started, or taken on, is ended once it is there.
            if self._processes.holds(life.attempt.token) and not life.has_ended:
                self._end_abandoned(life)

    def _end_abandoned(self, life: Life) -> None:
        if life.launch.on_host_death == "stop":
            self._happened(life, StopRequested(reason="no application was left"))
            self._tasks.create_task(self._end(life))

    async def _end(self, life: Life) -> None:
        try:
            await self._processes.stop(life.attempt, life.launch.stop_grace)
        except Exception:
            LOG.exception("job %s was not ended", life.launch.job_id)

    def _cancel_timers(self) -> None:
        for timer in (self._leaving, self._abandoning):
            if timer is not None:
                timer.cancel()
        self._leaving = self._abandoning = None

    def _leave_soon(self) -> None:
        """Leave after a while if there is nobody to work for and nothing to look after."""
        if self._is_needed() or self._leaving is not None:
            return

        def leave() -> None:
            self._leaving = None
            if not self._is_needed():
                self._is_left.set()

        self._leaving = self._loop.call_later(self._linger_s, leave)

    def _is_needed(self) -> bool:
        if self._clients:
            return not self._is_draining or bool(self._lives)
        return any(not life.is_clean for life in self._lives.values())

    # Sending: what is told is in the journal before.

    def flush_soon(self, client: Client) -> None:
        """Flush the application's messages when this turn of the loop is over."""
        self._to_flush.add(client)
        self._flush_when_idle()

    def _flush_when_idle(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        self._journal.flush()
        faults.reached("shim: the journal was written")
        clients, self._to_flush = self._to_flush, set()
        for client in clients:
            client.flush()

    def _answer(self, client: Client, message: Message, event: Told) -> None:
        client.send_line(f'{{"re":{message["id"]},"event":{event_to_text(event)}}}')

    def _reply(self, client: Client, message: Message, work: Awaitable[Message]) -> None:
        async def replied() -> None:
            try:
                answer = await work
            except Exception as error:
                LOG.exception("%s failed", message["do"])
                answer = {"error": f"the shim failed: {error!r}"}
            client.send({"re": message["id"], **answer})

        self._tasks.create_task(replied())


_ACTIONS: dict[str, Callable[[Server, Client, Message], None]] = {
    "hello": Server._hello,
    "env": Server._environment,
    "held": Server._held,
    "start": Server._start,
    "adopt": Server._adopt_for,
    "stop": Server._stop,
    "signal": Server._signal,
    "ack": Server._acknowledge,
    "follow": Server._follow,
    "read": Server._read,
    "unfollow": Server._unfollow,
    "growth": Server._report_growth,
    "age": Server._aged,
    "drain": Server._drain,
}


class _Left(Exception):  # no error: how a task group is ended
    """Ends the tasks that never end by themselves."""


def inherited(journal: Path) -> list[Entry]:
    """Return the attempts in a journal, but for those of a folder that this one is a copy of."""
    entries = load(journal)
    # Of thousands the same: each is asked for once.
    supervisors = {entry.attempt.supervisor for entry in entries}
    others = {name for name in supervisors if is_elsewhere(name, journal.parent)}
    return [entry for entry in entries if entry.attempt.supervisor not in others]
