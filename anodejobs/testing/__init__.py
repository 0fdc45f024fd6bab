"""The contract of a store, as tests that you can put a store of your own to.

    class TestMyStore(DurableStoreContract):
        async def make_store(self, folder: Path) -> JobStore:
            return MyStore(folder / "jobs.db")

Needs pytest and pytest-asyncio, so nothing else in the package imports this one. For asserts
that say what they saw, put ``pytest.register_assert_rewrite("anodejobs.testing")`` in a conftest.
"""

from __future__ import annotations

from anodejobs.testing.durable import DurableStoreContract
from anodejobs.testing.made import (
    NOON,
    make_attempt,
    make_insert,
    make_launch,
    make_record,
    make_save,
)
from anodejobs.testing.shared import SharedStoreContract
from anodejobs.testing.store import StoreContract
from anodejobs.testing.suite import PATIENCE_S

__all__ = [
    "NOON",
    "PATIENCE_S",
    "DurableStoreContract",
    "SharedStoreContract",
    "StoreContract",
    "make_attempt",
    "make_insert",
    "make_launch",
    "make_record",
    "make_save",
]
