"""One of the hosts that share a database: ``python -m benchmarks.hosts_host DIRECTORY URL SLOTS
RECOVERY_TIMEOUT`` starts what is queued, until SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from anodejobs import Jobs
from anodejobs.executors import shim

LINGER_S = 0.2
"""Short, so that a shim that stays is found out."""


async def serve(directory: str, url: str, slots: int, recovery_timeout: float) -> None:
    is_asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, is_asked.set)
    async with Jobs(
        directory,
        store=url,
        max_concurrent_jobs=slots,
        recovery="pending",
        recovery_timeout=recovery_timeout,
    ):
        print("ready", flush=True)
        await is_asked.wait()


def main() -> None:
    directory, url, slots, recovery_timeout = sys.argv[1:]
    shim.LINGER_S = LINGER_S
    asyncio.run(serve(directory, url, int(slots), float(recovery_timeout)))


if __name__ == "__main__":
    main()
