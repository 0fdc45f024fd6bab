"""Jobs, what applications hold: it checks what is asked for, and asks the parts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import uuid
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

import anyio
from pydantic import JsonValue

from anodejobs.arguments import (
    AnyFilter,
    AnyStatus,
    IfExists,
    check_choice,
    check_count,
    check_limits,
    check_timeout,
    check_whole,
    checked_days,
    checked_filter,
    checked_folder,
    checked_names,
    checked_offsets,
    checked_recovery_timeout,
    of_each,
    replacement,
    signal_number,
    statuses,
    time_limit,
    unique_ids,
)
from anodejobs.callbacks import OnStatus, serve_callback
from anodejobs.catalogue import Catalogue
from anodejobs.control import Control
from anodejobs.dependencies import resolve_batch
from anodejobs.errors import InvalidJob, JobActive, JobNotFound, StatusUnreachable
from anodejobs.events import Event, Submitted
from anodejobs.executors.base import STREAMS, Executor, Stream
from anodejobs.fields import check_name, check_seconds, check_text
from anodejobs.follower import Follower, unreadable
from anodejobs.jobdb import JobDB
from anodejobs.jobqueue import AGING_S, DEFAULT_QUEUE
from anodejobs.links import Links
from anodejobs.logs import LogChunk, read_text
from anodejobs.owner import do_for_each
from anodejobs.planner import Plan, Planner, spec_of
from anodejobs.progress import last_progress
from anodejobs.records import (
    ALIVE,
    WAITING,
    AttemptRecord,
    BatchProgress,
    FilterOptions,
    JobEvent,
    JobFilter,
    JobOptions,
    JobRecord,
    JobRecordDict,
    JobSpec,
    Metrics,
    Scheduled,
    Status,
    Usage,
)
from anodejobs.removal import Removal
from anodejobs.retention import Retention
from anodejobs.root import Parts, Root, Terms
from anodejobs.scheduler import PAUSED
from anodejobs.schedules import Schedule, ScheduleOptions
from anodejobs.sequels import Recovery, attempts_of, begun_attempt
from anodejobs.starter import Overtaken, Starter
from anodejobs.stock import Choice
from anodejobs.stores import from_url, sqlite_store
from anodejobs.stores.base import Durability, JobStore, Query, SortKey, Stored, check_durability
from anodejobs.templates import Template, render
from anodejobs.threads import in_thread, made_of_each
from anodejobs.timetable import Timetable
from anodejobs.transitions import Opening

if TYPE_CHECKING:
    from anodejobs.settings import JobsSettings


class Jobs:
    """External commands as supervised jobs, recorded in ``db_path``.

    It opens itself at first use, on the running event loop, and lives there until it is closed by
    ``async with`` or ``close()``; any other loop is refused. Opening takes care of what an earlier
    ``Jobs`` left in the directory: jobs that still run are adopted, those that are gone become
    ``lost``.

    ``store`` is a JobStore or a URL (``memory://``, ``sqlite:///path``, ``file:///path``,
    ``postgresql://…``, ``mysql://…``); by default SQLite in ``<db_path>/jobs.db``. ``executor`` is
    ``"shim"``: the processes are children of a small process that outlives the application; or
    ``"inline"``: they are children of the application and end with it; or an Executor.

    At most ``max_concurrent_jobs`` submitted jobs run at once (None: any number), and from each
    queue in ``queues`` at most as many as it says. ``aging`` is how many seconds of waiting are
    worth one step of priority (None: priorities are strict). With ``only_queues`` it starts only
    jobs in one of these queues, with ``only_tags`` only jobs with one of these tags; all others
    wait for another ``Jobs``. Where several processes use the directory, the settings of the one
    that came first apply, until it goes.

    ``recovery`` says what becomes of a job that was interrupted, by a reboot for example, so that
    nobody knows how it ended: it is ``"lost"``, or it has failed (``"fail"``), or it takes its turn
    once more (``"pending"``), unless its own retry policy starts it again anyway. Each interruption
    is noted in ``metadata["recovery_history"]``, which begins empty when the job is run anew. Jobs
    that ended ``retention_days`` ago are removed. ``recovery_timeout`` is for machines that share a
    store, each a host: when one has not been heard of for that many seconds, the others declare the
    jobs that it had running lost, and these go on as ``recovery`` and their retry policies say.
    Should the host come back, it ends their processes. With other stores it has no effect.

    ``stop_grace`` is the number of seconds from SIGTERM to SIGKILL, for jobs that have none of
    their own. ``on_close="stop"`` stops the jobs that this ``Jobs`` started; inline jobs are
    stopped in any case, since nobody would be left to read their output. A log file that has
    reached ``log_max_bytes`` is set aside, and ``log_backups`` such files are kept.
    ``durability="power"`` makes SQLite sync every commit to the disk, as a store of files does
    anyway; it is refused with any other store, and with a JobStore, which is told when it is made.

    Every method but ``close`` raises StoreError where the store fails, and ExecutorError once this
    is closed. A caller who is cancelled gives up the answer; what was asked for goes on.
    """

    def __init__(
        self,
        db_path: str | os.PathLike[str],
        *,
        store: JobStore | str | None = None,
        executor: Literal["shim", "inline"] | Executor = "shim",
        max_concurrent_jobs: int | None = 10,
        queues: Mapping[str, int] | None = None,
        aging: float | None = AGING_S,
        only_queues: Iterable[str] | None = None,
        only_tags: Iterable[str] | None = None,
        recovery: Recovery = "lost",
        recovery_timeout: float = 60.0,
        retention_days: float | None = None,
        stop_grace: float = 10.0,
        on_close: Literal["leave", "stop"] = "leave",
        log_max_bytes: int | None = None,
        log_backups: int = 1,
        durability: Durability = "process",
    ) -> None:
        if executor not in ("shim", "inline") and not isinstance(executor, Executor):
            raise InvalidJob("executor", "must be 'shim', 'inline' or an Executor")
        check_choice("on_close", on_close, "leave", "stop")
        check_choice("recovery", recovery, "lost", "fail", "pending")
        check_count("log_max_bytes", log_max_bytes, least=1)
        check_whole("log_backups", log_backups, least=0)
        check_limits(max_concurrent_jobs, queues, aging)
        self.db_path = checked_folder("db_path", db_path)
        stop_grace = check_seconds("stop_grace", stop_grace)
        terms = Terms(
            executor=executor,
            max_concurrent_jobs=max_concurrent_jobs,
            queues=dict(queues or {}),
            aging_s=aging,
            choice=Choice(
                queues=checked_names("only_queues", only_queues, check_name),
                tags=checked_names("only_tags", only_tags, check_text),
            ),
            recovery=recovery,
            recovery_timeout_s=checked_recovery_timeout(recovery_timeout),
            on_close=on_close,
        )
        self._retention_days = checked_days("retention_days", retention_days)
        self._jobdb = JobDB(_store_for(self.db_path, store, durability))
        self._planner = Planner(
            self.db_path,
            stop_grace=stop_grace,
            log_max_bytes=log_max_bytes,
            log_backups=log_backups,
            is_shared=self._jobdb.is_shared_by_hosts,
        )
        self._links = Links(self._jobdb)
        self._timetable = Timetable(self._jobdb, self._planner)
        self._jobdb.on_foreign.append(self._timetable.attend)
        self._catalogue = Catalogue(self._jobdb)
        self._removal = Removal(self._jobdb, self._links)
        self._retention = Retention(self._jobdb, self._delete_old)
        self._root = Root(
            self.db_path,
            terms,
            jobdb=self._jobdb,
            planner=self._planner,
            links=self._links,
            duties=(self._timetable.serve, self._retain),
        )

    @classmethod
    def from_settings(cls, settings: JobsSettings | None = None, **options: Any) -> Self:
        """Return a Jobs as the settings say: by default those of the environment and ``.env``.

        ``options`` are arguments of ``Jobs``, and take precedence over the settings.

        Raises an InvalidJob that names the variable, StoreError where there can be no such store,
        and ImportError without ``pip install 'anodejobs[settings]'``.
        """
        from anodejobs.settings import JobsSettings

        said = JobsSettings() if settings is None else settings
        options = {
            "db_path": said.db_path,
            "max_concurrent_jobs": said.max_concurrent_jobs,
            "queues": said.queues,
            "only_queues": said.only_queues,
            "only_tags": said.only_tags,
            "recovery_timeout": said.recovery_timeout,
            "retention_days": said.retention_days,
            **options,
        }
        if options.get("store") is None:
            said = said.model_copy(
                update={"db_path": checked_folder("db_path", options["db_path"])}
            )
            if "durability" in options:
                check_durability(options["durability"])
                said = said.model_copy(update={"durability": options.pop("durability")})
            options["store"] = said.make_store()
        return cls(**options)

    # Opening and closing.

    async def __aenter__(self) -> Self:
        try:
            await self._root.open()
        except asyncio.CancelledError:
            await self._leave()  # nobody else will: there is no exit of what was not entered
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._root.is_of_parent:  # in a fork there is not even an event loop
            await self._leave()

    async def _leave(self) -> None:
        # A scope of anyio that is cancelled would cut short every wait in it, this one too.
        with anyio.CancelScope(shield=True):
            await self.close()

    async def close(self) -> None:
        """Let go of everything, and leave or stop the jobs, as ``on_close`` says. Idempotent.

        It always returns: processes that do not die of SIGKILL are not waited for. Cancelling
        does not take it back.
        """
        await self._root.close()

    async def _open_for(self, job_id: str) -> Parts:
        """Open, for a call about one job. Raises InvalidJob where ``job_id`` cannot be one."""
        check_text("job_id", job_id)
        return await self._root.open()

    # Running.

    async def run(
        self,
        command: str | list[str] | None = None,
        job_id: str | None = None,
        *,
        if_exists: IfExists = "rerun",
        fresh_for: float | None = None,
        **spec: Unpack[JobOptions],
    ) -> JobRecord:
        """Start a job now, and return its record once the program is exec'd.

        A string goes to ``/bin/sh -c``, a list is executed directly. In place of a command,
        ``call`` names a Python function, ``"package.module:function"``, which is called in a
        process of its own and whose value is the result. It is called with the ``payload``: an
        object gives keyword arguments, an array positional ones, any other value the only one. What
        it raises is in the job's stderr. ``spec``: see ``JobOptions``.

        A program that cannot be exec'd gives a record in ``failed_start`` with ``error``. Where
        ``job_id`` names a job that has ended, it is run anew and its logs are replaced; with
        ``if_exists="skip"`` the old record is returned instead (``fresh_for``: only if it finished,
        with exit code 0, at most that many seconds ago), with ``"error"`` InvalidJob is raised.

        Raises InvalidJob, and JobActive where ``job_id`` names a job that has not ended; nothing is
        stored or started then. Cancelling gives up the answer, not the job.
        """
        may_replace = replacement(if_exists, fresh_for)
        checked = spec_of({"command": command, "job_id": job_id, **spec})
        plan = self._planner.plan(checked, "start")
        starter = (await self._root.open()).starter
        return (await starter.start(plan, may_replace)).detached()

    # Taking turns.

    async def create(
        self,
        command: str | list[str] | None = None,
        job_id: str | None = None,
        *,
        if_exists: IfExists = "rerun",
        fresh_for: float | None = None,
        **spec: Unpack[JobOptions],
    ) -> JobRecord:
        """Record a job, and return it in ``pending``: it waits for ``start``.

        The arguments are those of ``run``. Raises InvalidJob, also where ``depends_on`` names a job
        that does not exist, JobActive, DependencyCycle.
        """
        may_replace = replacement(if_exists, fresh_for)
        return await self._enlist(command, job_id, spec, "create", may_replace)

    async def submit(
        self,
        command: str | list[str] | None = None,
        job_id: str | None = None,
        *,
        if_exists: IfExists = "rerun",
        fresh_for: float | None = None,
        **spec: Unpack[JobOptions],
    ) -> JobRecord:
        """Record a job that takes its turn, and return it.

        It is ``queued`` until there is a slot for it, and before that ``pending`` while it waits
        for ``run_at``, or for the jobs that it ``depends_on``. Otherwise as ``create``.
        """
        may_replace = replacement(if_exists, fresh_for)
        return await self._enlist(command, job_id, spec, "submit", may_replace)

    async def _enlist(
        self,
        command: str | list[str] | None,
        job_id: str | None,
        spec: JobOptions,
        opening: Opening,
        may_replace: Callable[[JobRecord], bool],
    ) -> JobRecord:
        checked = spec_of({"command": command, "job_id": job_id, **spec})
        plan = self._planner.plan(checked, opening)
        parts = await self._root.open()

        async def enlist() -> JobRecord:
            await self._links.check(plan.record.self_id, plan.record.depends_on)
            return await parts.starter.enlist(plan, may_replace)

        return (await parts.owner.owned(enlist)).detached()

    async def start(self, job_id: str) -> JobRecord:
        """Let a job take its turn: one that was created and is ``pending``, or one that has ended.

        One that has ended is run anew, as it was. One that was submitted already is returned as it
        is. Raises JobNotFound, and JobActive where it has started. Of one that has ended, also
        InvalidJob where a job that it depends on no longer exists, and DependencyCycle where that
        one waits for it.
        """
        parts = await self._open_for(job_id)
        return (await parts.owner.owned(self._start, parts.starter, job_id)).detached()

    async def _start(self, starter: Starter, job_id: str) -> JobRecord:
        def submitted(record: JobRecord) -> Event | None:
            if record.status in ALIVE:
                raise JobActive(job_id, record.status)
            if record.is_done or record.submitted_at is not None:
                return None
            return Submitted(is_ready=not record.depends_on and record.due_at is None)

        while True:
            stored = await self._jobdb.stored(job_id)
            if stored.record.is_done:
                plan = Plan.again(stored, "submit")
                await self._links.check(job_id, plan.record.depends_on)
                with contextlib.suppress(Overtaken):
                    return await starter.enlist(plan, lambda old: True)
            elif not (record := await self._jobdb.apply(job_id, submitted)).is_done:
                return record

    async def cancel(self, job_id: str) -> JobRecord | None:
        """Withdraw a job that has not started: it is ``cancelled``. Otherwise as ``stop``.

        None for an unknown id.
        """
        return await self.stop(job_id)

    async def pause_queue(self, queue: str = DEFAULT_QUEUE) -> None:
        """Start nothing more from a queue until it is resumed; what runs goes on."""
        await self._keep_paused(queue, is_paused=True)

    async def resume_queue(self, queue: str = DEFAULT_QUEUE) -> None:
        """Start jobs from the queue again."""
        await self._keep_paused(queue, is_paused=False)

    async def _keep_paused(self, queue: str, *, is_paused: bool) -> None:
        check_name("queue", queue)
        body = json.dumps(queue) if is_paused else None
        owner = (await self._root.open()).owner
        await owner.owned(self._jobdb.put_document, PAUSED, queue, body)

    async def paused_queues(self) -> list[str]:
        """Return the queues that are paused."""
        await self._root.open()
        return list(await self._jobdb.documents(PAUSED))

    # Dependencies.

    async def add_dependency(self, job_id: str, depends_on: str) -> JobRecord:
        """Let a job that has not started wait for one more; return it.

        One that is queued then waits for that one alone: what it waited for before is over. Raises
        JobNotFound, InvalidTransition where it has started, InvalidJob where there is no job
        ``depends_on``, DependencyCycle.
        """
        check_text("depends_on", depends_on)
        owner = (await self._open_for(job_id)).owner
        relink = self._links.add
        return (await owner.owned(self._relinked, job_id, relink, depends_on)).detached()

    async def remove_dependency(self, job_id: str, depends_on: str) -> JobRecord:
        """Let a job that has not started no longer wait for ``depends_on``; return it.

        Nothing changes where it did not wait for that, as a queued job no longer waits for any.
        Raises JobNotFound, and InvalidTransition where it has started.
        """
        check_text("depends_on", depends_on)
        owner = (await self._open_for(job_id)).owner
        relink = self._links.remove
        return (await owner.owned(self._relinked, job_id, relink, depends_on)).detached()

    async def _relinked(
        self,
        job_id: str,
        relink: Callable[[str, str], Coroutine[None, None, JobRecord]],
        depends_on: str,
    ) -> JobRecord:
        await self._jobdb.stored(job_id)  # which there has to be before all else
        return await relink(job_id, depends_on)

    async def get_dependencies(self, job_id: str) -> list[str]:
        """Return the ids of the jobs that this one depends on. Raises JobNotFound."""
        return list((await self._known(job_id)).depends_on)

    async def get_dependents(self, job_id: str) -> list[str]:
        """Return the ids of the jobs that depend on this one. Raises JobNotFound."""
        await self._known(job_id)
        return await self._jobdb.dependents(job_id)

    async def _known(self, job_id: str) -> JobRecord:
        await self._open_for(job_id)
        return (await self._jobdb.stored(job_id)).record

    # Batches.

    async def create_batch(
        self, specs: Iterable[Mapping[str, Any]], auto_start: bool = False
    ) -> tuple[str, JobRecordDict]:
        """Record several jobs, all or none; return the id of the batch, and the jobs in order.

        Each spec has the arguments of ``create`` by name, except ``if_exists``: all of them are new
        jobs. ``depends_on`` may also name jobs of the batch by their index. With ``auto_start``
        they are submitted.

        Raises InvalidJob, which says which spec has the wrong field, also where one of the ids is
        taken, and DependencyCycle.
        """
        if not isinstance(specs, Iterable):
            raise InvalidJob("specs", "must be several specs, as in a list")
        checked = await of_each("specs", spec_of, specs)
        if not checked:
            raise InvalidJob("specs", "names no job")
        ids = [spec.job_id or str(uuid.uuid4()) for spec in checked]
        links = resolve_batch(ids, [spec.depends_on for spec in checked])
        batch_id = str(uuid.uuid4())
        opening: Opening = "submit" if auto_start else "create"

        def plan(linked: tuple[JobSpec, str, tuple[str, ...]]) -> Plan:
            spec, job_id, depends_on = linked
            spec = spec.model_copy(update={"job_id": job_id, "depends_on": list(depends_on)})
            return self._planner.plan(spec, opening, batch_id=batch_id)

        plans = await of_each("specs", plan, zip(checked, ids, links, strict=True))
        parts = await self._root.open()

        async def enlist() -> None:
            await self._links.check("", dict.fromkeys(chain.from_iterable(links)), known=set(ids))
            await parts.starter.enlist_all(plans)

        await parts.owner.owned(enlist)
        records = await made_of_each(lambda plan: plan.record.detached(), plans)
        return batch_id, JobRecordDict((record.self_id, record) for record in records)

    async def get_batch(self, batch_id: str) -> JobRecordDict:
        """Return the jobs of a batch as they are now, in order. Raises JobNotFound."""
        check_text("batch_id", batch_id)
        records = await self.list_status({"batch_id": batch_id})
        if not records:
            raise JobNotFound(batch_id, "batch")
        return records

    async def wait_batch(self, batch_id: str, timeout: float | None = None) -> JobRecordDict:
        """Return the jobs of a batch once all have ended, as ``wait_all`` does."""
        return await self.wait_all(await self.get_batch(batch_id), timeout)

    async def cancel_batch(self, batch_id: str) -> JobRecordDict:
        """Cancel every job of a batch that has not ended, and return them all, once they have.

        Raises JobNotFound.
        """
        check_text("batch_id", batch_id)
        parts = await self._root.open()
        return await parts.owner.owned(self._cancel_batch, parts.control, batch_id)

    async def _cancel_batch(self, control: Control, batch_id: str) -> JobRecordDict:
        left = [r for r in (await self.get_batch(batch_id)).values() if not r.is_done]
        # Those that wait first: the end of one that runs is not to start them.
        others = await control.withdraw([r.self_id for r in left if r.status in WAITING])
        running = (r.self_id for r in left if r.status not in WAITING)
        await do_for_each(self.cancel, chain(others, running))
        return await self.get_batch(batch_id)

    async def batch_progress(self, batch_id: str) -> BatchProgress:
        """Return how far a batch is. Raises JobNotFound."""
        check_text("batch_id", batch_id)
        counts = await self.counts({"batch_id": batch_id})
        total = sum(counts.values())
        if not total:
            raise JobNotFound(batch_id, "batch")
        ended = sum(n for status, n in counts.items() if status.is_terminal)
        return BatchProgress(total=total, ended=ended, counts=counts)

    # Schedules.

    async def schedule(
        self,
        spec: str | list[str] | Mapping[str, Any],
        name: str | None = None,
        *,
        cron: str | None = None,
        every: float | timedelta | None = None,
        at: datetime | str | None = None,
        **schedule: Unpack[ScheduleOptions],
    ) -> Scheduled:
        """Have a job submitted again and again, by ``cron`` or ``every`` so many seconds, or once.

        ``at`` is the one moment: a datetime, or a string in ISO 8601. ``spec`` is a command, or the
        arguments of ``submit`` by name, except ``if_exists``. ``name`` is that of the schedule (by
        default the spec's ``job_id``, or a random one). An earlier schedule of that name is
        replaced; one that says the same goes on, so an application may call this at every start. A
        job's id is the name, ``@`` and the moment. ``schedule`` takes the other fields of
        ``Schedule``: ``tz``, ``misfire``, ``grace``, ``overlap``, ``start``, ``end``. With
        ``every``, the first job comes at ``start``, or at once. The environment is the
        application's present one. Raises InvalidJob, also where it would never fire.
        """
        checked = spec_of(spec if isinstance(spec, Mapping) else {"command": spec})
        given = {"cron": cron, "every": every, "at": at, **schedule}
        when = Schedule({field: value for field, value in given.items() if value is not None})
        if name is None:
            name = checked.job_id or str(uuid.uuid4())
        owner = (await self._root.open()).owner

        async def add() -> Scheduled:
            await self._links.check("", [d for d in checked.depends_on if isinstance(d, str)])
            return await self._timetable.add(name, checked, when)

        return await owner.owned(add)

    async def unschedule(self, name: str) -> bool:
        """Forget a schedule; return whether there was one. The jobs that it made go on."""
        check_text("name", name)
        owner = (await self._root.open()).owner
        return await owner.owned(self._timetable.remove, name)

    async def schedules(self) -> dict[str, Scheduled]:
        """Return the schedules by name."""
        await self._root.open()
        return await self._timetable.all()

    # Templates.

    async def add_template(self, template: Template | Mapping[str, Any]) -> Template:
        """Keep a template, in place of one of that name. Raises InvalidJob."""
        if not isinstance(template, (Template, Mapping)):
            raise InvalidJob("template", "must be a Template, or a mapping of its fields")
        checked = template if isinstance(template, Template) else Template(template)
        self._planner.plan(checked, "submit")  # which says what is wrong with it as a job
        owner = (await self._root.open()).owner
        await owner.owned(self._catalogue.add, checked)
        return checked

    async def remove_template(self, name: str) -> bool:
        """Forget a template; return whether there was one."""
        check_text("name", name)
        owner = (await self._root.open()).owner
        return await owner.owned(self._catalogue.remove, name)

    async def templates(self) -> dict[str, Template]:
        """Return the templates by name."""
        await self._root.open()
        return await self._catalogue.all()

    async def run_template(self, name: str, /, **params: object) -> JobRecord:
        """Run the job that a template makes with these values, as ``run`` does.

        Raises JobNotFound where there is no such template, and an InvalidJob that names a parameter
        which is unknown, missing, or has a value that it does not take.
        """
        return await self._of_template(self.run, name, params)

    async def submit_template(self, name: str, /, **params: object) -> JobRecord:
        """As ``run_template``, but the job takes its turn."""
        return await self._of_template(self.submit, name, params)

    async def _of_template(
        self,
        take: Callable[..., Coroutine[None, None, JobRecord]],
        name: str,
        params: Mapping[str, object],
    ) -> JobRecord:
        check_text("name", name)
        owner = (await self._root.open()).owner

        async def taken() -> JobRecord:
            return await take(**render(await self._catalogue.get(name), params))

        return await owner.owned(taken)

    # Waiting.

    async def wait(
        self,
        job_id: str,
        status: AnyStatus | Iterable[AnyStatus] | None = None,
        timeout: float | None = None,
    ) -> JobRecord:
        """Return the job's record once it has ended, or its attempt has reached a status.

        ``status`` is one, or several of which any will do; one that the attempt has already passed
        counts. When this returns at the job's end, that is on disk and the logs are complete.

        Raises JobNotFound, also where the job is deleted before its end was heard of, WaitTimeout
        after ``timeout`` seconds, and StatusUnreachable when the job ends without the status.
        With a ``timeout`` of 0 it says how things are. Cancelling costs nothing.
        """
        wanted = statuses(status)
        check_timeout(timeout)
        await self._open_for(job_id)
        with self._jobdb.waits.wait(job_id, wanted) as waiter:
            await self._jobdb.look(waiter)  # whatever it takes: it is no wait for the job
            if timeout is None:
                return (await waiter.future).detached()
            async with time_limit(f"job {job_id!r}", timeout):
                return (await waiter.future).detached()

    async def wait_all(
        self, jobs: Iterable[str] | AnyFilter, timeout: float | None = None
    ) -> JobRecordDict:
        """Return the records of all the jobs, in the order given, once all have ended.

        ``jobs`` are ids, or a filter over the jobs there are now. Raises JobNotFound for an unknown
        id, WaitTimeout after ``timeout`` seconds.
        """
        check_timeout(timeout)
        await self._root.open()
        if isinstance(jobs, JobFilter) or (
            isinstance(jobs, Mapping) and not isinstance(jobs, JobRecordDict)
        ):
            jobs = await self.list_status(jobs)
        job_ids = unique_ids("jobs", jobs)
        what = "1 job" if len(job_ids) == 1 else f"{len(job_ids)} jobs"
        async with self._ends_of(job_ids) as ends, time_limit(what, timeout):
            records = [(await ends.get()).result() for _ in job_ids]
        records = await made_of_each(JobRecord.detached, records)
        ended = {record.self_id: record for record in records}
        return JobRecordDict((job_id, ended[job_id]) for job_id in job_ids)

    async def as_completed(self, job_ids: Iterable[str]) -> AsyncGenerator[JobRecord, None]:
        """Give the record of each job as it ends. Raises JobNotFound for an unknown id."""
        await self._root.open()
        listed = unique_ids("job_ids", job_ids)
        async with self._ends_of(listed) as ends:
            for _ in listed:
                yield (await ends.get()).result().detached()

    @asynccontextmanager
    async def _ends_of(
        self, job_ids: list[str]
    ) -> AsyncIterator[asyncio.Queue[asyncio.Future[JobRecord]]]:
        """Give a queue into which the end of each job comes; first those that have ended."""
        ends: asyncio.Queue[asyncio.Future[JobRecord]] = asyncio.Queue()
        with self._jobdb.waits.wait_for_each(job_ids) as waiters:
            await self._jobdb.look_for_each(waiters)
            for waiter in waiters:
                if waiter.future.done():
                    ends.put_nowait(waiter.future)
                else:
                    waiter.future.add_done_callback(ends.put_nowait)
            yield ends

    # Control.

    async def stop(self, job_id: str, grace: float | None = None) -> JobRecord | None:
        """End the job, and return its record when none of its processes is left.

        They get SIGTERM, and SIGKILL after ``grace`` seconds (by default the job's
        ``stop_grace``). A job that has ended is returned as it is; one that survives SIGKILL is
        returned in ``failed_stop``. None for an unknown id.
        """
        if grace is not None:
            check_seconds("grace", grace)
        parts = await self._open_for(job_id)
        try:
            return (await parts.owner.owned(parts.control.stop, job_id, grace, None)).detached()
        except JobNotFound:
            return None

    async def pause(self, job_id: str) -> JobRecord:
        """Stop all processes of the job with SIGSTOP; its ``timeout`` runs on.

        A job that is paused already stays so. Raises JobNotFound, InvalidTransition where it is
        neither running nor paused.
        """
        parts = await self._open_for(job_id)
        return (await parts.owner.owned(parts.control.pause, job_id)).detached()

    async def resume(self, job_id: str) -> JobRecord:
        """Let a paused job go on; one that runs goes on.

        Raises JobNotFound, InvalidTransition where it is neither paused nor running.
        """
        parts = await self._open_for(job_id)
        return (await parts.owner.owned(parts.control.resume, job_id)).detached()

    async def signal(self, job_id: str, sig: int | str) -> JobRecord:
        """Send a signal (``signal.SIGHUP``, ``"SIGHUP"``, 1) to all processes of the job.

        Raises JobNotFound, InvalidJob for an unknown signal, InvalidTransition where the job has
        no processes.
        """
        signum = signal_number(sig)
        parts = await self._open_for(job_id)
        return (await parts.owner.owned(parts.control.signal, job_id, signum)).detached()

    async def restart(self, job_id: str, grace: float | None = None) -> JobRecord:
        """Stop the job if it is active, and run it anew as it was; return it as ``run`` does.

        Raises JobNotFound, and JobActive where somebody else was quicker or it cannot be stopped.
        """
        if grace is not None:
            check_seconds("grace", grace)
        owner = (await self._open_for(job_id)).owner
        return await owner.owned(self._restart, job_id, grace)

    async def _restart(self, job_id: str, grace: float | None) -> JobRecord:
        await self.stop(job_id, grace)
        while True:
            plan = Plan.again(await self._jobdb.stored(job_id), "start")
            starter = (await self._root.open()).starter  # refused where it has begun to close
            with contextlib.suppress(Overtaken):
                return (await starter.start(plan, lambda old: True)).detached()

    async def delete(self, job_id: str) -> bool:
        """Remove the job's record, history and logs; return whether there was one.

        If it has finished, jobs that depend on it no longer wait for it; if not, it counts for them
        as one that has failed. Raises JobActive where it has not ended, and StoreError where its
        logs cannot be removed: then it is kept.
        """
        owner = (await self._open_for(job_id)).owner
        return await owner.owned(self._removal.delete, job_id)

    async def _delete_old(self, records: Sequence[JobRecord]) -> int:
        owner = (await self._root.open()).owner
        return await owner.owned(self._removal.delete_all, records)

    async def cleanup(self, older_than_days: float | None = None) -> int:
        """Remove jobs that ended that many days ago or earlier, with their logs; return how many.

        The default is ``retention_days``. A job that others still wait for is kept, and so is one
        whose logs cannot be removed; that is logged.
        """
        days = checked_days("older_than_days", older_than_days)
        days = self._retention_days if days is None else days
        if days is None:
            raise InvalidJob("older_than_days", "must be said where there is no retention_days")
        await self._root.open()
        return await self._retention.clean_up(days)

    async def _retain(self) -> None:
        if self._retention_days is not None:
            await self._retention.serve(self._retention_days, self._root.host)

    # Looking.

    async def get_status(self, job_id: str) -> JobRecord | None:
        """Return the job's record as it is now, None for an unknown id."""
        await self._open_for(job_id)
        record = await self._jobdb.get(job_id)
        return record and self._as_of_now(record)

    def _as_of_now(self, record: JobRecord) -> JobRecord:
        """Return the record with the progress a running job reports: a look at a small file."""
        if record.status in ALIVE:
            files = self._planner.files
            progress = last_progress(files.progress(record.logfile, record.attempt))
            if progress is not None:
                record = record.changed({"progress": progress[0]})
        return record.detached()

    async def get_results(self, job_id: str) -> JsonValue:
        """Return the JSON value that the job wrote to ``$ANODEJOBS_RESULT``, or None.

        If what it wrote is not JSON, the record's ``error`` says so. Raises JobNotFound.
        """
        return (await self._known(job_id)).detached().result

    async def list_status(self, filter: AnyFilter | None = None) -> JobRecordDict:
        """Return all records that match, oldest first."""
        await self._root.open()
        found = await self._jobdb.page(Query(filter=checked_filter(filter)))
        records = await made_of_each(self._as_of_now, found)
        return JobRecordDict((record.self_id, record) for record in records)

    async def list_jobs(
        self,
        *,
        sort_by: SortKey = "created_at",
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int | None = None,
        offset: int = 0,
        after: str | None = None,
        **filter: Unpack[FilterOptions],
    ) -> list[JobRecord]:
        """Return a page of records; ``filter`` takes the fields of ``JobFilter``.

        ``after`` is the id of the last job of the page before. With it the next page is found as
        fast at the end of a million records as at their beginning; with ``offset``, all records
        before the page are counted.

        Raises InvalidJob, and JobNotFound where ``after`` names no job.
        """
        check_choice("sort_order", sort_order, "asc", "desc")
        query = Query(
            filter=JobFilter(filter),
            sort_by=sort_by,
            descending=sort_order == "desc",
            limit=limit,
            offset=offset,
            after=after,
        )
        await self._root.open()
        return await made_of_each(self._as_of_now, await self._jobdb.page(query))

    async def count(self, filter: AnyFilter | None = None) -> int:
        """Return how many records match."""
        return sum((await self.counts(filter)).values())

    async def counts(self, filter: AnyFilter | None = None) -> dict[Status, int]:
        """Return how many records match, by status."""
        await self._root.open()
        found = await self._jobdb.count(checked_filter(filter))
        return {status: found.get(status, 0) for status in Status}

    async def metrics(self) -> Metrics:
        """Return the numbers of jobs by status, tag, queue and priority, and how long they ran.

        It costs a look at every record: a fifth of a second for 100,000 of them.
        """
        await self._root.open()
        return await self._jobdb.tally()

    async def history(self, job_id: str) -> list[JobEvent]:
        """Return every change of the job's status, oldest first: when, from, to and why.

        For an unknown id the list is empty.
        """
        await self._open_for(job_id)
        return await self._jobdb.history(job_id)

    async def attempts(self, job_id: str) -> list[AttemptRecord]:
        """Return the attempts of the job's last run, oldest first. Raises JobNotFound."""
        record = await self._known(job_id)
        events = await self._jobdb.history(job_id)
        return attempts_of(record, events)

    async def usage(self, job_id: str) -> Usage:
        """Return what the job's processes use now; zeros once it has ended. Raises JobNotFound."""
        executor = (await self._open_for(job_id)).executor
        stored = await self._jobdb.stored(job_id)
        if stored.record.is_done:
            return Usage(processes=0, cpu_seconds=0.0, memory_bytes=0)
        used = await executor.usage(stored.attempt)
        return Usage(
            processes=used.processes,
            cpu_seconds=used.cpu_seconds,
            memory_bytes=used.memory_bytes,
        )

    # Logs and events.

    async def job_logs(
        self, job_id: str, tail: int | None = None, *, attempt: int | None = None
    ) -> tuple[str, str]:
        """Return what the job wrote, ``(stdout, stderr)``, or the last ``tail`` bytes of each.

        That is what its last attempt wrote, or the one whose number is ``attempt`` (from 1). The
        text is UTF-8 with undecodable bytes replaced. Raises JobNotFound, and ExecutorError where a
        log cannot be read.
        """
        check_count("tail", tail, least=0)
        check_count("attempt", attempt, least=1)
        await self._open_for(job_id)
        stored = await self._jobdb.stored(job_id)
        number = begun_attempt(stored.record) if attempt is None else attempt
        if not await self._has_logs(stored, number):
            return "", ""
        logs = stored.launch.logs.of_attempt(number)

        def read() -> list[str]:
            return [read_text(logs.path(stream), tail) for stream in STREAMS]

        try:
            stdout, stderr = await in_thread(read)
        except OSError as error:
            raise unreadable(job_id, error) from error
        return stdout, stderr

    async def _has_logs(self, stored: Stored, attempt: int) -> bool:
        """Return whether the logs that the attempt would have are of this run of the job."""
        if not stored.launch.earlier or attempt == stored.record.attempt:
            return 1 <= attempt <= begun_attempt(stored.record)
        attempts = await self.attempts(stored.record.self_id)
        return any(a.attempt == attempt and a.started_at is not None for a in attempts)

    async def follow(
        self,
        job_id: str,
        *,
        stdout: bool = True,
        stderr: bool = True,
        offset: int | Mapping[Stream, int] = 0,
    ) -> AsyncGenerator[LogChunk, None]:
        """Give what the job writes as it writes it, from the beginning or from ``offset`` on.

        It ends when the attempt has ended and all was given. One that has not started is waited
        for; if none is to start any more, nothing is given. To resume without a gap or
        a repeat, give as ``offset`` the ``end`` of the last chunk; with both streams a mapping,
        ``{"stdout": 10, "stderr": 0}``. A slow reader does not slow the job. Raises JobNotFound,
        and ExecutorError where a log cannot be read.
        """
        wanted: list[Stream] = [s for s, on in zip(STREAMS, (stdout, stderr), strict=True) if on]
        offsets = checked_offsets(offset, wanted)
        executor = (await self._open_for(job_id)).executor
        stored = await self._jobdb.stored(job_id)
        record = stored.record
        if record.status in WAITING:
            with contextlib.suppress(StatusUnreachable):
                record = await self._jobdb.wait_for(job_id, ALIVE)
            stored = await self._jobdb.stored(job_id)
        number = record.attempt if record.status in ALIVE else begun_attempt(record)
        if record.status not in ALIVE and not await self._has_logs(stored, number):
            return
        record = record.changed({"attempt": number})
        follower = Follower(self._jobdb, executor, stored, record, offsets)
        async with aclosing(follower.chunks()) as chunks:
            async for chunk in chunks:
                yield chunk

    async def events(
        self,
        job_id: str | None = None,
        *,
        after: int | None = None,
        heartbeat: float | None = None,
    ) -> AsyncGenerator[JobEvent, None]:
        """Give what happens to the job, or to all: changes of status, growth of logs, progress.

        It begins with what happens from now on, or with the first event after the one whose ``seq``
        is ``after`` (0: with the very first). With ``heartbeat`` an event of that kind comes
        whenever there was no other for so many seconds. It never ends by itself.
        """
        if heartbeat is not None:
            check_seconds("heartbeat", heartbeat)
        check_count("after", after, least=0)
        if job_id is not None:
            check_text("job_id", job_id)
        parts = await self._root.open()
        parts.executor.report_growth(self._jobdb.news.grown)
        try:
            parts.progress.open()
            async with aclosing(self._jobdb.news.events(job_id, after, heartbeat)) as events:
                async for event in events:
                    yield event
        finally:
            if not self._jobdb.news.wants_growth:
                parts.progress.close()
                if not self._root.is_closing:
                    parts.executor.report_growth(None)

    async def on(
        self,
        callback: OnStatus,
        *,
        status: AnyStatus | Iterable[AnyStatus] | None = None,
        job_id: str | None = None,
    ) -> Callable[[], object]:
        """Have the callback called with the record of each job that comes into a status.

        ``status`` is one, or several of which any will do (None: every one), ``job_id`` a single
        job. Calls are made one after another, in the order of what happened; a coroutine function
        is awaited, and what the callback raises is logged. The record may have a later status by
        then.

        Returns a function that ends this; closing does, too.
        """
        if not callable(callback):
            raise InvalidJob("callback", "must be a function that takes a record")
        wanted = statuses(status)
        if job_id is not None:
            check_text("job_id", job_id)
        owner = (await self._root.open()).owner
        after = self._jobdb.news.cursor
        calls = serve_callback(callback, self._jobdb, job_id=job_id, after=after, wanted=wanted)
        return owner.own(calls, "callbacks").cancel


def _store_for(db_path: Path, store: JobStore | str | None, durability: Durability) -> JobStore:
    """Return the store that is asked for: None is SQLite in the directory."""
    if store is None:
        return sqlite_store(db_path / "jobs.db", durability=durability)
    if isinstance(store, str):
        return from_url(store, durability=durability)
    if not isinstance(store, JobStore):
        raise InvalidJob("store", "must be a JobStore or a URL")
    check_durability(durability, where_useless="a JobStore, which is told when it is made")
    return store
