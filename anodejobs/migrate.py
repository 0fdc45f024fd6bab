"""``python -m anodejobs.migrate SOURCE TARGET``: what ``anodejobs.migrate`` does, as a command.

The function and this module have one name, so that the module can be called like it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from types import ModuleType

from anodejobs import command
from anodejobs.errors import AnodeJobsError
from anodejobs.migration import migrate

_WIDTH = 40


class _Command(ModuleType):
    __call__ = staticmethod(migrate)


sys.modules[__name__].__class__ = _Command


def main(argv: Sequence[str]) -> int:
    """Migrate, with a bar on stderr; print what is in both. Return 1 where it failed."""
    parser = argparse.ArgumentParser(
        prog="python -m anodejobs.migrate",
        description="Copy all jobs, their history, schedules and templates to an empty store, and "
        "compare the two. When it is interrupted, call it again: it goes on.",
        epilog="A password is better kept in ~/.pgpass or PGPASSWORD than in a URL here: every "
        "user of the machine can see the arguments of a command.",
    )
    what = "the URL of a store, or a db_path"
    parser.add_argument("source", metavar="SOURCE", help=f"{what}; it is only read")
    parser.add_argument("target", metavar="TARGET", help=what)
    options = parser.parse_args(argv)
    bar = _Bar()
    try:
        done = asyncio.run(migrate(options.source, options.target, on_progress=bar.show))
    except AnodeJobsError as error:
        bar.end()
        print(f"not migrated: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        bar.end()
        print("interrupted; call it again to go on", file=sys.stderr)
        return 130
    bar.end()
    for what, count in (
        ("jobs", done.jobs),
        ("events", done.events),
        ("documents", done.documents),
    ):
        print(f"{count:>12,} {what:<9} in both, sha256 {done.checksums[what]}")
    return 0


class _Bar:
    """A line of text on stderr, drawn anew where that is a terminal; else one for each tenth."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._shown = -1

    def show(self, done: int, total: int) -> None:
        percent = 100 * done // total if total else 100
        if percent // (1 if self._is_terminal else 10) == self._shown:
            return
        self._shown = percent // (1 if self._is_terminal else 10)
        filled = "#" * (_WIDTH * percent // 100)
        start, end = ("\r", "") if self._is_terminal else ("", "\n")
        print(f"{start}[{filled:.<{_WIDTH}}] {percent:3} %", end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Go on in the next line."""
        if self._is_terminal and self._shown >= 0:
            print(file=sys.stderr)


if __name__ == "__main__":
    command.run(main)
