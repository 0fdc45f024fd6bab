"""Jobs, what applications hold: it checks what is asked for, joins the parts, owns the root."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, Unpack

from anodejobs.errors import (
    AnodeJobsError,
    ExecutorError,
    InvalidJob,
    JobNotFound,
    StoreError,
    WaitTimeout,
)
from anodejobs.events import utc_now
from anodejobs.executors.base import STREAMS, Executor, Launch, LogPlan, Stream
from anodejobs.executors.processes import Processes
from anodejobs.executors.shim import Shim
from anodejobs.follower import Follower
from anodejobs.jobdb import JobDB
from anodejobs.logs import LogChunk, LogTail, log_name, remove_logs
from anodejobs.records import (
    JobEvent,
    JobFilter,
    JobOptions,
    JobRecord,
    JobRecordDict,
    JobSpec,
    Status,
    Usage,
    check_seconds,
)
from anodejobs.stores import from_url, sqlite_store
from anodejobs.stores.base import JobStore, Query, SortKey
from anodejobs.transitions import opened, renewed
from anodejobs.watcher import Watcher

LOG = logging.getLogger("anodejobs")

AnyFilter = JobFilter | Mapping[str, Any]
AnyStatus = Status | str

_READ_BYTES = 1024 * 1024


class Jobs:
    """External commands as supervised jobs, recorded in ``db_path``.

    It opens itself at first use, on the running event loop, and is closed by ``async with`` or
    ``close()``. Opening takes care of what an earlier ``Jobs`` left on the directory: jobs that
    still run are adopted, those that are gone become ``lost``.

    ``store`` is a JobStore or a URL (``memory://``, ``sqlite:///path``); by default SQLite in
    ``<db_path>/jobs.db``. ``executor`` is ``"shim"``: the processes are children of a small process
    that outlives the application; or ``"inline"``: they are children of the application and end
    with it; or an Executor. ``stop_grace`` is the seconds between SIGTERM and SIGKILL for jobs that
    do not say. ``on_close="stop"`` stops the jobs that this ``Jobs`` started; inline jobs are
    stopped in any case, since nobody would be left to read their output. A log file of
    ``log_max_bytes`` is set aside, and ``log_backups`` such files are kept. ``durability="power"``
    syncs every commit to the disk.

    Every method but ``close`` raises StoreError where the store fails, and ExecutorError once
    closed. A caller who is cancelled gives up the answer; what was asked for goes on.
    """

    def __init__(
        self,
        db_path: str | os.PathLike[str],
        *,
        store: JobStore | str | None = None,
        executor: Literal["shim", "inline"] | Executor = "shim",
        stop_grace: float = 10.0,
        on_close: Literal["leave", "stop"] = "leave",
        log_max_bytes: int | None = None,
        log_backups: int = 1,
        durability: Literal["process", "power"] = "process",
    ) -> None:
        if executor not in ("shim", "inline") and not isinstance(executor, Executor):
            raise InvalidJob("executor", "must be 'shim', 'inline' or an Executor")
        if on_close not in ("leave", "stop"):
            raise InvalidJob("on_close", "must be 'leave' or 'stop'")
        if store is not None and not isinstance(store, (str, JobStore)):
            raise InvalidJob("store", "must be a JobStore or a URL")
        _check_count("log_max_bytes", log_max_bytes, least=1)
        _check_count("log_backups", log_backups, least=0)
        self.db_path = Path(os.path.abspath(db_path))
        self._log_dir = self.db_path / "job_logs"
        self._stop_grace = check_seconds("stop_grace", stop_grace)
        self._on_close = on_close
        self._log_max_bytes = log_max_bytes
        self._log_backups = log_backups
        if store is None:
            store = sqlite_store(self.db_path / "jobs.db", durability=durability)
        elif isinstance(store, str):
            store = from_url(store, durability=durability)
        self._jobdb = JobDB(store)
        self._given_executor = executor
        self._environment: dict[str, str] = {}
        self._encoded_environment: dict[bytes, bytes] = {}
        self._host = socket.gethostname()
        self._root: asyncio.Task[None] | None = None
        self._pid = 0
        """The process that opened it: a fork of that has the memory, and nothing that works."""
        self._opened: asyncio.Future[tuple[Watcher, Executor]] | None = None
        self._parts: tuple[Watcher, Executor] | None = None
        self._closing = asyncio.Event()
        self._failure: BaseException | None = None

    # Opening and closing.

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of everything, and of the jobs as ``on_close`` says. Idempotent.

        Returns in the end: processes that do not die of SIGKILL are not waited for. Cancelling
        does not take it back.
        """
        self._closing.set()
        if self._root is not None and self._pid == os.getpid():
            await asyncio.wait((self._root,))

    async def _open(self) -> tuple[Watcher, Executor]:
        if self._root is not None and self._pid != os.getpid():
            raise ExecutorError("this Jobs was opened before a fork; make one in each process")
        if self._failure is not None:
            raise ExecutorError(f"this Jobs has failed: {self._failure!r}") from self._failure
        if self._closing.is_set():
            raise ExecutorError("this Jobs is closed; make another one")
        if self._parts is not None:
            return self._parts
        if self._root is None:
            self._pid = os.getpid()
            self._opened = asyncio.get_running_loop().create_future()
            self._root = asyncio.create_task(self._serve(self._opened), name="anodejobs")
        assert self._opened is not None
        self._parts = await asyncio.shield(self._opened)
        return self._parts

    async def _serve(self, opened: asyncio.Future[tuple[Watcher, Executor]]) -> None:
        """Be the one owner of all tasks, from opening to closing."""
        executor = self._executor()
        try:
            await self._prepare_directory()
            await self._jobdb.open()
            await self._serve_tasks(executor, opened)
        except BaseException as error:
            cause = _root_cause(error)
            if not opened.done():
                opened.set_exception(_opening_error(cause))
                opened.exception()  # looked at: who opened may have been cancelled
            elif not isinstance(cause, asyncio.CancelledError):
                self._failure = cause
                LOG.critical("no job of %s is watched any more", self.db_path, exc_info=cause)
        finally:
            self._closing.set()
            self._jobdb.fail(self._failure or ExecutorError("this Jobs was closed"))
            try:
                await executor.close()
            finally:
                await self._jobdb.close()

    def _executor(self) -> Executor:
        match self._given_executor:
            case "shim":
                return Shim(self.db_path / "shim")
            case "inline":
                return Processes()
            case executor:
                return executor

    async def _prepare_directory(self) -> None:
        def make() -> None:
            for folder in (self.db_path, self._log_dir):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)

        try:
            await asyncio.to_thread(make)
        except OSError as error:
            raise StoreError(f"cannot use {self.db_path}: {error}") from error

    async def _serve_tasks(
        self, executor: Executor, opened: asyncio.Future[tuple[Watcher, Executor]]
    ) -> None:
        # asyncio's own group: anyio's costs a tenth of the application's time at full load.
        tasks = asyncio.TaskGroup()
        watcher = Watcher(self._jobdb, executor, tasks)
        try:
            async with tasks:
                tasks.create_task(self._jobdb.serve(), name="anodejobs commits")
                tasks.create_task(self._jobdb.serve_foreign(), name="anodejobs foreign commits")
                await watcher.open()
                opened.set_result((watcher, executor))
                await self._closing.wait()
                if self._on_close == "stop" or not executor.outlives_host:
                    await watcher.end_all("the application closed")
                raise _Closed
        except* _Closed:
            pass
        finally:
            watcher.refuse_all()

    # Running.

    async def run(
        self,
        command: str | list[str],
        job_id: str | None = None,
        *,
        if_exists: Literal["rerun", "skip", "error"] = "rerun",
        fresh_for: float | None = None,
        **spec: Unpack[JobOptions],
    ) -> JobRecord:
        """Start a job now, and return its record once the program is exec'd.

        A string goes to ``/bin/sh -c``, a list is executed directly. ``spec``: see ``JobOptions``.
        A program that cannot be exec'd gives a record in ``failed_start`` with ``error``. Where
        ``job_id`` names a job that ended, it is run anew, its logs replaced; with
        ``if_exists="skip"`` the old record is returned instead (``fresh_for``: only if it finished
        with exit code 0 so many seconds ago at most), with ``"error"`` InvalidJob is raised.

        Raises InvalidJob, and JobActive where ``job_id`` names a job that has not ended; nothing is
        stored or started then. Cancelling gives up the answer, not the job.
        """
        if if_exists not in ("rerun", "skip", "error"):
            raise InvalidJob("if_exists", "must be 'rerun', 'skip' or 'error'")
        if fresh_for is not None:
            if if_exists != "skip":
                raise InvalidJob("fresh_for", "goes with if_exists='skip' only")
            check_seconds("fresh_for", fresh_for)
        checked = JobSpec({"command": command, "job_id": job_id, **spec})
        record, launch = self._planned(checked)

        def may_replace(old: JobRecord) -> bool:
            if if_exists == "error":
                raise InvalidJob("job_id", f"there is a job {old.self_id!r}, which is {old.status}")
            return if_exists == "rerun" or not _is_fresh(old, fresh_for)

        watcher, _ = await self._open()
        return await watcher.start(record, launch, may_replace)

    def _planned(self, spec: JobSpec) -> tuple[JobRecord, Launch]:
        """Return the first record of a job, and what starts it."""
        job_id = spec.job_id or str(uuid.uuid4())
        name = log_name(job_id)
        try:
            cwd = os.getcwd() if spec.cwd is None else os.path.abspath(spec.cwd)
        except FileNotFoundError:
            raise InvalidJob("cwd", "the application's own one is gone: name one") from None
        stop_grace = self._stop_grace if spec.stop_grace is None else spec.stop_grace
        launch = Launch(
            job_id=job_id,
            argv=("/bin/sh", "-c", spec.command)
            if isinstance(spec.command, str)
            else tuple(spec.command),
            cwd=cwd,
            base_env=self._present_environment() if spec.inherit_env else {},
            envs=spec.envs,
            logs=LogPlan(
                stdout=f"{self._log_dir}/{name}_out.txt",
                stderr=f"{self._log_dir}/{name}_errors.txt",
                max_bytes=self._log_max_bytes,
                backups=self._log_backups,
            ),
            timeout=spec.timeout,
            stop_grace=stop_grace,
            start_grace=spec.start_grace,
            leftovers=spec.leftovers,
            on_host_death=spec.on_host_death,
        )
        now = utc_now()
        record = opened(
            self_id=job_id,
            last_update=now,
            created_at=now,
            dirname=str(self.db_path),
            cwd=cwd,
            logdir=str(self._log_dir),
            logfile=name,
            command=spec.command,
            name=spec.name,
            description=spec.description,
            tags=spec.tags,
            metadata=spec.metadata,
            user_id=spec.user_id,
            workflow_id=spec.workflow_id,
            timeout=spec.timeout,
            host=self._host,
        )
        return record, launch

    def _present_environment(self) -> dict[str, str]:
        """Return the application's environment; the same object for as long as it is the same."""
        # To decode all of it for each job would cost as much as a commit.
        encoded = getattr(os.environ, "_data", None)
        if encoded is None or encoded != self._encoded_environment:
            self._encoded_environment = dict(encoded or {})
            present = dict(os.environ)
            if present != self._environment:
                self._environment = present
        return self._environment

    # Waiting.

    async def wait(
        self,
        job_id: str,
        status: AnyStatus | Iterable[AnyStatus] | None = None,
        timeout: float | None = None,
    ) -> JobRecord:
        """Return the job's record once it has ended, or its attempt has reached a status.

        ``status`` is one or several of which any will do; one that the attempt has already passed
        counts. The exit is on disk and the logs are complete when this returns.

        Raises JobNotFound, WaitTimeout after ``timeout`` seconds, and StatusUnreachable when the
        job ends without the status. Cancelling costs nothing.
        """
        wanted = _statuses(status)
        await self._open()
        if timeout is None:
            return await self._jobdb.wait_for(job_id, wanted)
        async with _time_limit(f"job {job_id!r}", timeout):
            return await self._jobdb.wait_for(job_id, wanted)

    async def wait_all(
        self, jobs: Iterable[str] | AnyFilter, timeout: float | None = None
    ) -> JobRecordDict:
        """Return the records of all the jobs, in the order given, once all have ended.

        ``jobs`` are ids, or a filter over the jobs there are now. Raises JobNotFound for an unknown
        id, WaitTimeout after ``timeout`` seconds.
        """
        await self._open()
        if isinstance(jobs, JobFilter) or (
            isinstance(jobs, Mapping) and not isinstance(jobs, JobRecordDict)
        ):
            jobs = await self.list_status(jobs)
        job_ids = _ids(jobs)
        async with (
            _time_limit(f"{len(job_ids)} jobs", timeout),
            aclosing(self._as_ended(job_ids)) as records,
        ):
            ended = {record.self_id: record async for record in records}
        return JobRecordDict((job_id, ended[job_id]) for job_id in job_ids)

    async def as_completed(self, job_ids: Iterable[str]) -> AsyncGenerator[JobRecord, None]:
        """Give the record of each job as it ends. Raises JobNotFound for an unknown id."""
        await self._open()
        async with aclosing(self._as_ended(_ids(job_ids))) as records:
            async for record in records:
                yield record

    async def _as_ended(self, job_ids: list[str]) -> AsyncGenerator[JobRecord, None]:
        ended: asyncio.Queue[asyncio.Future[JobRecord]] = asyncio.Queue()
        with self._jobdb.waiting(job_ids) as waiters:
            for waiter in waiters:
                waiter.future.add_done_callback(ended.put_nowait)
            for waiter in waiters:
                record = await self._jobdb.get(waiter.job_id)
                if record is None:
                    raise JobNotFound(waiter.job_id)
                waiter.consider(record)
            for _ in waiters:
                yield (await ended.get()).result()

    # Control.

    async def stop(self, job_id: str, grace: float | None = None) -> JobRecord | None:
        """End the job, and return its record when none of its processes is left.

        They get SIGTERM, and SIGKILL after ``grace`` seconds (by default the job's
        ``stop_grace``). A job that has ended is returned as it is, None for an unknown id; one
        that survives SIGKILL is returned in ``failed_stop``.
        """
        if grace is not None:
            check_seconds("grace", grace)
        watcher, _ = await self._open()
        if await self._jobdb.get(job_id) is None:
            return None
        return await watcher.owned(watcher.stop, job_id, grace, None)

    async def pause(self, job_id: str) -> JobRecord:
        """Stop all processes of the job with SIGSTOP; its ``timeout`` runs on.

        Raises JobNotFound, InvalidTransition where it is not running.
        """
        watcher, _ = await self._open()
        return await watcher.owned(watcher.pause, job_id)

    async def resume(self, job_id: str) -> JobRecord:
        """Let a paused job go on. Raises JobNotFound, InvalidTransition where it is not paused."""
        watcher, _ = await self._open()
        return await watcher.owned(watcher.resume, job_id)

    async def signal(self, job_id: str, sig: int | str) -> JobRecord:
        """Send a signal (``signal.SIGHUP``, ``"SIGHUP"``, 1) to all processes of the job.

        Raises JobNotFound, InvalidJob for an unknown signal, InvalidTransition where the job has
        no processes.
        """
        signum = _signal_number(sig)
        watcher, _ = await self._open()
        return await watcher.owned(watcher.signal, job_id, signum)

    async def restart(self, job_id: str, grace: float | None = None) -> JobRecord:
        """Stop the job if it is active, and run it anew as it was; return it as ``run`` does.

        Raises JobNotFound, and JobActive where somebody else was quicker or it cannot be stopped.
        """
        await self.stop(job_id, grace)
        watcher, _ = await self._open()
        stored = await self._jobdb.stored(job_id)
        record = renewed(stored.record)
        return await watcher.start(record, stored.launch, lambda old: True)

    async def delete(self, job_id: str) -> bool:
        """Remove the job's record, history and logs; return whether there was one.

        Raises JobActive where it has not ended.
        """
        watcher, _ = await self._open()
        return await watcher.owned(self._delete, job_id)

    async def _delete(self, job_id: str) -> bool:
        was_there = await self._jobdb.delete(job_id)
        if was_there:
            logs = self._logs_of(log_name(job_id))
            await asyncio.to_thread(remove_logs, logs.values())
        return was_there

    # Looking.

    async def get_status(self, job_id: str) -> JobRecord | None:
        """Return the job's record as it is now, None for an unknown id."""
        await self._open()
        return await self._jobdb.get(job_id)

    async def list_status(self, filter: AnyFilter | None = None) -> JobRecordDict:
        """Return all records that match, oldest first."""
        await self._open()
        records = await self._jobdb.page(Query(filter=_filter(filter)))
        return JobRecordDict((record.self_id, record) for record in records)

    async def list_jobs(
        self,
        *,
        sort_by: SortKey = "created_at",
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int | None = None,
        offset: int = 0,
        after: str | None = None,
        **filter: Any,
    ) -> list[JobRecord]:
        """Return a page of records; ``filter`` takes the fields of ``JobFilter``.

        ``after`` is the id of the last job of the page before. It finds the next page as fast at
        the end of a million records as at their beginning, while ``offset`` counts its way.

        Raises InvalidJob, and JobNotFound where ``after`` names no job.
        """
        if sort_order not in ("asc", "desc"):
            raise InvalidJob("sort_order", "must be 'asc' or 'desc'")
        query = Query(
            filter=JobFilter(filter),
            sort_by=sort_by,
            descending=sort_order == "desc",
            limit=limit,
            offset=offset,
            after=after,
        )
        await self._open()
        return await self._jobdb.page(query)

    async def count(self, filter: AnyFilter | None = None) -> int:
        """Return how many records match."""
        return sum((await self.counts(filter)).values())

    async def counts(self, filter: AnyFilter | None = None) -> dict[Status, int]:
        """Return how many records match, by status."""
        await self._open()
        found = await self._jobdb.count(_filter(filter))
        return {status: found.get(status, 0) for status in Status}

    async def history(self, job_id: str) -> list[JobEvent]:
        """Return every change of the job's status, oldest first: when, from, to and why."""
        await self._open()
        return await self._jobdb.history(job_id)

    async def usage(self, job_id: str) -> Usage:
        """Return what the job's processes use now; zeros once it has ended. Raises JobNotFound."""
        _, executor = await self._open()
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

    def _logs_of(self, logfile: str) -> dict[Stream, Path]:
        return {
            "stdout": self._log_dir / f"{logfile}_out.txt",
            "stderr": self._log_dir / f"{logfile}_errors.txt",
        }

    async def job_logs(self, job_id: str, tail: int | None = None) -> tuple[str, str]:
        """Return what the job wrote, ``(stdout, stderr)``, or the last ``tail`` bytes of each.

        The text is UTF-8 with undecodable bytes replaced. Raises JobNotFound.
        """
        _check_count("tail", tail, least=0)
        await self._open()
        stored = await self._jobdb.stored(job_id)

        def read() -> list[str]:
            return [_read_log(stored.launch.logs.path(stream), tail) for stream in STREAMS]

        stdout, stderr = await asyncio.to_thread(read)
        return stdout, stderr

    async def follow(
        self,
        job_id: str,
        *,
        stdout: bool = True,
        stderr: bool = True,
        offset: int | Mapping[Stream, int] = 0,
    ) -> AsyncGenerator[LogChunk, None]:
        """Give what the job writes as it writes it, from its beginning or ``offset`` on.

        It ends when the job has ended and all was given. To resume without a gap or a repeat, give
        as ``offset`` the ``end`` of the last chunk; with both streams a mapping,
        ``{"stdout": 10, "stderr": 0}``. A slow reader does not slow the job. Raises JobNotFound.
        """
        wanted: list[Stream] = [s for s, on in zip(STREAMS, (stdout, stderr), strict=True) if on]
        offsets = _offsets(offset, wanted)
        _, executor = await self._open()
        stored = await self._jobdb.stored(job_id)
        follower = Follower(self._jobdb, executor, stored, offsets)
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
        """Give what happens to the job, or to all: changes of status, and the growth of logs.

        From now on, or from after the event with ``seq`` ``after``; 0 is the very beginning. With
        ``heartbeat`` an event of that kind comes whenever nothing else did for so many seconds.
        Never ends by itself.
        """
        if heartbeat is not None:
            check_seconds("heartbeat", heartbeat)
        _check_count("after", after, least=0)
        _, executor = await self._open()
        executor.report_growth(self._jobdb.grown)
        try:
            async with aclosing(self._jobdb.events(job_id, after, heartbeat)) as events:
                async for event in events:
                    yield event
        finally:
            if not self._jobdb.has_listeners and self._parts and not self._closing.is_set():
                executor.report_growth(None)


def _opening_error(cause: BaseException) -> AnodeJobsError:
    if isinstance(cause, AnodeJobsError):
        return cause
    error = ExecutorError(f"this Jobs could not be opened: {cause!r}")
    error.__cause__ = cause
    return error


class _Closed(Exception):  # no error: how a task group is ended
    """Ends the tasks that never end by themselves."""


@asynccontextmanager
async def _time_limit(what: str, timeout: float | None) -> AsyncIterator[None]:
    """Raise WaitTimeout after ``timeout`` seconds, if it says so many."""
    if timeout is None:
        yield
        return
    check_seconds("timeout", timeout)
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise WaitTimeout(what, timeout) from None
        raise


def _is_fresh(record: JobRecord, fresh_for: float | None) -> bool:
    if fresh_for is None:
        return True
    if record.status is not Status.finished or record.finished_at is None:
        return False
    return (utc_now() - record.finished_at).total_seconds() <= fresh_for


def _statuses(status: AnyStatus | Iterable[AnyStatus] | None) -> frozenset[Status] | None:
    if status is None:
        return None
    if not isinstance(status, Iterable):
        raise InvalidJob("status", "must be a status, or several")
    names = [status] if isinstance(status, str) else list(status)
    try:
        wanted = frozenset(Status(name) for name in names)
    except ValueError as error:
        raise InvalidJob("status", str(error)) from None
    if not wanted:
        raise InvalidJob("status", "names no status")
    return wanted


def _ids(job_ids: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([job_ids] if isinstance(job_ids, str) else job_ids))


def _filter(filter: AnyFilter | None) -> JobFilter:
    return filter if isinstance(filter, JobFilter) else JobFilter(filter)


def _signal_number(sig: int | str) -> int:
    try:
        if isinstance(sig, str):
            name = sig.upper()
            return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
        if isinstance(sig, int) and not isinstance(sig, bool) and sig in signal.valid_signals():
            return int(sig)
    except KeyError:
        pass
    raise InvalidJob("sig", f"{sig!r} is no signal here")


def _check_count(field: str, value: int | None, *, least: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
        raise InvalidJob(field, f"must be a whole number, {least} or more, below 2 ** 63")


def _offsets(offset: int | Mapping[Stream, int], wanted: list[Stream]) -> dict[Stream, int]:
    """Return where each wanted stream is to be read from."""
    if not isinstance(offset, Mapping):
        offset = dict.fromkeys(wanted, offset)
    for stream, value in offset.items():
        if stream not in STREAMS:
            raise InvalidJob("offset", f"{stream!r} is neither stdout nor stderr")
        if value is None:
            raise InvalidJob("offset", "must be a whole number")
        _check_count("offset", value, least=0)
    return {stream: offset.get(stream, 0) for stream in wanted}


def _read_log(path: Path, tail: int | None) -> str:
    log = LogTail(path)
    if tail is not None:
        log.offset = max(0, log.end() - tail)
    pieces: list[bytes] = []
    try:
        while data := log.read(_READ_BYTES):
            pieces.append(data)
    finally:
        log.close()
    return b"".join(pieces).decode("utf-8", "replace")


def _root_cause(error: BaseException) -> BaseException:
    """Return the first error in a group: what the others came from."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
