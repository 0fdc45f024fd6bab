"""``python -m anodejobs.doctor [db_path]``: what here would break the promises, and the remedy.

Each check takes what it reads as arguments and gives a Finding, also where nothing can be known. It
looks, and where looking is not enough it tries: ``doctor_trials``. What anodejobs itself would do
is learnt from its own modules, not written anew here.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import pwd
import re
import resource
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Literal, ParamSpec

from anodejobs import command
from anodejobs import doctor_trials as trials
from anodejobs.errors import one_line
from anodejobs.executors import cgroups, tree
from anodejobs.executors.descriptors import left_for_jobs
from anodejobs.executors.shim_start import command_of
from anodejobs.executors.supervisors import is_locked
from anodejobs.interpreter import interpreter
from anodejobs.shim.draining import left_journals
from anodejobs.shim.journal import load
from anodejobs.shim.peers import ONE_USER, owned_by_another
from anodejobs.stores.sqlite import LONGEST_PATH_BYTES

Level = Literal["ok", "warning", "problem"]
Verdict = tuple[Level, str, str]
Run = Callable[[Sequence[str]], tuple[bool, str]]
"""Runs a command; gives whether it went well, and what it said."""
Looked = ParamSpec("Looked")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found, and what to do about it where there is something to do."""

    name: str
    level: Level
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.level:<8} {self.name}: {self.found}"
        return f"{line}\n         {self.remedy}" if self.remedy else line


def main(argv: Sequence[str]) -> int:
    """Print the findings; return 1 where one of them is a problem."""
    parser = argparse.ArgumentParser(
        prog="python -m anodejobs.doctor",
        description="Say what on this machine would break what anodejobs promises.",
    )
    parser.add_argument("db_path", nargs="?", default="./job_db")
    db_path = Path(os.path.abspath(parser.parse_args(argv).db_path))
    levels = set()
    for finding in examine(db_path):
        # A path may hold what the terminal cannot show.
        encoding = sys.stdout.encoding or "utf-8"
        print(str(finding).encode(encoding, "backslashreplace").decode(encoding), flush=True)
        levels.add(finding.level)
    return 1 if "problem" in levels else 0


def examine(db_path: Path) -> Iterator[Finding]:
    """Give the findings one by one, within a second or, where nobody reaps, a few."""
    proc, us, place = Path("/proc"), Path("/proc/self"), _nearest(db_path)
    yield check_system(sys.platform, platform.release())
    yield check_systemd(
        us / "cgroup", os.environ, run=trials.run, linger=Path("/var/lib/systemd/linger")
    )
    yield check_file_system(place, us / "mountinfo")
    yield check_folder(place, trials.TRIALS)
    yield check_path(db_path / "jobs.db")
    yield check_owner([db_path, db_path / "shim", db_path / "job_logs"], os.geteuid())
    yield check_space(place, os.statvfs)
    yield check_descriptors(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield check_pipes(proc / "sys/fs/pipe-user-pages-soft", us / "status")
    yield check_processes(us, Path("/sys/fs/cgroup"), resource.getrlimit(resource.RLIMIT_NPROC)[0])
    yield check_cgroups(partial(cgroups.parent_for, named=None, is_trial=True))
    yield check_proc(proc)
    yield check_orphans(lambda: trials.orphan(within_s=3.0))
    yield check_subreaper(ctypes.CDLL(None))
    yield check_pidfds(trials.told_code, platform.release())
    yield check_shell("/bin/sh", trials.run)
    yield check_interpreter(interpreter, trials.run)
    yield check_shim(db_path / "shim", trials.held)


def _check(name: str) -> Callable[[Callable[Looked, Verdict]], Callable[Looked, Finding]]:
    """Make a Finding of a verdict, and one of what could not be read or tried."""

    def named(look: Callable[Looked, Verdict]) -> Callable[Looked, Finding]:
        @wraps(look)
        def checked(*args: Looked.args, **kwargs: Looked.kwargs) -> Finding:
            try:
                return Finding(name, *look(*args, **kwargs))
            except (OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
                return Finding(name, "warning", f"cannot be known: {one_line(error)}")

        return checked

    return named


@_check("system")
def check_system(system: str, release: str) -> Verdict:
    """Whether it is the one system on which all the promises hold."""
    if system == "linux":
        return "ok", f"Linux {release}", ""
    found = (
        f"{system} {release} has no pidfds, no subreapers and no /proc. Weaker here: a job "
        "whose shim is killed dies of SIGPIPE when it next writes, and ends lost, without an exit "
        "code; stop() misses what has left its session and dropped its environment; deaths of "
        "processes that are not children are looked for every 0.2 s"
    )
    return "warning", found, "where that matters, run it on Linux"


@_check("systemd")
def check_systemd(cgroup: Path, environ: Mapping[str, str], *, run: Run, linger: Path) -> Verdict:
    """Whether systemd ends shim and jobs with the application, or with the user's session."""
    path = next((p for _, p in _cgroups(cgroup, "name=systemd") if _units(p)), None)
    if path is None:
        if "INVOCATION_ID" not in environ:
            return "ok", "not in a unit of systemd", ""
        found = "in a unit of systemd that cannot be seen from here, nor what its KillMode is"
        return "warning", found, _KILL_MODE
    unit, is_users = _units(path)[-1], "/user@" in path
    if unit.endswith(".service"):
        scope = ["--user"] if is_users else []
        properties = "LoadState,KillMode,TimeoutStopUSec"
        told = _told(run(["systemctl", *scope, "show", "-p", properties, unit]))
        mode, grace = told.get("KillMode"), told.get("TimeoutStopUSec")
        # Of a unit that it does not know, systemctl tells the defaults.
        if mode is None or told.get("LoadState") != "loaded":
            return "warning", f"in {unit}; its KillMode cannot be known here", _KILL_MODE
        if mode not in ("process", "none"):
            found = f"in {unit}: KillMode={mode} ends shim and jobs with it, at most {grace} later"
            return "problem", found, _KILL_MODE
        unit = f"{unit}, KillMode={mode}"
    elif unit.startswith("session-"):
        told = _told(run(["loginctl", "show-session", "-p", "KillUserProcesses"]))
        if told.get("KillUserProcesses") != "no":
            word = "ends" if told else "may end"
            remedy = "KillUserProcesses=no in logind.conf, or a unit of its own for the application"
            return "warning", f"in {unit}; logging out {word} shim and jobs", remedy
    if is_users and not (linger / pwd.getpwuid(os.getuid()).pw_name).exists():
        found = f"in {unit}, of a user manager that ends shim and jobs after the last logout"
        return "warning", found, "loginctl enable-linger"
    return "ok", f"in {unit}", ""


_KILL_MODE = (
    "KillMode=process under [Service] (not mixed, which kills them too); or have the shim started "
    "first by another unit, such as one that only keeps a Jobs open there: it belongs to that one"
)


def _units(path: str) -> list[str]:
    return [part for part in path.split("/") if part.endswith((".service", ".scope"))]


def _cgroups(cgroup: Path, controller: str) -> Iterator[tuple[bool, str]]:
    """Give our paths in cgroups v2, and in the controller's hierarchy of v1; whether it is v1."""
    for line in cgroup.read_text().splitlines():
        _, names, path = line.split(":", 2)
        if not names or controller in names.split(","):
            yield bool(names), path


def _told(answer: tuple[bool, str]) -> dict[str, str]:
    went_well, said = answer
    pairs = (line.partition("=") for line in said.splitlines() if went_well)
    return {name: value for name, _, value in pairs}


@dataclass(frozen=True, slots=True)
class _Mount:
    point: str
    kind: str
    options: frozenset[str]


_SHARED = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs", "gpfs"),
    *("beegfs", "orangefs", "ocfs2", "gfs2", "sshfs", "s3fs", "gcsfuse", "rclone", "davfs"),
}
_PASSING = {"tmpfs", "ramfs", "overlay"}


@_check("file system")
def check_file_system(place: Path, mountinfo: Path) -> Verdict:
    """Whether locks, FIFOs, sockets and SQLite's shared memory can be relied on, and it stays."""
    mount = _mount_of(os.path.realpath(place), mountinfo)
    found = f"{os.fspath(place)!r} is on {mount.kind}, mounted at {mount.point!r}"
    if mount.kind.removeprefix("fuse.") in _SHARED:
        found += "; locks, FIFOs, sockets and SQLite's WAL cannot be relied on over a network"
        return "problem", found, "a db_path on a local disk"
    if mount.kind.startswith("fuse") or mount.kind == "virtiofs":
        found += "; what works there is up to its driver, for `folder` it was tried once"
        return "warning", found, "a db_path on a local disk"
    if mount.kind in _PASSING:
        found += ", which may be gone after a restart, of the machine or of the container"
        return "warning", found, "a db_path on a disk, or on a volume of the container"
    return "ok", found, ""


def _mount_of(path: str, mountinfo: Path) -> _Mount:
    mounts = [_mount(line) for line in os.fsdecode(mountinfo.read_bytes()).split("\n") if line]
    over = [m for m in mounts if f"{path}/".startswith(f"{m.point.rstrip('/')}/")]
    if not over:  # in a chroot whose root is a mere folder
        raise LookupError(f"no mount in {os.fspath(mountinfo)!r} holds {path!r}")
    # The last of those that were mounted at the same place is the one that is seen.
    return sorted(over, key=lambda mount: len(mount.point))[-1]


def _mount(line: str) -> _Mount:
    mounted, _, what = line.partition(" - ")
    fields, kind, options = mounted.split(" "), what.split(" ")[0], what.split(" ")[-1]
    point = cgroups.unescaped(fields[4])
    return _Mount(point, kind, frozenset(f"{fields[5]},{options}".split(",")))


@_check("folder")
def check_folder(place: Path, trials: Mapping[str, Callable[[Path], None]]) -> Verdict:
    """Whether what anodejobs makes in its folder can be made, and works."""
    refused = []
    try:
        with tempfile.TemporaryDirectory(prefix=".anodejobs-doctor-", dir=place) as name:
            for what, trial in trials.items():
                try:
                    trial(Path(name))
                except OSError as error:
                    refused.append(f"no {what} ({one_line(error)})")
    except OSError as error:
        found = f"nothing can be made in {os.fspath(place)!r}: {one_line(error)}"
        return "problem", found, "let the user who runs the application write there"
    if refused:
        found = f"{os.fspath(place)!r} has {', '.join(refused)}"
        return "problem", found, "a db_path on a local disk, with a shorter path if it is long"
    return "ok", f"{os.fspath(place)!r} has {', '.join(trials)}", ""


def _nearest(path: Path) -> Path:
    """Return the path, or what is there of it."""
    return next(p for p in (path, *path.parents) if os.path.exists(p))


@_check("path")
def check_path(database: Path) -> Verdict:
    """Whether the path of the database is short enough for SQLite."""
    size = len(os.fsencode(database))
    if size <= LONGEST_PATH_BYTES:
        return "ok", f"{size} bytes of the {LONGEST_PATH_BYTES} that SQLite takes", ""
    found = f"SQLite takes a path of {LONGEST_PATH_BYTES} bytes at most, and jobs.db has {size}"
    return "problem", found, "a shorter db_path, or another store"


@_check("owner")
def check_owner(folders: Sequence[Path], user: int) -> Verdict:
    """Whether another user could put there what a shim believes, or a link to be written to."""
    for folder in folders:
        try:
            there = os.stat(folder)
        except FileNotFoundError:
            continue
        name = repr(os.fspath(folder))
        if there.st_mode & stat.S_IWOTH:
            return "problem", f"every user can write in {name}", f"chmod go-w {name}"
        if there.st_mode & stat.S_IWGRP:
            return "warning", f"a group can write in {name}", f"chmod go-w {name}"
        if there.st_uid not in (user, 0):
            found = f"{name} belongs to user {there.st_uid}, and this is user {user}"
            return "warning", found, "run the application and this as one user"
    return "ok", "no other user can write in the folder", ""


@_check("space")
def check_space(place: Path, statvfs: Callable[[Path], os.statvfs_result]) -> Verdict:
    """Whether there is room for records and logs."""
    there = statvfs(place)
    free_mib = there.f_bavail * there.f_frsize >> 20
    has_inodes = there.f_files > 0  # some file systems make them as they go
    found = f"{free_mib:,} MiB free" + (f", {there.f_favail:,} inodes" if has_inodes else "")
    if free_mib < 1 or (has_inodes and there.f_favail < 10):
        return "problem", f"{found}: nothing can be recorded", "make room"
    if free_mib < 100 or (has_inodes and there.f_favail < 10_000):
        return "warning", found, "make room, or limit the logs: log_max_bytes, delete()"
    return "ok", found, ""


@_check("descriptors")
def check_descriptors(soft: int, hard: int) -> Verdict:
    """For how many running jobs there are descriptors."""
    if soft == resource.RLIM_INFINITY:
        return "ok", "no limit", ""
    # Two pipes and a pidfd; log files are closed when idle.
    found = f"{soft:,} a process, for about {left_for_jobs(soft) // 3:,} running jobs"
    if soft >= 4096:
        return "ok", found, ""
    most = "unlimited" if hard == resource.RLIM_INFINITY else hard
    remedy = f"ulimit -n (up to {most}), LimitNOFILE= in the unit, docker run --ulimit nofile="
    return "warning", found, remedy


_PAGES = 2 * 16  # of a job's two pipes
_SYS_PTRACE, _SYS_ADMIN, _SYS_RESOURCE = 19, 21, 24


@_check("pipes")
def check_pipes(soft_pages: Path, status: Path) -> Verdict:
    """For how many running jobs a user has pipes of the full size."""
    pages = int(soft_pages.read_text())
    if pages == 0 or _is_capable(status, _SYS_ADMIN, _SYS_RESOURCE):
        return "ok", "all of the full size", ""
    found = f"of the full size for {pages // _PAGES:,} running jobs; then smaller, and jobs that "
    found += "write much wait more often"
    if pages < 512 * _PAGES:
        return "warning", found, "sysctl fs.pipe-user-pages-soft=16384, or more"
    return "ok", found, ""


def _is_capable(status: Path, *capabilities: int) -> bool:
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return any(int(fields["CapEff"], 16) >> bit & 1 for bit in capabilities)


@_check("processes")
def check_processes(us: Path, cgroups: Path, most_of_user: int) -> Verdict:
    """How many processes may be started yet."""
    limits = [*_pids_limits(us / "cgroup", cgroups)]
    if most_of_user != resource.RLIM_INFINITY and not _is_capable(
        us / "status", _SYS_ADMIN, _SYS_RESOURCE
    ):
        limits.append((most_of_user, f"the user may have {most_of_user:,}"))
    if not limits:
        return "ok", "no limit but the machine's", ""
    room, found = min(limits)
    if room < 1024:
        remedy = "TasksMax= in the unit, docker run --pids-limit, or ulimit -u"
        return "problem" if room < 32 else "warning", found, remedy
    return "ok", found, ""


def _pids_limits(cgroup: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Give the room in each group that we are in, with the sentence that tells it."""
    for is_v1, path in _cgroups(cgroup, "pids"):
        base = root / ("pids" if is_v1 else "unified" if (root / "unified").exists() else "")
        group = base / path.strip("/")
        for folder in (f for f in (group, *group.parents) if f.is_relative_to(base)):
            with suppress(FileNotFoundError):
                limit, used = ((folder / f"pids.{what}").read_text() for what in ("max", "current"))
                if limit.strip() != "max":
                    room = int(limit) - int(used)
                    yield room, f"{int(used):,} of {int(limit):,} in {os.fspath(folder)!r}"


@_check("cgroups")
def check_cgroups(parent_for: Callable[[set[str]], Path]) -> Verdict:
    """Whether memory, processors and tasks of whole jobs can be limited."""
    try:
        folder = parent_for({"memory", "cpu", "pids"})
    except ValueError as error:
        found = f"jobs with memory_max, cpus or tasks_max fail to start: {error}"
        remedy = "where cgroup v1 is in use: boot with systemd.unified_cgroup_hierarchy=1"
        return "warning", found, remedy
    return "ok", f"jobs can be limited as wholes, below {os.fspath(folder)!r}", ""


@_check("proc")
def check_proc(proc: Path) -> Verdict:
    """Whether the processes of jobs can be seen."""
    if tree.IS_LINUX and not (proc / "sys/kernel/random/boot_id").exists():
        found = "there is no full /proc, by which processes are recognised"
        return "problem", found, "mount -t proc proc /proc, without subset=pid"
    options = _mount_of("/proc", proc / "self/mountinfo").options
    hiding = {o for o in options if re.fullmatch("hidepid=(?!0|off).*", o)}
    if hiding and not _is_capable(proc / "self/status", _SYS_PTRACE):
        found = f"{hiding.pop()}: what a job runs as another user (sudo) is neither seen nor ended"
        return "warning", found, "mount -o remount,hidepid=0 /proc, if jobs change their user"
    return "ok", "all processes can be seen", ""


@_check("orphans")
def check_orphans(make: Callable[[], tuple[int, str, bool]]) -> Verdict:
    """Whether dead orphans are reaped, such as shims and the jobs of a shim that was killed."""
    pid, name, is_reaped = make()
    if is_reaped:
        return "ok", f"{name} (pid {pid}) reaps them", ""
    found = (
        f"{name} (pid {pid}) gets them and does not reap them: each holds its pid for ever, and "
        "the jobs of a shim that is killed end lost, without an exit code"
    )
    return "problem", found, "docker run --init, or tini as the first process of the container"


@_check("subreaper")
def check_subreaper(libc: ctypes.CDLL) -> Verdict:
    """Whether a shim can be handed what its jobs leave behind."""
    if not hasattr(libc, "prctl"):
        raise OSError("this system has no prctl")
    if libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(ctypes.c_int())) == 0:
        return "ok", "a shim gets what its jobs leave behind", ""
    found = "refused: what jobs leave behind goes to PID 1, and only what bears a mark is ended"
    return "warning", found, "allow prctl(PR_SET_CHILD_SUBREAPER) in the sandbox"


_PR_GET_CHILD_SUBREAPER = 37


@_check("pidfds")
def check_pidfds(tell: Callable[[], int | None], release: str) -> Verdict:
    """Whether processes can be got hold of, and their exit codes by who is not their parent."""
    try:
        code = tell()
    except OSError as error:
        found = f"{one_line(error)}: processes are polled, and known by their start time only"
        level: Level = "problem" if tree.IS_LINUX else "warning"
        return level, found, "Linux 5.3, with pidfd_open allowed in the sandbox (seccomp)"
    if code != trials.CODE:
        found = f"kernel {release} does not tell their exit codes: jobs of a killed shim end lost"
        return "warning", found, "Linux 6.15, which tells them"
    return "ok", "there, and tell exit codes to others than the parent", ""


@_check("shell")
def check_shell(shell: str, run: Run) -> Verdict:
    """Whether commands that are strings can be run, and a shim be started."""
    went_well, said = run([shell, "-c", "exit 0"])
    if went_well:
        return "ok", f"{shell} works", ""
    return "problem", f"{shell} does not work: {said}", "install a shell; no job starts without"


@_check("interpreter")
def check_interpreter(find: Callable[[], str], run: Run) -> Verdict:
    """Whether the Python that a shim is started with can be one."""
    remedy = "run the application with a python that starts with -I -S, or use executor='inline'"
    code = "import sys; sys.dont_write_bytecode = True; import anodejobs.shim.main"
    code += "" if tree.IS_LINUX else ", psutil"
    try:
        python = find()
        went_well, said = run(command_of(code, python))
    except OSError as error:
        return "problem", f"no shim can be started: {one_line(error)}", remedy
    if went_well:
        return "ok", f"{python!r} can be a shim", ""
    return "problem", f"{python!r} cannot be a shim: {said}", remedy


@_check("shim")
def check_shim(folder: Path, held: Callable[[Path], int]) -> Verdict:
    """Whether the shim that works in the folder answers, or what the last one left behind."""
    if folder.exists() and (found := owned_by_another(folder)) is not None:
        return "problem", found, ONE_USER
    if not (folder / "lock").exists():
        return "ok", f"none has worked in {os.fspath(folder)!r}", ""
    with open(folder / "lock", "r+") as lock:
        pid = lock.readline().strip()
    if not is_locked(folder / "lock"):
        journals = (folder / "journal", *left_journals(folder))
        left = sum(len(load(journal)) for journal in journals)
        if left:
            found = f"none runs; attempts that the last one left to look after: {left}"
            return "warning", found, "open a Jobs on the directory: the next shim takes them on"
        return "ok", "none runs, and the last one left nothing to do", ""
    if not pid.isdecimal() or tree.start_time(int(pid)) is None:
        found = f"pid {pid} holds the lock and cannot be seen from here"
        return "problem", found, "one directory for each machine and each container"
    try:
        return "ok", f"pid {pid} answers; attempts that it looks after: {held(folder)}", ""
    except OSError as error:
        found = f"pid {pid} holds the lock and does not answer: {one_line(error)}"
        remedy = f"see {os.fspath(folder / 'log')!r}; kill -9 {pid}: its jobs run on, with another"
        return "problem", found, remedy


if __name__ == "__main__":
    command.run(main)
