"""Limits this process and becomes another program: for systems that lack the tools for that.

Run as a text, by an interpreter that imports little else; ``limits.py`` says how it is called and
knows what it says where the program cannot be executed.
"""

import os
import resource
import sys


def main() -> None:
    """Set what the arguments before ``--`` say, then execute what follows it."""
    end = sys.argv.index("--")
    settings, argv = dict(arg.split("=", 1) for arg in sys.argv[1:end]), sys.argv[end + 1 :]
    environment = _given_environment()
    try:
        _limit(settings)
        os.execvpe(argv[0], argv, environment)
    except FileNotFoundError as error:
        _refuse(argv[0], error, code=127)
    except (OSError, ValueError) as error:
        _refuse(argv[0], error, code=126)


def _given_environment() -> dict[bytes, bytes]:
    """Return what we were given: in a plain locale Python adds a variable of its own at its start.

    Where the system does not tell, that one stays. Asked later, as another user, it tells nothing.
    """
    try:
        with open("/proc/self/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return dict(os.environb)
    pairs = (entry.partition(b"=") for entry in entries if b"=" in entry)
    return {name: value for name, _, value in pairs}


def _limit(settings: dict[str, str]) -> None:
    """Limit first and give up privileges last: without them less would be allowed."""
    if "cgroup" in settings:
        _enter(settings["cgroup"])
    for name, value in settings.items():
        if name.startswith("RLIMIT_"):
            soft, hard = map(int, value.split(":"))
            resource.setrlimit(getattr(resource, name), (soft, hard))
    if "nice" in settings:
        os.nice(int(settings["nice"]))
    if "groups" in settings:
        os.setgroups([int(gid) for gid in settings["groups"].split(",") if gid])
    if "gid" in settings:
        os.setgid(int(settings["gid"]))
    if "uid" in settings:
        os.setuid(int(settings["uid"]))


def _enter(cgroup: str) -> None:
    try:
        with open(f"{cgroup}/cgroup.procs", "wb", buffering=0) as file:
            file.write(b"0")
    except OSError as error:
        raise ValueError(f"{error.strerror} to enter the cgroup {cgroup}") from None


def _refuse(program: str, error: OSError | ValueError, *, code: int) -> None:
    reason = error.strerror if isinstance(error, OSError) else error
    print(f"limited: failed to execute {program}: {reason}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
