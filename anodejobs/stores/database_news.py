"""How a process learns that another one has committed to the same database."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

from anodejobs.errors import StoreError
from anodejobs.stores.database_server import Server
from anodejobs.stores.database_sql import Statement

LOG = logging.getLogger("anodejobs")

POLL_S: Final = 0.5
"""How often MySQL is asked."""
_STILL_THERE_S: Final = 30.0
"""How long a connection may be silent before it is asked whether it is one."""
_RECONNECT_S: Final = 1.0
_SCHEMA: Final = (
    "SELECT nspname::text FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
    " WHERE pg_class.oid = to_regclass('anodejobs_counters')"
)


class News(ABC):
    """Tells of the commits of others, from ``open`` to ``close``."""

    def __init__(
        self, server: Server, token: str, own_turn: asyncio.Lock, on_foreign: Callable[[], None]
    ) -> None:
        self._server = server
        self._token = token
        self._own_turn = own_turn
        self._on_foreign = on_foreign
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Listen: what is committed from now on is told."""
        await self._start()
        # In no task group: a store is opened and closed by whom it likes. It ends with `close`, and
        # what goes wrong in it is recorded in it.
        self._task = asyncio.create_task(self._serve(), name="anodejobs news of other processes")

    async def close(self) -> None:
        """Listen no more. Idempotent."""
        task, self._task = self._task, None
        while task is not None and not task.done():
            task.cancel()  # again, where a driver took it for an error
            await asyncio.wait([task], timeout=1)
        await self._stop()

    async def _serve(self) -> None:
        while True:
            try:
                await self._run()
            except Exception:
                LOG.exception("%s: the news of other processes broke off", self._server.place)
                await asyncio.sleep(_RECONNECT_S)

    ring: Statement = ("", ())
    """What a transaction is to select, so that others are told of it once it is committed."""

    @abstractmethod
    def note_own(self, turn: int) -> None:
        """Take note that a transaction of this number was our own."""

    @abstractmethod
    async def _start(self) -> None:
        """Make what comes from now on known to ``_run``."""

    @abstractmethod
    async def _run(self) -> None:
        """Tell, until cancelled."""

    @abstractmethod
    async def _stop(self) -> None:
        """Let go of what ``_start`` took."""


class Notifications(News):
    """PostgreSQL pushes them, over a connection of their own, which is made anew when lost."""

    def __init__(
        self, server: Server, token: str, own_turn: asyncio.Lock, on_foreign: Callable[[], None]
    ) -> None:
        super().__init__(server, token, own_turn, on_foreign)
        self._connection: Any = None
        self._channel = ""
        self._lost = asyncio.Event()

    def note_own(self, turn: int) -> None:
        """Do nothing: what we tell ourselves bears our token."""

    async def _start(self) -> None:
        # Databases have their own channels, but the schemas of one have not. It is the tables' own:
        # with another user, or another search_path, the current one may be another.
        ((schema,),) = await self._server.read(_SCHEMA)
        self._channel = f"anodejobs_{hashlib.sha256(str(schema).encode()).hexdigest()[:16]}"
        # Told once, however many rows it is selected with.
        self.ring = (", pg_notify(?, ?)", (self._channel, self._token))
        await self._connect()

    async def _connect(self) -> None:
        self._lost.clear()
        self._connection = await self._server.listening_connection()
        raw = (await self._connection.get_raw_connection()).driver_connection
        raw.add_termination_listener(lambda *_: self._lost.set())
        await raw.add_listener(self._channel, self._hear)

    def _hear(self, connection: object, pid: int, channel: str, token: object) -> None:
        if token != self._token:
            self._on_foreign()

    async def _run(self) -> None:
        while True:
            while await self._is_still_there():
                pass
            LOG.warning("%s: the connection that listens was lost", self._server.place)
            await self._stop()
            await self._reconnect()
            self._on_foreign()  # who knows what was said meanwhile

    async def _is_still_there(self) -> bool:
        """Return False once the connection is lost; also one whose other end went silently."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STILL_THERE_S):
                await self._lost.wait()
                return False
        try:
            async with asyncio.timeout(_STILL_THERE_S):
                await self._connection.exec_driver_sql("SELECT 1")
        except Exception:  # whatever it is: a connection that cannot say 1 is none
            return False
        return True

    async def _reconnect(self) -> None:
        while True:
            try:
                await self._connect()
                return
            except Exception as error:  # to be told of what others do is worth any patience
                LOG.debug("%s cannot be listened to yet: %s", self._server.place, error)
                await self._stop()
            await asyncio.sleep(_RECONNECT_S)

    async def _stop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # Not back to the others: it goes on to listen.
            with contextlib.suppress(Exception):
                await connection.invalidate()
            with contextlib.suppress(Exception):
                await connection.close()


class Polling(News):
    """MySQL pushes nothing, so it is asked, here and nowhere else, how many transactions were.

    Only while the store is open; what another process commits is known ``POLL_S`` later at most.
    """

    def __init__(
        self, server: Server, token: str, own_turn: asyncio.Lock, on_foreign: Callable[[], None]
    ) -> None:
        super().__init__(server, token, own_turn, on_foreign)
        self._known = 0

    def note_own(self, turn: int) -> None:
        if turn > self._known + 1:
            self._on_foreign()
        self._known = max(self._known, turn)

    async def _start(self) -> None:
        self._known = await self._turn()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                # Not while we commit: it would be taken for somebody else's.
                async with self._own_turn:
                    self._look(await self._turn())
            except StoreError as error:
                LOG.debug("%s cannot be asked for news: %s", self._server.place, error)

    async def _stop(self) -> None:
        """Do nothing: no connection is held."""

    def _look(self, turn: int) -> None:
        if turn > self._known:
            self._known = turn
            self._on_foreign()

    async def _turn(self) -> int:
        sql = "SELECT value FROM anodejobs_counters WHERE name = 'turn'"
        ((turn,),) = await self._server.read(sql)
        return int(turn)
