"""One side in an interpreter of its own, so that no subject disturbs another's CPU or memory.

``run_side`` is the parent's half, ``main`` the child's: ``python -m benchmarks.side MODULE SIDE
DIRECTORY SIZE`` prints the side's figures as JSON. A side imports the library it measures when it
is called, not before: the floor's process then carries nothing of anodejobs, and a peer that is
not installed is no error. A module whose sides want another event loop has ``new_loop``.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.rounds import Figures, SideFailedError, SideUnavailableError, Size

Side = Callable[[Path, Size], Awaitable[Figures]]
NewLoop = Callable[[], asyncio.AbstractEventLoop]

LIMIT_S = 300.0
ROOT = Path(__file__).resolve().parent.parent


def prepared_at(place: Path) -> Path:
    """Where a module's ``prepare`` worked, for a side whose directory is MODULE/SUBJECT/SIDE."""
    return place.parent.parent / "prepared"


def run_side(module: str, side: str, place: Path, size: Size) -> Figures:
    """Run a side in a fresh directory and a fresh interpreter; its figures.

    Raises SideUnavailableError, and SideFailedError for whatever else kept it from giving figures.
    """
    place.mkdir(parents=True)
    os.sync()  # what the side before wrote is not to be written back during this one
    argv = [sys.executable, "-m", "benchmarks.side", module, side, str(place), json.dumps(size)]
    try:
        child = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        raise SideFailedError(f"not done after {LIMIT_S:g} s") from None
    if child.returncode:
        raise SideFailedError(_last_line(child.stderr) or f"exit code {child.returncode}")
    answer = json.loads(_last_line(child.stdout))
    if "unavailable" in answer:
        raise SideUnavailableError(answer["unavailable"])
    return {figure: float(value) for figure, value in answer.items()}


def main() -> None:
    name, side, place, size = sys.argv[1:]
    _allow_all_descriptors()
    module = importlib.import_module(f"benchmarks.{name}")
    sides: dict[str, Side] = module.SIDES
    new_loop: NewLoop | None = getattr(module, "new_loop", None)
    print(json.dumps(_measured(sides[side], Path(place), json.loads(size), new_loop)))


def _measured(
    side: Side, place: Path, size: Size, new_loop: NewLoop | None
) -> dict[str, float] | dict[str, str]:
    async def measured() -> Figures:
        return await side(place, size)

    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return dict(runner.run(measured()))
    except SideUnavailableError as why:
        return {"unavailable": str(why)}


def _allow_all_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


if __name__ == "__main__":
    main()
