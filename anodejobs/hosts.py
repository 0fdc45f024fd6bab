"""Hosts: several that share a store, each with a lease there that says that it is alive.

What a host had under way that is not heard of in time is declared lost by another one. All times
are by the store's clock; a host's own clock only tells it when to be heard of again.
"""

from __future__ import annotations

import asyncio
import logging

from anodejobs.control import Control
from anodejobs.errands import Errand, Errands, document
from anodejobs.errors import AnodeJobsError
from anodejobs.events import Lost
from anodejobs.jobdb import JobDB
from anodejobs.owner import Owner
from anodejobs.recorder import Recorder
from anodejobs.stores.base import Lease, uptime

LOG = logging.getLogger("anodejobs")

_BEATS = 3
"""How many times in the length of its lease a host is heard of."""
_LONGEST_RETRY_S = 1.0
_LEAST_PATIENCE_S = 5.0
"""How long the store has at least to answer a host that says that it is there."""
_FORGET_EVERY_S = 86400.0


class Hosts:
    """Keeps the lease of this host, ends those of others, and runs their errands.

    In one process of the directory at a time: the one that schedules.
    """

    def __init__(
        self,
        jobdb: JobDB,
        owner: Owner,
        *,
        recorder: Recorder,
        control: Control,
        errands: Errands,
        host: str,
        lasts_s: float,
    ) -> None:
        self._jobdb = jobdb
        self._owner = owner
        self._recorder = recorder
        self._control = control
        self._errands = errands
        self._host = host
        self._lasts_s = lasts_s
        self._every_s = lasts_s / _BEATS
        self._heard_at = float("-inf")
        self._regular_since = float("-inf")
        """Since when this host has been heard of without a gap."""
        self._is_heard = asyncio.Event()
        self._under_way: set[str] = set()
        """The errands that are being run, by the name of their document."""

    async def keep_lease(self) -> None:
        """Be heard of once."""
        await self._jobdb.keep_lease(self._host, self._lasts_s)

    async def serve_lease(self) -> None:
        """Be heard of again and again, until cancelled."""
        while True:
            rest_s = self._every_s
            try:
                # A connection that was lost in silence is not to be waited for.
                async with asyncio.timeout(max(self._every_s, _LEAST_PATIENCE_S)):
                    await self.keep_lease()
                now = uptime()
                if now - self._heard_at > 2 * self._every_s:
                    self._regular_since = now
                self._heard_at = now
                self._is_heard.set()
            except (AnodeJobsError, TimeoutError) as error:
                LOG.error("other hosts may give %s up for lost: %r", self._host, error)
                rest_s = min(rest_s, _LONGEST_RETRY_S)
            await asyncio.sleep(rest_s)

    async def serve_losses(self) -> None:
        """Declare lost who is not heard of, as long as this host is; until cancelled.

        Beside ``serve_lease``: the jobs of a host may be many, and take longer than a lease lasts.
        """
        while True:
            await self._is_heard.wait()
            self._is_heard.clear()
            # Whoever was away itself cannot tell who else was: when a database or a network comes
            # back, all leases may be over. So the others get their time, too.
            if self._heard_at - self._regular_since <= self._lasts_s:
                continue
            try:
                await self._end_leases()
            except AnodeJobsError as error:
                LOG.error("hosts that are silent are not given up yet: %s", error)

    async def _end_leases(self) -> None:
        for lease in await self._jobdb.expired_leases():
            if lease.host != self._host:
                await self._declare_lost(lease)

    async def _declare_lost(self, lease: Lease) -> None:
        """End the lease of a host that is silent, and with it all that it had under way.

        Nothing is done where it is back, or another host is quicker. Should it come back later, it
        finds the errand to end its processes: by then somebody else may run these jobs.
        """
        jobs = await self._jobdb.alive_on(lease.host)
        error = f"its host {lease.host} has not been heard of for {lease.silent_s:.1f} s"
        losses = []
        for job in jobs:
            loss = await self._recorder.concluded(job.record, Lost(error=error))
            assert isinstance(loss, Lost)
            losses.append((job, loss))
        errands = [
            Errand(
                do="stop",
                job_id=job.record.self_id,
                attempt=job.attempt,
                grace=job.launch.stop_grace,
            )
            for job in jobs
        ]
        order = document(lease.host, errands) if errands else None
        if await self._jobdb.end_lease(lease, losses, order):
            LOG.warning("host %s is silent: %s jobs of it are lost", lease.host, len(jobs))

    async def serve_errands(self) -> None:
        """Run what other hosts ask for, as they ask for it; until cancelled."""
        with self._errands.news() as news:
            while True:
                news.clear()
                try:
                    for name, errands in (await self._errands.asked()).items():
                        if name not in self._under_way:
                            self._under_way.add(name)
                            self._owner.own(self._run(name, errands), f"errand {name}")
                except AnodeJobsError as error:
                    LOG.error("what other hosts ask for waits: %s", error)
                    await asyncio.sleep(_LONGEST_RETRY_S)
                    continue
                await news.wait()

    async def serve_forgetting(self) -> None:
        """Forget what hosts are asked for that never come back, now and every day."""
        while True:
            try:
                await self._errands.forget_old()
            except AnodeJobsError as error:
                LOG.error("old errands of hosts that are gone are not all removed: %s", error)
            await asyncio.sleep(_FORGET_EVERY_S)

    async def _run(self, name: str, errands: list[Errand]) -> None:
        works = map(self._control.run_errand, errands)
        try:
            # All of them, whatever becomes of one: it is there still, for when we look again.
            results = await asyncio.gather(*works, return_exceptions=True)
            errors = [result for result in results if result is not None]
            for error in errors:
                LOG.error("what another host asks for could not be done: %r", error)
            if not errors:
                await self._errands.note_done(name)
        except AnodeJobsError as error:
            LOG.error("it cannot be told that an errand was run: %s", error)
        finally:
            self._under_way.discard(name)
