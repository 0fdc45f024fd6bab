"""Planner: from what a caller asks for to the first record of a job, and to what starts it.

Nothing is stored or started here, and whatever is wrong is said here.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from anodejobs.calls import call_argv
from anodejobs.errors import InvalidJob
from anodejobs.events import utc_now
from anodejobs.executors.base import Launch, LogPlan
from anodejobs.jobfiles import JobFiles
from anodejobs.limits import check_limits
from anodejobs.logs import log_name
from anodejobs.records import JobRecord, JobSpec
from anodejobs.retries import FixedDelay, RestartPolicy, check_restart, check_retry, retry_to_json
from anodejobs.stores.base import Stored
from anodejobs.transitions import Opening, opened, renewed


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A job that is not there yet."""

    record: JobRecord
    launch: Launch
    renews: Stored | None = None
    """The run that it repeats, where it does: it comes right after that, or not at all."""

    @classmethod
    def again(cls, ended: Stored, opening: Opening) -> Plan:
        """Return that of another run of the same job, as it was."""
        return cls(record=renewed(ended.record, opening), launch=ended.launch, renews=ended)


@dataclass(frozen=True, slots=True)
class Place:
    """Where jobs are run: a host, and a directory there."""

    host: str
    dirname: str
    logdir: str
    files: str

    def bring(self, launch: Launch) -> Launch:
        """Return what starts a job here: the same, or with its logs and files in this directory."""
        logs = launch.logs
        stdout, stderr = (
            os.path.join(self.logdir, os.path.basename(path)) for path in (logs.stdout, logs.stderr)
        )
        if (launch.files, logs.stdout, logs.stderr) == (self.files, stdout, stderr):
            return launch
        envs, name = launch.envs, log_name(launch.job_id)
        if launch.files and envs.get(_PAYLOAD) == JobFiles(launch.files).payload(name):
            envs = {**envs, _PAYLOAD: JobFiles(self.files).payload(name)}
        logs = replace(logs, stdout=stdout, stderr=stderr)
        return replace(launch, files=self.files, envs=envs, logs=logs)

    def bring_plan(self, plan: Plan) -> Plan:
        """Return the plan of a job that is to be started here."""
        where = {"host": self.host, "dirname": self.dirname, "logdir": self.logdir}
        if all(plan.record[field] == value for field, value in where.items()):
            return plan
        return replace(plan, record=plan.record.changed(where), launch=self.bring(plan.launch))


_PAYLOAD: Final = "ANODEJOBS_PAYLOAD"


class Planner:
    """Knows what all jobs of a ``Jobs`` have in common."""

    def __init__(
        self,
        db_path: Path,
        *,
        stop_grace: float,
        log_max_bytes: int | None,
        log_backups: int,
        is_shared: bool,
    ) -> None:
        self.log_dir = db_path / "job_logs"
        files = db_path / "job_files"
        self.files = JobFiles(files)
        self.place = Place(socket.gethostname(), str(db_path), str(self.log_dir), str(files))
        self._stop_grace = stop_grace
        self._log_max_bytes = log_max_bytes
        self._log_backups = log_backups
        self._is_shared = is_shared
        self._environment: dict[str, str] = {}
        self._encoded_environment: dict[bytes, bytes] = {}

    def plan(
        self,
        spec: JobSpec,
        opening: Opening,
        *,
        base_env: dict[str, str] | None = None,
        batch_id: str | None = None,
    ) -> Plan:
        """Return what the spec makes. Raises InvalidJob.

        ``base_env`` is the environment to inherit where that is not the application's present one.
        """
        job_id = spec.job_id or str(uuid.uuid4())
        name = log_name(job_id)
        launch = self._launch(spec, job_id, name, base_env)
        now = utc_now()
        record = opened(
            opening,
            self_id=job_id,
            last_update=now,
            created_at=now,
            dirname=self.place.dirname,
            cwd=launch.cwd,
            logdir=self.place.logdir,
            logfile=name,
            command=spec.command,
            name=spec.name,
            description=spec.description,
            tags=spec.tags,
            metadata=spec.metadata,
            user_id=spec.user_id,
            workflow_id=spec.workflow_id,
            timeout=spec.timeout,
            limits=launch.limits,
            host=self.place.host,
            **(_of_its_turn(spec, opening) if spec.model_fields_set - _PLAIN else {}),
            batch_id=batch_id,
        )
        return Plan(record=record, launch=launch)

    def _launch(
        self, spec: JobSpec, job_id: str, name: str, base_env: dict[str, str] | None
    ) -> Launch:
        if base_env is None:
            base_env = self._present_environment() if spec.inherit_env else {}
        try:
            cwd = os.getcwd() if spec.cwd is None else os.path.abspath(spec.cwd)
        except FileNotFoundError:
            raise InvalidJob("cwd", "the application's own is gone: name one") from None
        command, envs = spec.command, spec.envs
        if spec.payload is not None:
            envs = {**envs, _PAYLOAD: self.files.payload(name)}
        return Launch(
            job_id=job_id,
            argv=("/bin/sh", "-c", command) if isinstance(command, str) else tuple(command),
            cwd=cwd,
            base_env=base_env,
            envs=envs,
            files=self.place.files,
            limits=_limits(spec),
            logs=LogPlan(
                stdout=f"{self.place.logdir}/{name}_out.txt",
                stderr=f"{self.place.logdir}/{name}_errors.txt",
                max_bytes=self._log_max_bytes,
                backups=self._log_backups,
            ),
            timeout=spec.timeout,
            stop_grace=self._stop_grace if spec.stop_grace is None else spec.stop_grace,
            start_grace=spec.start_grace,
            leftovers=spec.leftovers,
            on_host_death=spec.on_host_death,
            # What ran here may have been deleted, or run anew, on another host since.
            earlier=1 if self._is_shared else 0,
            umask=self._umask,
        )

    @cached_property
    def _umask(self) -> int | None:
        """The application's when it first asks for a job: to look each time would be slow."""
        return _present_umask()

    def _present_environment(self) -> dict[str, str]:
        """Return the application's environment; the same object for as long as it is the same."""
        # To decode all of it for each job would cost as much as a commit.
        encoded = getattr(os.environ, "_data", None)
        if encoded is None or encoded != self._encoded_environment:
            self._encoded_environment = dict(encoded or {})
            present = dict(os.environ)
            present.pop("ANODEJOBS_PAYLOAD", None)  # of the job that we may be
            if present != self._environment:
                self._environment = present
        return self._environment


def _present_umask() -> int | None:
    """Return this process's umask, None where it can only be learnt by changing it."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return None


_PLAIN = {
    *("command", "job_id", "cwd", "envs", "inherit_env", "name", "description", "tags"),
    *("metadata", "user_id", "workflow_id", "timeout", "stop_grace", "start_grace", "leftovers"),
    "on_host_death",
}
"""What says nothing of when a job is started."""


def _of_its_turn(spec: JobSpec, opening: Opening) -> dict[str, Any]:
    """Return the fields that say when a job is started, and when again."""
    if opening == "start":
        for field in ("depends_on", "run_at", "start_deadline"):
            if spec[field] not in (None, []):
                raise InvalidJob(field, "is of no use to a job that starts at once: submit it")
    for dependency in spec.depends_on:
        if not isinstance(dependency, str):
            raise InvalidJob("depends_on", "names a job by number, which works only in a batch")
        if dependency == spec.job_id:
            raise InvalidJob("depends_on", "names the job itself")
    restart = check_restart(spec.restart)
    if "when" not in restart.model_fields_set:
        raise InvalidJob("restart", "must say when: RestartPolicy(when='on-failure') or 'always'")
    return {
        "payload": spec.payload,
        "priority": spec.priority,
        "queue": spec.queue,
        "depends_on": list(spec.depends_on),
        "on_dependency_failure": spec.on_dependency_failure,
        "run_at": spec.run_at,
        "due_at": spec.run_at,
        "start_deadline": spec.start_deadline,
        "max_retries": spec.max_retries,
        "retry": _retry(spec, restart),
        "restart": restart.when,
        "restart_policy": None
        if restart == RestartPolicy(when=restart.when)
        else restart.model_dump(mode="json"),
    }


def spec_of(fields: Mapping[str, Any]) -> JobSpec:
    """Return the spec of arguments as callers give them; ``call`` stands for a command."""
    if not isinstance(fields, Mapping):
        raise InvalidJob("spec", "must be a mapping of a job's arguments by name")
    fields = dict(fields)
    call = fields.pop("call", None)
    if call is None:
        if fields.get("command") is None:
            raise InvalidJob("command", "is missing, and so is a call in its place")
        return JobSpec(fields)
    if fields.get("command") is not None:
        raise InvalidJob("call", "cannot be combined with a command")
    if not isinstance(call, str):
        raise InvalidJob("call", "must be like 'package.module:function'")
    return JobSpec({**fields, "command": call_argv(call)})


def _limits(spec: JobSpec) -> dict[str, Any] | None:
    if spec.limits is None:
        return None
    return check_limits(spec.limits).model_dump(exclude_none=True) or None


def _retry(spec: JobSpec, restart: RestartPolicy) -> dict[str, Any] | None:
    """Return the policy for retries as it is stored."""
    if spec.retry is None and spec.retry_delay is None and not spec.max_retries:
        return None
    if not spec.max_retries:
        said = "retry_delay" if spec.retry is None else "retry"
        raise InvalidJob("max_retries", f"must be 1 or more where {said} says how they are made")
    if restart.when != "never":
        raise InvalidJob("restart", "cannot be combined with max_retries: it has limits of its own")
    if spec.retry is None:
        try:
            return retry_to_json(FixedDelay(spec.retry_delay or 0.0))
        except InvalidJob as error:
            raise InvalidJob("retry_delay", error.problem) from None
    if spec.retry_delay is not None:
        raise InvalidJob("retry_delay", "cannot be combined with retry, which says it")
    return retry_to_json(check_retry(spec.retry))
