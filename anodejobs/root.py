"""Root: all that is open of a ``Jobs``, and the one task that owns it, from opening to closing.

It makes the parts that live on an event loop, runs them in one task group, and lets go of them in
order, however it ends. What callers ask of the parts is none of its business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from anodejobs.control import Control
from anodejobs.errands import Errands
from anodejobs.errors import AnodeJobsError, ExecutorError, StoreError, as_ours
from anodejobs.executors.base import Executor
from anodejobs.executors.inline import Inline
from anodejobs.executors.shim import Shim
from anodejobs.executors.supervisors import identity
from anodejobs.hosts import Hosts
from anodejobs.jobdb import JobDB
from anodejobs.links import Links
from anodejobs.owner import Owner
from anodejobs.planner import Planner
from anodejobs.progressfeed import ProgressFeed
from anodejobs.reconciler import Reconciler
from anodejobs.recorder import Recorder
from anodejobs.scheduler import Scheduler
from anodejobs.sequels import Recovery
from anodejobs.starter import Starter
from anodejobs.stock import Choice
from anodejobs.succession import Succession
from anodejobs.threads import in_thread
from anodejobs.watcher import Watcher

LOG = logging.getLogger("anodejobs")

_OPENING_S = 1.0
"""How long the store may still take to open once this is being closed."""
_RESIGNING_S = 3.0
"""How long the others may take to be told that we go."""
_ELSEWHERE = "this Jobs lives on another event loop: await it there, or make one for this loop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How jobs are to be run: arguments of ``Jobs`` that come into effect when it opens."""

    executor: Literal["shim", "inline"] | Executor
    max_concurrent_jobs: int | None
    queues: Mapping[str, int]
    aging_s: float | None
    choice: Choice
    recovery: Recovery
    recovery_timeout_s: float
    on_close: Literal["leave", "stop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What is there while it is open."""

    owner: Owner
    executor: Executor
    control: Control
    watcher: Watcher
    reconciler: Reconciler
    starter: Starter
    hosts: Hosts | None
    """None where no other host can have jobs on record."""
    scheduler: Scheduler
    progress: ProgressFeed


class Root:
    """Opens at the first ``open``, on the running event loop, once; ``close`` ends it for good.

    ``duties`` are done while it is open, in one process of the directory at a time.
    """

    def __init__(
        self,
        db_path: Path,
        terms: Terms,
        *,
        jobdb: JobDB,
        planner: Planner,
        links: Links,
        duties: Sequence[Callable[[], Coroutine[None, None, None]]],
    ) -> None:
        self._db_path = db_path
        self._terms = terms
        self._jobdb = jobdb
        self._planner = planner
        self._links = links
        self._duties = duties
        self._task: asyncio.Task[None] | None = None
        self._pid: int | None = None
        """The process that opened it."""
        self._loop: asyncio.AbstractEventLoop | None = None
        """Where all of it lives: what another one awaits here nobody would wake."""
        self._opened: asyncio.Future[Parts] | None = None
        self._parts: Parts | None = None
        self._closing = asyncio.Event()
        self._failure: BaseException | None = None

    @property
    def is_closing(self) -> bool:
        """Whether nothing more can be asked for."""
        return self._closing.is_set()

    @property
    def is_of_parent(self) -> bool:
        """Whether we are a fork of who opened it: we have the memory, and nothing that works."""
        return self._pid not in (None, os.getpid())

    @property
    def host(self) -> str | None:
        """The name of this host, None where no other one can have jobs on record."""
        return self._planner.place.host if self._jobdb.is_shared_by_hosts else None

    async def open(self) -> Parts:
        """Return what is open; the first call opens it. Cancelling gives up the answer only.

        Raises ExecutorError once it is closed or has failed, and what opening failed of.
        """
        if self.is_of_parent:
            raise ExecutorError("this Jobs was opened before a fork; make one in each process")
        if self._failure is not None:
            raise ExecutorError(f"this Jobs has failed: {self._failure!r}") from self._failure
        if self._closing.is_set():
            raise ExecutorError("this Jobs is closed; make another one")
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise ExecutorError(_ELSEWHERE)
        if self._parts is not None:
            return self._parts
        if self._task is None:
            self._pid = os.getpid()
            self._loop = loop
            self._opened = loop.create_future()
            self._task = asyncio.create_task(self._serve(self._opened), name="anodejobs")
        assert self._opened is not None
        return await asyncio.shield(self._opened)

    async def close(self) -> None:
        """Return once all is let go of. Idempotent; cancelling does not take it back."""
        task, loop = self._task, self._loop
        is_over = task is None or task.done() or self.is_of_parent
        if is_over or loop is None or loop.is_closed():  # closed under it: there is no waiting
            self._closing.set()
            return
        if loop is not asyncio.get_running_loop():
            raise ExecutorError(_ELSEWHERE)
        self._closing.set()
        assert task is not None
        await asyncio.wait((task,))

    async def _serve(self, opened: asyncio.Future[Parts]) -> None:
        """Be the one owner of all tasks, from opening to closing."""
        executor: Executor | None = None
        refusal: AnodeJobsError | None = None
        try:
            executor = self._executor()
            await self._prepare_directory()
            await self._open_store()
            await self._serve_tasks(executor, opened)
        except BaseException as error:
            cause = _root_cause(error)
            if not opened.done():
                other = ExecutorError(f"this Jobs could not be opened: {cause!r}")
                refusal = as_ours(cause, other)
            elif not isinstance(cause, asyncio.CancelledError):
                self._failure = cause
                LOG.critical("no job of %s is watched any more", self._db_path, exc_info=cause)
        finally:
            self._closing.set()
            if not self.is_of_parent:  # a fork that ends has nothing to end here: no job is its own
                try:
                    await self._let_go(executor)
                finally:
                    if refusal is not None:  # told last: the program may end right after
                        opened.set_exception(refusal)
                        opened.exception()  # looked at: who opened may have been cancelled

    async def _let_go(self, executor: Executor | None) -> None:
        self._jobdb.fail(self._failure or ExecutorError("this Jobs was closed"))
        if self._parts is not None:
            self._parts.progress.close()
        try:
            if executor is not None:
                await executor.close()
        finally:
            await self._jobdb.close()

    def _executor(self) -> Executor:
        match self._terms.executor:
            case "shim":
                return Shim(self._db_path / "shim")
            case "inline":
                return Inline(self._db_path / "shim")
            case executor:
                return executor

    async def _prepare_directory(self) -> None:
        def make() -> None:
            for folder in (self._db_path, self._planner.log_dir):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._planner.files.open()
            if self._jobdb.is_shared_by_hosts:
                # A name that two machines may have, or two directories of one, tells nobody apart.
                host = identity(self._db_path / "host", f"{socket.gethostname()}-")
                self._planner.place = replace(self._planner.place, host=host)

        try:
            await in_thread(make)
        except OSError as error:
            raise StoreError(f"cannot use {self._db_path}: {error}") from error

    async def _open_store(self) -> None:
        """Open the store, which may take for ever: once this is being closed it may not."""
        async with asyncio.TaskGroup() as tasks:
            opening = tasks.create_task(self._jobdb.open(), name="anodejobs opening")
            closing = tasks.create_task(self._closing.wait(), name="anodejobs closing")
            await asyncio.wait((opening, closing), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((opening,), timeout=_OPENING_S)
            opening.cancel()
            closing.cancel()
        if opening.cancelled():
            raise ExecutorError("this Jobs was closed meanwhile")

    async def _serve_tasks(self, executor: Executor, opened: asyncio.Future[Parts]) -> None:
        # asyncio's own group: anyio's costs a tenth of the application's time at full load.
        tasks = asyncio.TaskGroup()
        parts = self._made(executor, Owner(tasks))
        # Whose turn it was may have died, and nobody else have heard of its jobs; or have put on
        # record what it could not start itself.
        duties = [*self._duties, parts.reconciler.reconcile_soon]
        if (hosts := parts.hosts) is not None:
            duties += [hosts.serve_lease, hosts.serve_losses]
            duties += [hosts.serve_errands, hosts.serve_forgetting]
        try:
            async with tasks:
                tasks.create_task(self._jobdb.serve(), name="anodejobs commits")
                tasks.create_task(self._jobdb.serve_foreign(), name="anodejobs foreign commits")
                if hosts is not None:  # before anything is started that others are to miss
                    await hosts.keep_lease()
                await parts.reconciler.open()
                scheduling = parts.scheduler.serve(*duties)
                serving = tasks.create_task(scheduling, name="anodejobs scheduler")
                self._parts = parts
                opened.set_result(parts)
                await self._closing.wait()
                serving.cancel()  # what waits now waits for another application
                await asyncio.wait((serving,))
                await parts.starter.settle()
                await _resign(parts.scheduler)
                if self._terms.on_close == "stop" or not executor.outlives_host:
                    await parts.watcher.end_all("the application closed")
                raise _Closed
        except* _Closed:
            pass
        finally:
            parts.owner.refuse_all()
            await _resign(parts.scheduler)

    def _made(self, executor: Executor, owner: Owner) -> Parts:
        """Make the parts, of which each knows those before it."""
        jobdb, place = self._jobdb, self._planner.place
        errands = Errands(jobdb, place.host) if jobdb.is_shared_by_hosts else None
        recorder = Recorder(jobdb, self._planner.files, self._terms.recovery)
        control = Control(jobdb, executor, recorder, errands=errands, host=self.host)
        watcher = Watcher(jobdb, executor, owner, recorder=recorder, control=control)
        reconciler = Reconciler(
            jobdb,
            executor,
            owner,
            recorder=recorder,
            control=control,
            watcher=watcher,
            host=self.host,
        )
        starter = Starter(
            jobdb,
            executor,
            owner,
            watcher=watcher,
            reconciler=reconciler,
            links=self._links,
            place=place,
        )
        hosts = None
        if errands is not None:
            hosts = Hosts(
                jobdb,
                owner,
                recorder=recorder,
                control=control,
                errands=errands,
                host=place.host,
                lasts_s=self._terms.recovery_timeout_s,
            )
        return Parts(
            owner=owner,
            executor=executor,
            control=control,
            watcher=watcher,
            reconciler=reconciler,
            starter=starter,
            hosts=hosts,
            scheduler=self._scheduler(starter),
            progress=ProgressFeed(jobdb, self._planner.files.progress_folder, owner.own),
        )

    def _scheduler(self, starter: Starter) -> Scheduler:
        lock = self._jobdb.lock_path
        if lock is None and self._jobdb.is_shared_by_hosts:
            # One of those that use the directory; each machine has one of its own that acts, and
            # the store lets the first one have a job.
            lock = self._db_path / "scheduler"
        scheduler = Scheduler(
            self._jobdb,
            starter,
            None if lock is None else Succession(lock),
            max_concurrent_jobs=self._terms.max_concurrent_jobs,
            queues=self._terms.queues,
            aging_s=self._terms.aging_s,
            choice=self._terms.choice,
            host=self.host,
        )
        self._jobdb.on_foreign.append(scheduler.attend)
        return scheduler


def _root_cause(error: BaseException) -> BaseException:
    """Return the first error in a group: what the others came from."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Closed(Exception):  # no error: how a task group is ended
    """Ends the tasks that never end by themselves."""


async def _resign(scheduler: Scheduler) -> None:
    with contextlib.suppress(StoreError, TimeoutError):  # who comes next looks by itself
        async with asyncio.timeout(_RESIGNING_S):
            await scheduler.resign()
