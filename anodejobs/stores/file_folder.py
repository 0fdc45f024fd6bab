"""A folder of jobs: files that a person can read, and all that they say in memory.

``commits.jsonl`` is the truth since it was begun: a commit is a line of it. Every other file
follows: ``jobs`` has a JSON file for each job, ``history`` its status events, ``documents`` what
else is kept. Where a process died between the two, the next one makes the files follow. What jobs
were asked for with as their environment is in ``environments``, apart from what people look at.

Calls block. They are to come one after another, from one thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from anodejobs.errors import StoreError
from anodejobs.logs import log_name
from anodejobs.records import JobEvent
from anodejobs.stores.base import Outdated, Stored, Write
from anodejobs.stores.contents import Change, Contents, Document, Gone, Kept, Told
from anodejobs.stores.file_commits import CommitLog
from anodejobs.stores.file_lock import FolderLock
from anodejobs.stores.file_places import PART, append, read, replace, sync
from anodejobs.stores.file_texts import (
    Environment,
    environment_of,
    environment_text,
    event_of,
    event_text,
    job_of,
    job_text,
)

LOG = logging.getLogger("anodejobs")

VERSION = 1
"""Of the format. Whoever changes what is in the files counts it up, and reads the older ones; and
begins the log anew, by which applications of an older version learn of it."""

_FOLD_ABOVE_BYTES = 4 * 1024 * 1024
"""A log longer than that is folded: all that it says is synced elsewhere, and it begins anew."""

_MARKER, _COMMITS, _LOCK = "anodejobs.json", "commits.jsonl", "anodejobs-lock"
_FIRST = {_LOCK, _COMMITS, f"{_COMMITS}{PART}", f"{_MARKER}{PART}"}
"""What there may be in a folder that is being made, or whose maker died."""

Digests = tuple[str, str]
"""Those of the application's environment and of the caller's, with which a job was asked for."""


class JobFolder:
    """The folder at ``path``, which several processes may use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._jobs, self._history = path / "jobs", path / "history"
        self._environments, self._documents = path / "environments", path / "documents"
        self._folders = (self._jobs, self._history, self._environments, self._documents)
        self._lock = FolderLock(path / _LOCK)
        self._log = CommitLog(path / _COMMITS)
        self._forget()

    def _forget(self) -> None:
        self._contents = Contents()
        self._digests: dict[str, Digests] = {}
        self._is_stale = True
        """Whether what is in memory may be wrong."""
        self._begin_generation()
        self._last: tuple[Environment, str, str] | None = None

    def _begin_generation(self) -> None:
        self._touched: set[str] = set()
        """The jobs that the log tells of."""
        self._touched_documents: set[tuple[str, str]] = set()
        # Another process may have removed those that no job was using.
        self._kept_environments: set[str] = set()
        self._read_environments: dict[str, Environment] = {}

    # Opening and closing.

    def open(self) -> None:
        """Make what is missing, read everything, and have the files follow the log."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_access(self.path)
        self._is_ours()  # before anything is made in what may be somebody else's
        with self._lock.held() as lock:
            if not self._is_ours():
                self._claim()
            for folder in self._folders:
                folder.mkdir(mode=0o700, exist_ok=True)
                _check_access(folder)
                _clear_parts(folder)
            self._reload()
            self._follow(lock)

    def _is_ours(self) -> bool:
        """Return whether there is a store in the folder, False where it is empty.

        Raises StoreError where it is of something else, or of a newer version.
        """
        try:
            self._check_version()
        except FileNotFoundError:
            if strangers := set(os.listdir(self.path)) - _FIRST:
                raise StoreError(
                    f"{self.path} holds something else, such as {min(strangers)!r}; "
                    "choose a folder for the jobs alone"
                ) from None
            return False
        return True

    def _check_version(self) -> None:
        path = self.path / _MARKER
        content = read(path)
        with _damage(path):
            version = int(json.loads(content)["version"])
        if version > VERSION:
            raise Outdated(
                f"{self.path} has version {version} of a newer anodejobs, this one knows "
                f"{VERSION}; it was left as it is: upgrade anodejobs"
            )

    def _claim(self) -> None:
        if not self._log.path.exists():
            self._log.make()
        what = {"what": "jobs of anodejobs, see commits.jsonl and jobs/", "version": VERSION}
        # Last: with it the folder is complete.
        replace(self.path / _MARKER, f"{json.dumps(what)}\n".encode(), is_synced=True)

    def close(self) -> None:
        """Let go of everything, so that the files say it all, if nobody is writing. Idempotent."""
        if not self._is_stale:
            with contextlib.suppress(OSError, StoreError), self._lock.held(may_wait=False) as lock:
                self._catch_up()
                if self._touched or self._touched_documents:
                    self._fold(lock)
        self._log.close()
        self._forget()

    # What there is.

    def contents(self) -> Contents:
        """Return what is committed by now, by whomever."""
        if self._is_stale or not self._log.is_read():
            with self._lock.held(shared=True):
                self._catch_up()
        return self._contents

    def _catch_up(self) -> None:
        """Read on in the log; under the lock."""
        if self._is_stale:
            self._reload()
            return
        self._is_stale = True  # until it is done
        commits = self._log.read()
        if self._log.is_replaced():
            generation = self._log.generation
            self._open_log()
            if self._log.generation != generation + 1:
                self._reload()  # another fold may have removed what these commits refer to
                return
            self._take(commits)
            self._begin_generation()
            commits = self._log.read()
        self._take(commits)
        self._is_stale = False

    def _open_log(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._check_version()  # it may be a newer one that has begun it
        self._log.open()

    def _take(self, commits: list[dict[str, Any]]) -> None:
        self._note_touched(commits)
        self._contents.apply(self._changes(commits))

    def _reload(self) -> None:
        self._forget()
        self._open_log()
        commits = self._log.read()
        self._note_touched(commits)
        # What the log tells of may be torn elsewhere; what it does not tell of was synced before.
        touched = {log_name(job_id): job_id for job_id in self._touched}
        documents = {_document_name(*key) for key in self._touched_documents}
        events = self._events(touched)
        first, contents = self._log.first_seq, self._contents
        contents.apply(Told(event) for event in events if event.seq <= first)
        contents.last_seq = first
        contents.apply(self._folded_jobs(touched))
        contents.apply(self._folded_documents(documents))
        contents.apply(self._changes(commits))
        if events and events[-1].seq > contents.last_seq:
            newest = events[-1]
            raise StoreError(
                f"{self._log.path} has lost commits: it ends with event {contents.last_seq}, and "
                f"{self._history_path(log_name(newest.job_id or ''))} has {newest.seq}"
            )
        self._is_stale = False

    def _note_touched(self, commits: Iterable[dict[str, Any]]) -> None:
        with _damage(self._log.path):
            for step in _steps(commits):
                if "job" in step or "gone" in step:
                    self._touched.add(_job_id(step))
                elif "event" in step:
                    self._touched.add(step["event"]["job_id"])
                elif "document" in step:
                    kind, name, _ = step["document"]
                    self._touched_documents.add((kind, name))

    def _changes(self, commits: Iterable[dict[str, Any]]) -> list[Change]:
        """Return what commits that others have made come to."""
        steps = list(_steps(commits))
        # Of the last one only: what a job needed before may be gone by now.
        newest = {_job_id(step): step for step in steps if "job" in step or "gone" in step}
        changes: list[Change] = []
        with _damage(self._log.path):
            for step in steps:
                if "event" in step:
                    event = event_of(step["event"])
                    if event.previous is None:  # a new job: files of one of old are not its own
                        changes.append(Gone(event.job_id or ""))
                    changes.append(Told(event))
                elif "document" in step:
                    changes.append(Document(*step["document"]))
                elif "gone" in step:
                    changes.append(Gone(step["gone"]))
                    self._digests.pop(step["gone"], None)
                elif newest[_job_id(step)] is step:
                    changes.append(Kept(self._job(step["job"])))
        return changes

    def _job(self, fields: dict[str, Any]) -> Stored:
        stored = job_of(fields, self._environment)
        launch = fields["launch"]
        self._digests[stored.record.self_id] = launch["base_env"], launch["envs"]
        return stored

    def _environment(self, digest: str) -> Environment:
        if digest not in self._read_environments:
            if not re.fullmatch("[0-9a-f]{64}", digest):
                raise ValueError("an environment is named by no digest")
            path = self._environment_path(digest)
            content = read(path)
            with _damage(path):
                self._read_environments[digest] = environment_of(digest, content)
        return self._read_environments[digest]

    # What was folded: the files that the log does not tell of.

    def _folded_jobs(self, touched: dict[str, str]) -> Iterator[Change]:
        for path in _files(self._jobs, ".json"):
            if path.stem in touched:
                continue
            content = read(path)
            with _damage(path):
                stored = self._job(json.loads(content))
                if log_name(stored.record.self_id) != path.stem:
                    raise ValueError(f"it is not named for its job {stored.record.self_id!r}")
            yield Kept(stored)

    def _events(self, touched: dict[str, str]) -> list[JobEvent]:
        """Return what the files of the history tell, of the jobs that there are."""
        events: list[JobEvent] = []
        for path in _files(self._history, ".jsonl"):
            if path.stem in touched:
                events += _whole_events(path)
            elif self._job_path(path.stem).exists():
                events += _all_events(path)
        events.sort(key=lambda event: event.seq)
        return events

    def _folded_documents(self, touched: set[str]) -> Iterator[Change]:
        for path in _files(self._documents, ".json"):
            if path.stem in touched:
                continue
            content = read(path)
            with _damage(path):
                fields = json.loads(content)
                document = Document(fields["kind"], fields["name"], fields["body"])
                if not isinstance(document.body, str):
                    raise ValueError("it has no text")
                if _document_name(document.kind, document.name) != path.stem:
                    raise ValueError(f"it is not named for its document {document.name!r}")
            yield document

    # Committing.

    def commit(self, writes: Sequence[Write]) -> list[int | None]:
        """Apply the writes as one commit, as ``JobStore.commit``."""
        with self._lock.held() as lock:
            self._catch_up()
            results, changes = self._contents.decide(writes)
            if changes:
                self._make(changes, lock)
        return results

    def put_document(self, document: Document) -> bool:
        """Keep the document; return whether there was anything to change."""
        with self._lock.held() as lock:
            self._catch_up()
            known = self._contents.documents(document.kind).get(document.name)
            if known != document.body:
                self._make([document], lock)
        return known != document.body

    def restore(self, jobs: Sequence[Stored], history: Sequence[JobEvent], last_seq: int) -> None:
        """Go on with what another store has, as ``JobStore.restore``."""
        with self._lock.held() as lock:
            self._catch_up()
            changes = self._contents.decide_restored(jobs, history)
            if changes:
                self._make(changes, lock)
            if last_seq > self._contents.last_seq:
                self._contents.last_seq = last_seq
                self._is_stale = True  # until it is in the first line of a log
                self._fold(lock)
                self._is_stale = False

    def _make(self, changes: list[Change], lock: int) -> None:
        """Make a commit of the changes, and have the files follow."""
        if self._read_mark(lock) != self._place_in_log():
            self._follow(lock)  # who made the last commit has died, or had no room
        digests = self._kept_digests(changes)
        # All of it before the commit: what cannot be written down is not to be committed.
        steps = ",".join(_step_text(change, digests) for change in changes)
        files = [file for change in changes for file in self._files_of(change, digests)]
        self._log.append(f'{{"changes":[{steps}]}}')
        self._contents.apply(changes)
        self._digests |= digests
        self._note_made(changes)
        with self._lagging():
            for file in files:
                file.put()
            self._mark(lock)
            if self._log.end > _FOLD_ABOVE_BYTES:
                self._fold(lock)

    def _note_made(self, changes: list[Change]) -> None:
        for change in changes:
            match change:
                case Told(event):
                    self._touched.add(event.job_id or "")
                case Gone(job_id):
                    self._touched.add(job_id)
                    if job_id not in self._contents.jobs:
                        self._digests.pop(job_id, None)
                case Document(kind, name):
                    self._touched_documents.add((kind, name))

    def _kept_digests(self, changes: list[Change]) -> dict[str, Digests]:
        """Have the environments of jobs on disk; return the digests by job."""
        digests: dict[str, Digests] = {}
        for change in changes:
            if isinstance(change, Kept):
                job_id, launch = change.stored.record.self_id, change.stored.launch
                known = self._contents.jobs.get(job_id)
                if known is not None and known.launch is launch:
                    digests[job_id] = self._digests[job_id]
                else:
                    digests[job_id] = self._kept(launch.base_env), self._kept(launch.envs)
        return digests

    def _kept(self, env: Environment) -> str:
        """Have the environment on disk; return its digest."""
        if self._last is not None and self._last[0] is env:
            digest, text = self._last[1:]
        else:
            digest, text = environment_text(env)
            self._last = env, digest, text
        if digest not in self._kept_environments:
            path = self._environment_path(digest)
            if _has(path, text.encode()):
                sync([self._environments])  # who has put it there may not have come to that
            else:
                replace(path, text.encode(), is_synced=True)
            self._kept_environments.add(digest)
        return digest

    # The files that follow.

    def _files_of(self, change: Change, digests: dict[str, Digests]) -> Iterator[_File]:
        """Give the files that are other ones with a change."""
        match change:
            case Told(event):
                line = f"{event_text(event)}\n".encode()
                path = self._history_path(log_name(event.job_id or ""))
                yield _File(path, line, is_more=event.previous is not None)
            case Kept(stored):
                job_id = stored.record.self_id
                text = job_text(stored, *digests[job_id], is_for_people=True)
                yield _File(self._job_path(log_name(job_id)), text.encode())
            case Gone(job_id):
                yield _File(self._job_path(log_name(job_id)), None)
                yield _File(self._history_path(log_name(job_id)), None)
            case Document(kind, name, body):
                fields = {"kind": kind, "name": name, "body": body}
                text = json.dumps(fields, ensure_ascii=False, indent=2)
                data = None if body is None else f"{text}\n".encode()
                yield _File(self._documents / f"{_document_name(kind, name)}.json", data)

    def _following(self) -> Iterator[_File]:
        """Give all files that the log tells of, as they are to be."""
        lines: defaultdict[str, list[str]] = defaultdict(list)
        for event in self._contents.history:
            if event.job_id in self._touched:
                lines[event.job_id].append(f"{event_text(event)}\n")
        for job_id in self._touched:
            stored = self._contents.jobs.get(job_id)
            if stored is None:
                yield from self._files_of(Gone(job_id), {})
            else:
                yield from self._files_of(Kept(stored), self._digests)
                told = "".join(lines[job_id]).encode()
                yield _File(self._history_path(log_name(job_id)), told)
        for kind, name in self._touched_documents:
            body = self._contents.documents(kind).get(name)
            yield from self._files_of(Document(kind, name, body), {})

    def _follow(self, lock: int) -> None:
        """Make the files what the log says."""
        with self._lagging():
            for file in self._following():
                file.put_if_other()
            self._mark(lock)

    @contextmanager
    def _lagging(self) -> Iterator[None]:
        """Let the files lag behind where they cannot be written now: the log has it all."""
        try:
            yield
        except OSError as error:
            LOG.warning("the files in %s lag behind its log: %s", self.path, error)

    def _fold(self, lock: int) -> None:
        """Have on disk what the log says, wherever else it stands, and begin the next one."""
        files = list(self._following())
        for file in files:
            file.put_if_other()
        sync(file.path for file in files if file.data is not None)
        sync([*self._folders, self.path])
        self._log.start_anew(self._contents.last_seq)
        self._begin_generation()
        self._mark(lock)
        self._remove_environments()

    def _remove_environments(self) -> None:
        """Remove those that no job was asked for with: there may be secrets in them."""
        used = {digest for digests in self._digests.values() for digest in digests}
        for path in _files(self._environments, ".json"):
            if path.stem not in used:
                path.unlink()

    def _place_in_log(self) -> bytes:
        return b"%020d %020d\n" % (self._log.generation, self._log.end)

    def _read_mark(self, lock: int) -> bytes:
        """Return up to which place in the log the files have followed."""
        return os.pread(lock, 100, 0)

    def _mark(self, lock: int) -> None:
        os.pwrite(lock, self._place_in_log(), 0)

    def _job_path(self, name: str) -> Path:
        return self._jobs / f"{name}.json"

    def _history_path(self, name: str) -> Path:
        return self._history / f"{name}.jsonl"

    def _environment_path(self, digest: str) -> Path:
        return self._environments / f"{digest}.json"


@dataclass(frozen=True, slots=True)
class _File:
    """A file that is to have the data, or to have it behind what it has; None: is to be gone."""

    path: Path
    data: bytes | None
    is_more: bool = False

    def put(self) -> None:
        if self.data is None:
            self.path.unlink(missing_ok=True)
        elif self.is_more:
            append(self.path, self.data)
        else:
            replace(self.path, self.data)

    def put_if_other(self) -> None:
        if self.data is None or not _has(self.path, self.data):
            self.put()


def _has(path: Path, data: bytes) -> bool:
    try:
        return read(path) == data
    except OSError:  # it is not there, or cannot be what it is to be
        return False


def _step_text(change: Change, digests: dict[str, Digests]) -> str:
    """Return a change as it stands in the log."""
    match change:
        case Told(event):
            return f'{{"event":{event_text(event)}}}'
        case Kept(stored):
            text = job_text(stored, *digests[stored.record.self_id], is_for_people=False)
            return f'{{"job":{text}}}'
        case Gone(job_id):
            return json.dumps({"gone": job_id})
        case Document(kind, name, body):
            return json.dumps({"document": [kind, name, body]})


def _steps(commits: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for commit in commits:
        yield from commit["changes"]


def _job_id(step: dict[str, Any]) -> str:
    return str(step["gone"] if "gone" in step else step["job"]["record"]["self_id"])


def _document_name(kind: str, name: str) -> str:
    return log_name(f"{quote(kind, safe='')}/{name}")


def _files(folder: Path, ending: str) -> list[Path]:
    """Return our files in the folder; not those that an editor keeps beside them."""
    names = [name for name in os.listdir(folder) if name.endswith(ending) and name[0] != "."]
    return [folder / name for name in sorted(names)]


def _check_access(folder: Path) -> None:
    """Refuse now what may only be read, not when the first job ends."""
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def _clear_parts(folder: Path) -> None:
    """Remove what writers who died here had not written to its end."""
    for name in os.listdir(folder):
        if name.endswith(PART):
            (folder / name).unlink()


def _all_events(path: Path) -> list[JobEvent]:
    """Return the events of a file that was synced."""
    content = read(path)
    with _damage(path):
        if content and not content.endswith(b"\n"):
            raise ValueError("its last line is not complete")
        return [_event_in(path, line) for line in content.splitlines()]


def _whole_events(path: Path) -> Iterator[JobEvent]:
    """Give the events of a file of which the end may be torn, or never have got to the disk."""
    for line in read(path).splitlines():
        try:
            event = _event_in(path, line)
        except _SENSELESS:
            return
        yield event


def _event_in(path: Path, line: bytes) -> JobEvent:
    event = event_of(json.loads(line))
    if log_name(event.job_id or "") != path.stem:
        raise ValueError(f"it is not named for its job {event.job_id!r}")
    return event


_SENSELESS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What the sense of a text is looked for with, and not found."""


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except _SENSELESS as error:
        raise StoreError(f"{path} is damaged: {error}") from error
