"""Errands: what the hosts that share a store ask of each other.

A host alone can reach the processes of its jobs. Whoever wants one of them signalled or ended keeps
that as a document, of which the host is told as of everything that is written; it removes the
document when that is done. So an errand outlives whoever asked, and waits for a host that is away:
for thirty days, by wall clocks that need not agree any better than that. A host that is away for
longer is taken to be gone for good, as a container would be, with all of its processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from anodejobs.events import Attempt
from anodejobs.jobdb import JobDB

_KEPT_S = 30 * 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """What is to be done to an attempt by the host that runs it: once, or twice if it crashes."""

    do: Literal["stop", "signal"]
    job_id: str
    attempt: Attempt
    grace: float = 0.0
    signum: int = 0


def document(host: str, errands: Sequence[Errand]) -> tuple[str, str, str]:
    """Return the kind, name and body of the document that asks a host for these."""
    name = f"{_name_at(time.time_ns())} {os.urandom(8).hex()}"
    return _kind(host), name, json.dumps([_to_json(errand) for errand in errands])


class Errands:
    """Asks other hosts, and tells what they ask of this one."""

    def __init__(self, jobdb: JobDB, host: str) -> None:
        self._jobdb = jobdb
        self._host = host
        self._heeding: set[asyncio.Event] = set()
        jobdb.on_foreign.append(self._heed)

    async def ask(self, host: str, errand: Errand, until: asyncio.Future[Any]) -> None:
        """Have another host do something; return once it has, or ``until`` is done.

        Cancelling does not take it back.
        """
        kind, name, body = document(host, [errand])
        with self.news() as news:
            until.add_done_callback(lambda _: news.set())
            await self._jobdb.put_document(kind, name, body)
            while not until.done():
                news.clear()
                if name not in await self._jobdb.documents(kind):
                    return
                await news.wait()
        await self._jobdb.put_document(kind, name, None)

    async def asked(self) -> dict[str, list[Errand]]:
        """Return what this host is asked for and has not done, by the name of the document."""
        found = {}
        for name, body in (await self._jobdb.documents(_kind(self._host))).items():
            with contextlib.suppress(KeyError, TypeError, ValueError):  # of a newer anodejobs
                found[name] = [_from_json(fields) for fields in json.loads(body)]
        return found

    async def note_done(self, name: str) -> None:
        """Tell whoever asks that it was done."""
        await self._jobdb.put_document(_kind(self._host), name, None)

    async def forget_old(self) -> None:
        """Ask nothing more of other hosts that they have not done in a long time."""
        oldest = _name_at(time.time_ns() - _KEPT_S * 10**9)
        for kind in await self._jobdb.document_kinds():
            if kind.startswith(_kind("")) and kind != _kind(self._host):
                for name in await self._jobdb.documents(kind):
                    if name < oldest:
                        await self._jobdb.put_document(kind, name, None)

    @contextmanager
    def news(self) -> Iterator[asyncio.Event]:
        """Give an event that is set whenever another process has written something."""
        event = asyncio.Event()
        self._heeding.add(event)
        try:
            yield event
        finally:
            self._heeding.discard(event)

    def _heed(self) -> None:
        for event in self._heeding:
            event.set()


def _kind(host: str) -> str:
    return f"errand of {host}"


def _name_at(moment_ns: int) -> str:
    """Return how the names of the documents of a moment begin."""
    return f"{moment_ns:020}"


def _to_json(errand: Errand) -> dict[str, Any]:
    return {**asdict(errand), "attempt": errand.attempt.to_json()}


def _from_json(fields: dict[str, Any]) -> Errand:
    return Errand(**{**fields, "attempt": Attempt.from_json(fields["attempt"])})
