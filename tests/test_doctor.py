"""What the doctor finds, from what it is given to read; and that it leaves no trace."""

from __future__ import annotations

import ctypes
import fcntl
import io
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from anodejobs import Jobs, doctor, doctor_trials
from anodejobs.executors import shim, tree
from anodejobs.interpreter import interpreter

from .conftest import has_died, locker, python

pytestmark = pytest.mark.outer

CHECKS = [
    *("system", "systemd", "file system", "folder", "path", "owner", "space", "descriptors"),
    *(
        "pipes",
        "processes",
        "cgroups",
        "proc",
        "orphans",
        "subreaper",
        "pidfds",
        "shell",
        "interpreter",
        "shim",
    ),
]
ORDINARY = "CapEff:\t0000000000000000\n"
"""Of /proc/self/status, for a user without privileges."""
MIGHTY = "CapEff:\t000001ffffffffff\n"


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# The whole.


@pytest.fixture(scope="module")
def examined(tmp_path_factory):
    """Run the doctor as its users do, in an empty folder and in a session of its own, once."""
    folder = tmp_path_factory.mktemp("examined")
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "anodejobs.doctor"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        told, _ = process.communicate(timeout=60)
    return SimpleNamespace(folder=folder, process=process, told=told)


@pytest.fixture
def orphans_at_once(monkeypatch):
    """Make no orphan: the first process may take seconds to reap it."""
    monkeypatch.setattr(doctor_trials, "orphan", lambda within_s: (1, "init", True))


def test_the_command_prints_a_line_for_each_check_and_exits_by_the_worst(examined):
    lines = [line for line in examined.told.splitlines() if not line.startswith(" " * 9)]
    assert [line[9:].partition(":")[0] for line in lines] == CHECKS
    levels = {line[:9].strip() for line in lines}
    assert levels <= {"ok", "warning", "problem"}
    assert examined.process.returncode == ("problem" in levels)


def test_the_command_leaves_no_file_and_makes_no_db_path(examined):
    assert list(examined.folder.iterdir()) == []


def test_the_command_leaves_no_process(examined):
    seen = tree.take_snapshot().processes.values()
    assert [process for process in seen if process.session == examined.process.pid] == []


def test_a_db_path_that_is_there_is_tried_and_stays_empty(tmp_path, capsys, orphans_at_once):
    doctor.main([os.fspath(tmp_path)])
    assert f"folder: {os.fspath(tmp_path)!r} has locks" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_problem_gives_exit_status_1_and_its_remedy_in_a_line_of_its_own(
    tmp_path, capsys, orphans_at_once
):
    file = written(tmp_path / "file", "")
    assert doctor.main([os.fspath(file / "job_db")]) == 1
    found, remedy = capsys.readouterr().out.partition("problem  folder: ")[2].splitlines()[:2]
    assert found.startswith(f"nothing can be made in {os.fspath(file)!r}: Not a directory")
    assert remedy == "         let the user who runs the application write there"


def test_warnings_give_exit_status_0(monkeypatch, tmp_path, capsys):
    found = [doctor.Finding("one", "ok", "well"), doctor.Finding("two", "warning", "so-so", "do")]
    monkeypatch.setattr(doctor, "examine", lambda db_path: iter(found))
    assert doctor.main([os.fspath(tmp_path)]) == 0
    assert capsys.readouterr().out == "ok       one: well\nwarning  two: so-so\n         do\n"


def test_a_path_that_the_terminal_cannot_show_is_shown_somehow(monkeypatch):
    bare = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    found = doctor.Finding("one", "ok", "/srv/\xe4\udcff")
    monkeypatch.setattr(doctor, "examine", lambda db_path: iter([found]))
    monkeypatch.setattr(sys, "stdout", bare)
    doctor.main([])
    assert bare.buffer.getvalue() == b"ok       one: /srv/\\xe4\\udcff\n"


NOTHING = Path("/nonexistent")


@pytest.mark.parametrize(
    "look",
    [
        lambda: doctor.check_systemd(NOTHING, {}, run=failing, linger=NOTHING),
        lambda: doctor.check_file_system(NOTHING, NOTHING),
        lambda: doctor.check_space(NOTHING, os.statvfs),
        lambda: doctor.check_pipes(NOTHING, NOTHING),
        lambda: doctor.check_processes(NOTHING, NOTHING, 100),
        lambda: doctor.check_orphans(lambda: 1 // len(os.listdir(NOTHING))),
        lambda: doctor.check_subreaper(SimpleNamespace()),
    ],
)
def test_what_is_missing_is_said_to_be_unknown(look):
    finding = look()
    assert finding.level == "warning"
    assert finding.found.startswith("cannot be known: ")


def test_nonsense_is_said_to_be_unknown(tmp_path):
    nonsense = written(tmp_path / "nonsense", "nonsense\n")
    finding = doctor.check_pipes(nonsense, nonsense)
    assert finding.level == "warning"
    assert finding.found.startswith("cannot be known: ")


# The system.


def test_linux_is_well():
    assert doctor.check_system("linux", "6.18").level == "ok"


def test_macos_is_told_which_promises_are_weaker():
    finding = doctor.check_system("darwin", "23.1")
    assert finding.level == "warning"
    assert "SIGPIPE" in finding.found and "lost" in finding.found
    assert "Linux" in finding.remedy


# systemd.


def failing(argv):
    return False, "no such program"


def told(**properties):
    """Return what runs nothing, and says this."""
    said = "".join(f"{name}={value}\n" for name, value in properties.items())
    return lambda argv: (True, said)


def in_unit(tmp_path, path, run, environ=None):
    cgroup = written(tmp_path / "cgroup", f"0::{path}\n")
    return doctor.check_systemd(cgroup, environ or {}, run=run, linger=tmp_path / "linger")


SERVICE = "/system.slice/app.service"
IN_MANAGER = "/user.slice/user-0.slice/user@0.service/app.slice/app.service"


def test_outside_of_a_unit_all_is_well(tmp_path):
    assert in_unit(tmp_path, "/", failing).level == "ok"


def test_a_unit_that_cannot_be_seen_is_a_warning(tmp_path):
    finding = in_unit(tmp_path, "/", failing, {"INVOCATION_ID": "ab12"})
    assert finding.level == "warning"
    assert "KillMode=process" in finding.remedy


@pytest.mark.parametrize("mode", ["control-group", "mixed"])
def test_a_unit_that_kills_its_whole_group_is_a_problem(tmp_path, mode):
    run = told(LoadState="loaded", KillMode=mode, TimeoutStopUSec="1min 30s")
    finding = in_unit(tmp_path, SERVICE, run)
    assert finding.level == "problem"
    assert f"app.service: KillMode={mode}" in finding.found and "1min 30s" in finding.found
    assert "KillMode=process" in finding.remedy


def test_a_unit_that_kills_its_main_process_only_is_well(tmp_path):
    run = told(LoadState="loaded", KillMode="process", TimeoutStopUSec="1min 30s")
    assert in_unit(tmp_path, SERVICE, run).level == "ok"


def test_a_unit_that_is_found_in_the_older_hierarchy_counts_too(tmp_path):
    cgroup = written(tmp_path / "cgroup", f"8:pids:/x.service\n1:name=systemd:{SERVICE}\n0::/\n")
    run = told(LoadState="loaded", KillMode="mixed")
    finding = doctor.check_systemd(cgroup, {}, run=run, linger=tmp_path)
    assert finding.level == "problem"
    assert "app.service" in finding.found


def test_without_systemctl_the_unit_is_named_and_its_kill_mode_unknown(tmp_path):
    finding = in_unit(tmp_path, SERVICE, failing)
    assert finding.level == "warning"
    assert finding.found == "in app.service; its KillMode cannot be known here"


def test_the_defaults_of_a_unit_that_systemctl_does_not_know_are_not_believed(tmp_path):
    run = told(LoadState="not-found", KillMode="control-group", TimeoutStopUSec="1min 30s")
    assert in_unit(tmp_path, SERVICE, run).level == "warning"


def test_a_unit_of_a_user_is_asked_of_the_users_manager(tmp_path):
    asked = []

    def run(argv):
        asked.append(argv)
        return True, "LoadState=loaded\nKillMode=control-group\n"

    assert in_unit(tmp_path, IN_MANAGER, run).level == "problem"
    assert asked[0][:3] == ["systemctl", "--user", "show"]


def test_a_user_who_does_not_linger_is_warned(tmp_path):
    finding = in_unit(tmp_path, IN_MANAGER, told(LoadState="loaded", KillMode="process"))
    assert finding.level == "warning"
    assert finding.remedy == "loginctl enable-linger"


def test_a_user_who_lingers_is_well(tmp_path):
    written(tmp_path / "linger" / doctor.pwd.getpwuid(os.getuid()).pw_name, "")
    run = told(LoadState="loaded", KillMode="process")
    assert in_unit(tmp_path, IN_MANAGER, run).level == "ok"


@pytest.mark.parametrize(
    ("run", "level"),
    [
        (told(KillUserProcesses="no"), "ok"),
        (told(KillUserProcesses="yes"), "warning"),
        (failing, "warning"),
    ],
    ids=["no", "yes", "unknown"],
)
def test_a_session_ends_what_logind_ends(tmp_path, run, level):
    assert in_unit(tmp_path, "/user.slice/user-0.slice/session-3.scope", run).level == level


def test_the_scope_of_a_container_is_well(tmp_path):
    assert in_unit(tmp_path, "/system.slice/docker-12ab.scope", failing).level == "ok"


# The file system.


def on(tmp_path, place, *mounts):
    lines = ["1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"]
    lines += [f"2 1 0:9 / {point} rw - {kind} source rw,a=b" for point, kind in mounts]
    mountinfo = written(tmp_path / "mountinfo", "\n".join(lines) + "\n")
    return doctor.check_file_system(Path(place), mountinfo)


def test_a_local_disk_is_well(tmp_path):
    finding = on(tmp_path, "/srv/db", ("/srv2", "nfs4"))
    assert finding.level == "ok"
    assert finding.found == "'/srv/db' is on ext4, mounted at '/'"


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "glusterfs", "ceph", "lustre"]
)
def test_a_network_file_system_is_a_problem(tmp_path, kind):
    finding = on(tmp_path, "/srv/db", ("/srv", kind))
    assert finding.level == "problem"
    assert kind in finding.found


@pytest.mark.parametrize("kind", ["fuse.mergerfs", "fuseblk", "virtiofs", "tmpfs", "overlay"])
def test_a_file_system_that_may_not_do_or_not_last_is_a_warning(tmp_path, kind):
    finding = on(tmp_path, "/srv/db", ("/srv", kind))
    assert finding.level == "warning"
    assert finding.remedy


def test_the_longest_mount_point_counts_whatever_the_order(tmp_path):
    mounts = ("/srv/db", "xfs"), ("/srv", "nfs"), ("/srv/d", "cifs")
    assert on(tmp_path, "/srv/db/x", *mounts).level == "ok"


def test_what_was_mounted_over_another_counts(tmp_path):
    assert on(tmp_path, "/srv/db", ("/srv", "xfs"), ("/srv", "nfs")).level == "problem"


def test_a_mount_point_with_a_blank_is_understood(tmp_path):
    finding = on(tmp_path, "/my disk/db", (r"/my\040disk", "nfs"))
    assert finding.level == "problem"
    assert "mounted at '/my disk'" in finding.found


def test_a_link_is_followed_to_where_it_leads(tmp_path):
    (tmp_path / "link").symlink_to("/srv")
    assert on(tmp_path, tmp_path / "link" / "db", ("/srv", "nfs")).level == "problem"


def test_this_machines_mounts_are_understood(tmp_path):
    mountinfo = Path("/proc/self/mountinfo")
    if not re.search(r"^(\S+ ){4}/ ", mountinfo.read_text(), re.MULTILINE):
        pytest.skip("a chroot whose root is no mount")
    finding = doctor.check_file_system(tmp_path, mountinfo)
    assert not finding.found.startswith("cannot be known")


def test_where_no_mount_is_seen_that_is_said(tmp_path):
    mountinfo = written(tmp_path / "mountinfo", "1 0 0:5 / /proc rw - proc proc rw\n")
    finding = doctor.check_file_system(tmp_path, mountinfo)
    assert finding.level == "warning"
    assert finding.found == (
        f"cannot be known: no mount in {str(mountinfo)!r} holds {os.path.realpath(tmp_path)!r}"
    )


# The folder.


def test_a_folder_in_which_everything_works_is_well_and_stays_empty(tmp_path):
    finding = doctor.check_folder(tmp_path, doctor_trials.TRIALS)
    assert finding.level == "ok", finding
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_a_path_too_long_for_a_socket_is_well(tmp_path):
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    assert doctor.check_folder(folder, doctor_trials.TRIALS).level == "ok"


def test_a_folder_where_something_does_not_work_is_a_problem_and_stays_empty(tmp_path):
    def refused(folder):
        written(folder / "half", "")
        raise PermissionError(1, "Operation not permitted")

    finding = doctor.check_folder(tmp_path, {**doctor_trials.TRIALS, "FIFOs": refused})
    assert finding.level == "problem"
    assert "no FIFOs (Operation not permitted)" in finding.found
    assert "locks" not in finding.found
    assert list(tmp_path.iterdir()) == []


def test_a_folder_where_nothing_can_be_made_is_a_problem():
    finding = doctor.check_folder(Path("/proc"), doctor_trials.TRIALS)
    assert finding.level == "problem"
    assert "'/proc'" in finding.found


def test_locks_that_do_not_lock_are_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)
    finding = doctor.check_folder(tmp_path, doctor_trials.TRIALS)
    assert finding.level == "problem"
    assert "no locks (two can hold one)" in finding.found


def test_a_path_that_is_too_long_for_sqlite_is_a_problem(tmp_path):
    assert doctor.check_path(tmp_path / "jobs.db").level == "ok"
    finding = doctor.check_path(tmp_path.joinpath(*("x" * 100 for _ in range(5)), "jobs.db"))
    assert finding.level == "problem"
    assert "504 bytes at most" in finding.found


@pytest.mark.parametrize(
    ("mode", "level"),
    [(0o700, "ok"), (0o755, "ok"), (0o775, "warning"), (0o777, "problem"), (0o1777, "problem")],
)
def test_a_folder_in_which_others_can_write_is_no_good(tmp_path, mode, level):
    folder = tmp_path / "shim"
    folder.mkdir()
    folder.chmod(mode)
    finding = doctor.check_owner([tmp_path, tmp_path / "none", folder], os.geteuid())
    assert finding.level == level
    assert (repr(str(folder)) in finding.found) == (level != "ok")


def test_a_folder_of_another_user_is_a_warning(tmp_path):
    owner = SimpleNamespace(st_mode=0o40700, st_uid=1234)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "stat", lambda path: owner)
        assert doctor.check_owner([tmp_path], 1234).level == "ok"
        finding = doctor.check_owner([tmp_path], 1235)
    assert (finding.level, "user 1234" in finding.found) == ("warning", True)


@pytest.mark.parametrize(
    ("mib", "inodes", "level"),
    [
        (5_000, 1_000_000, "ok"),
        (99, 1_000_000, "warning"),
        (5_000, 9_999, "warning"),
        (0, 1_000_000, "problem"),
        (5_000, 0, "problem"),
    ],
)
def test_little_space_is_a_warning_and_none_a_problem(mib, inodes, level):
    there = SimpleNamespace(f_bavail=mib * 256, f_frsize=4096, f_files=2_000_000, f_favail=inodes)
    assert doctor.check_space(Path("/"), lambda place: there).level == level


def test_a_file_system_that_counts_no_inodes_is_well():
    there = SimpleNamespace(f_bavail=1 << 30, f_frsize=4096, f_files=0, f_favail=0)
    finding = doctor.check_space(Path("/"), lambda place: there)
    assert finding.level == "ok"
    assert "inodes" not in finding.found


# Limits.


@pytest.mark.parametrize(
    ("soft", "level"), [(resource.RLIM_INFINITY, "ok"), (4096, "ok"), (1024, "warning")]
)
def test_fewer_than_4096_descriptors_are_a_warning(soft, level):
    assert doctor.check_descriptors(soft, resource.RLIM_INFINITY).level == level


def test_descriptors_are_told_in_jobs_and_how_far_they_can_be_raised():
    finding = doctor.check_descriptors(1024, 4096)
    assert "about 330 running jobs" in finding.found
    assert "up to 4096" in finding.remedy


@pytest.mark.parametrize(
    ("pages", "status", "level"),
    [
        (16384, ORDINARY, "ok"),
        (1024, ORDINARY, "warning"),
        (0, ORDINARY, "ok"),
        (1024, MIGHTY, "ok"),
    ],
    ids=["usual", "few", "unlimited", "privileged"],
)
def test_few_pages_for_pipes_are_a_warning(tmp_path, pages, status, level):
    soft = written(tmp_path / "pipe-user-pages-soft", f"{pages}\n")
    assert doctor.check_pipes(soft, written(tmp_path / "status", status)).level == level


def test_pipes_are_told_in_jobs(tmp_path):
    soft = written(tmp_path / "pipe-user-pages-soft", "16384\n")
    finding = doctor.check_pipes(soft, written(tmp_path / "status", ORDINARY))
    assert "512 running jobs" in finding.found


def limited(tmp_path, cgroup, groups, of_user=resource.RLIM_INFINITY, status=ORDINARY):
    written(tmp_path / "self" / "cgroup", cgroup)
    written(tmp_path / "self" / "status", status)
    for group, (used, limit) in groups.items():
        written(tmp_path / "root" / group / "pids.max", f"{limit}\n")
        written(tmp_path / "root" / group / "pids.current", f"{used}\n")
    return doctor.check_processes(tmp_path / "self", tmp_path / "root", of_user)


@pytest.mark.parametrize(
    ("cgroup", "group"),
    [
        ("0::/a/b\n", "a/b"),
        ("0::/a/b\n", "a"),
        ("0::/\n", "."),
        ("9:pids:/a\n0::/\n", "pids/a"),
    ],
    ids=["own", "of the parent", "of the container", "version 1"],
)
@pytest.mark.parametrize(
    ("limit", "level"),
    [("max", "ok"), (5000, "ok"), (500, "warning"), (110, "problem")],
)
def test_little_room_for_processes_is_found_in_each_group(tmp_path, cgroup, group, limit, level):
    assert limited(tmp_path, cgroup, {group: (100, limit)}).level == level


def test_where_whole_jobs_can_be_limited_is_told(tmp_path):
    asked = []

    def parent_for(controllers):
        asked.append(controllers)
        return tmp_path

    finding = doctor.check_cgroups(parent_for)
    assert (finding.level, asked) == ("ok", [{"memory", "cpu", "pids"}])
    assert str(tmp_path) in finding.found


def test_that_whole_jobs_cannot_be_limited_is_a_warning():
    def parent_for(controllers):
        raise ValueError("processes are in it")

    finding = doctor.check_cgroups(parent_for)
    assert finding.level == "warning" and "processes are in it" in finding.found


def test_the_group_with_the_least_room_counts(tmp_path):
    finding = limited(tmp_path, "0::/a/b\n", {"a/b": (10, 5000), "a": (4000, 4500)})
    assert finding.level == "warning"
    assert "4,000 of 4,500" in finding.found


def test_the_limit_of_a_group_that_we_are_not_in_is_none_of_ours(tmp_path):
    assert limited(tmp_path, "0::/a\n", {"ab": (10, 20)}).level == "ok"


@pytest.mark.parametrize(("status", "level"), [(ORDINARY, "warning"), (MIGHTY, "ok")])
def test_the_users_own_limit_counts_unless_privileged(tmp_path, status, level):
    assert limited(tmp_path, "0::/\n", {}, of_user=256, status=status).level == level


# Processes.


def proc(tmp_path, options, status=ORDINARY):
    """Return a /proc that was mounted with these options."""
    written(tmp_path / "sys/kernel/random/boot_id", "ab-12\n")
    written(tmp_path / "self/status", status)
    line = f"3 1 0:4 / /proc rw,nosuid - proc proc rw{options}"
    written(tmp_path / "self/mountinfo", f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n{line}\n")
    return tmp_path


@pytest.mark.parametrize("options", ["", ",hidepid=0", ",hidepid=off"])
def test_a_proc_that_hides_nothing_is_well(tmp_path, options):
    assert doctor.check_proc(proc(tmp_path, options)).level == "ok"


@pytest.mark.parametrize("options", [",hidepid=2", ",gid=7,hidepid=invisible", ",hidepid=1"])
def test_a_proc_that_hides_processes_is_a_warning(tmp_path, options):
    finding = doctor.check_proc(proc(tmp_path, options))
    assert finding.level == "warning"
    assert "another user" in finding.found


def test_a_proc_hides_nothing_from_who_may_trace(tmp_path):
    assert doctor.check_proc(proc(tmp_path, ",hidepid=2", MIGHTY)).level == "ok"


def test_a_proc_without_the_boot_id_is_a_problem(tmp_path):
    assert doctor.check_proc(tmp_path).level == "problem"


def test_an_orphan_that_is_reaped_is_well():
    finding = doctor.check_orphans(lambda: (1, "systemd", True))
    assert finding.level == "ok"
    assert "systemd (pid 1)" in finding.found


def test_a_first_process_that_does_not_reap_is_a_problem():
    code = (
        "import os; from anodejobs import doctor, doctor_trials;"
        "from anodejobs.shim.orphans import become_reaper; become_reaper();"
        "print(os.getpid(), doctor.check_orphans(lambda: doctor_trials.orphan(within_s=0.1)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pid, _, finding = done.stdout.partition(" ")
    assert finding.startswith("problem  orphans: ")
    assert f"(pid {pid})" in finding
    assert "docker run --init" in finding


def test_a_first_process_that_reaps_is_seen_to():
    code = (
        "import os, signal; from anodejobs import doctor, doctor_trials;"
        "from anodejobs.shim.orphans import become_reaper; become_reaper();"
        "child = os.fork();"
        "child or (print(doctor.check_orphans(lambda: doctor_trials.orphan(5.0)), flush=True),"
        " os._exit(0));"
        "[None for _ in iter(lambda: os.wait()[0], child)]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ok       orphans: "), done


def test_a_sandbox_without_subreapers_is_a_warning():
    libc = SimpleNamespace(prctl=lambda *arguments: -1)
    assert doctor.check_subreaper(libc).level == "warning"


@pytest.mark.smoke
def test_this_machine_has_subreapers():
    assert doctor.check_subreaper(ctypes.CDLL(None)).level == "ok"


def test_pidfds_that_tell_exit_codes_are_well():
    assert doctor.check_pidfds(lambda: 7, "6.15").level == "ok"


@pytest.mark.parametrize("code", [None, 255])
def test_pidfds_that_do_not_tell_the_exit_code_are_a_warning(code):
    finding = doctor.check_pidfds(lambda: code, "6.1.0")
    assert finding.level == "warning"
    assert "kernel 6.1.0" in finding.found


def test_no_pidfds_are_a_problem(monkeypatch):
    monkeypatch.setattr(tree, "HAS_PIDFDS", False)
    assert doctor.check_pidfds(doctor_trials.told_code, "5.2").level == "problem"


def test_the_exit_code_of_a_real_child_is_told_or_unknown():
    assert doctor_trials.told_code() in (7, None)


# What a shim is started with.


def test_a_shell_that_works_is_well():
    assert doctor.check_shell("/bin/sh", doctor_trials.run).level == "ok"


@pytest.mark.parametrize("shell", ["/nonexistent/sh", "/bin/false"])
def test_no_shell_is_a_problem(shell):
    assert doctor.check_shell(shell, doctor_trials.run).level == "problem"


def test_the_interpreter_of_a_shim_works_here():
    finding = doctor.check_interpreter(interpreter, doctor_trials.run)
    assert finding.level == "ok", finding


@pytest.mark.parametrize("python", ["/nonexistent/python", "/bin/false"])
def test_an_interpreter_that_does_not_start_is_a_problem(python):
    finding = doctor.check_interpreter(lambda: python, doctor_trials.run)
    assert finding.level == "problem"
    assert python in finding.found


def test_a_command_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(doctor_trials, "_PATIENCE_S", 0.05)
    went_well, said = doctor_trials.run(python("input.__self__.__import__('time').sleep(60)"))
    assert not went_well
    assert "timed out" in said


# The shim.


def test_a_folder_without_a_shim_is_well(tmp_path):
    assert doctor.check_shim(tmp_path / "shim", doctor_trials.held).level == "ok"
    assert list(tmp_path.iterdir()) == []


async def test_a_shim_that_answers_is_well_and_not_disturbed(tmp_path, monkeypatch):
    heard = []
    tell = shim.Shim._told
    monkeypatch.setattr(shim.Shim, "_told", lambda *said: (heard.append(said[-1]), tell(*said)))
    async with Jobs(tmp_path / "job_db", on_close="stop") as jobs:
        await jobs.run("head -c 100M /dev/zero; sleep 60", job_id="runs", stop_grace=0)
        finding = doctor.check_shim(tmp_path / "job_db" / "shim", doctor_trials.held)
        assert finding.level == "ok", finding
        pid = locker(tmp_path / "job_db" / "shim" / "lock")
        assert finding.found == f"pid {pid} answers; attempts that it looks after: 1"
        await jobs.run("exit 3", job_id="ends")
        assert (await jobs.wait("ends")).exit_code == 3
    assert heard
    assert not any("left" in message for message in heard)


async def test_a_shim_that_hangs_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_trials, "_PATIENCE_S", 0.05)
    async with Jobs(tmp_path / "job_db") as jobs:
        await jobs.run("true", job_id="true")
        pid = locker(tmp_path / "job_db" / "shim" / "lock")
        os.kill(pid, signal.SIGSTOP)
        try:
            finding = doctor.check_shim(tmp_path / "job_db" / "shim", doctor_trials.held)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert finding.level == "problem"
        assert f"pid {pid} holds the lock and does not answer" in finding.found


async def test_the_jobs_of_a_killed_shim_are_a_warning_until_it_has_a_successor(tmp_path):
    folder = tmp_path / "job_db" / "shim"
    async with Jobs(tmp_path / "job_db") as jobs:
        await jobs.run("sleep 60", job_id="runs", stop_grace=0)
    pid = locker(folder / "lock")
    os.kill(pid, signal.SIGKILL)
    assert has_died(pid, within_s=60)
    finding = doctor.check_shim(folder, doctor_trials.held)
    async with Jobs(tmp_path / "job_db") as jobs:
        assert (await jobs.stop("runs")).status == "stopped"
    assert finding.level == "warning"
    assert finding.found.endswith("left to look after: 1")


async def test_a_shim_that_left_when_it_was_done_left_nothing_to_do(tmp_path):
    folder = tmp_path / "job_db" / "shim"
    async with Jobs(tmp_path / "job_db") as jobs:
        await jobs.run("true", job_id="true")
        await jobs.wait("true")
    pid = locker(folder / "lock")
    assert pid is None or has_died(pid, within_s=60)
    finding = doctor.check_shim(folder, doctor_trials.held)
    assert finding.level == "ok"
    assert finding.found.startswith("none runs")


def test_a_lock_whose_holder_cannot_be_seen_is_a_problem(tmp_path):
    beyond = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    with open(written(tmp_path / "lock", f"{beyond}\n")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        finding = doctor.check_shim(tmp_path, doctor_trials.held)
    assert finding.level == "problem"
    assert f"pid {beyond}" in finding.found


def test_what_another_user_has_left_to_a_shim_is_a_problem(tmp_path, monkeypatch):
    folder = tmp_path / "shim"
    written(folder / "journal", "")
    others = SimpleNamespace(st_uid=os.geteuid() + 12345)
    monkeypatch.setattr(Path, "lstat", lambda path: others)
    finding = doctor.check_shim(folder, doctor_trials.held)
    assert finding.level == "problem"
    assert f"{folder / 'journal'} belongs to user {others.st_uid}" in finding.found
    assert "chown" in finding.remedy
