"""A Python program finds what its job was given, and can be started by hand as well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from anodejobs.jobfiles import JobFiles
from anodejobs.progress import last_progress

pytestmark = pytest.mark.outer

MARKS = {"ANODEJOBS_JOB_ID": "train: 1", "ANODEJOBS_ATTEMPT": "3"}


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    files = JobFiles(tmp_path / "job_files")
    files.open()
    return files


def run(code: str, variables: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the code with ``this_job`` imported."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("ANODEJOBS_")}
    return subprocess.run(
        [sys.executable, "-c", f"from anodejobs import this_job\n{code}"],
        env={**bare, **(variables or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def in_job(files: JobFiles, code: str, payload: object = None) -> str:
    """Run the code as the third attempt of a job, and return what it printed."""
    variables = files.variables("train", 3)
    if payload is not None:
        files.hand_out("train", payload)
        variables["ANODEJOBS_PAYLOAD"] = files.payload("train")
    ran = run(code, {**MARKS, **variables})
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def test_a_job_knows_its_id_and_attempt(files):
    printed = in_job(files, "print(this_job.job_id, this_job.attempt, this_job.is_a_job)")
    assert printed == "train: 1 3 True\n"


def test_outside_of_a_job_there_is_no_id():
    ran = run("print(this_job.job_id, this_job.attempt, this_job.is_a_job)")
    assert ran.stdout == "None None False\n"


@pytest.mark.parametrize("payload", [{"a": [1, None, "é"]}, [1, 2], "text", 0, False])
def test_a_payload_arrives_as_it_was_given(files, payload):
    printed = in_job(files, "import json; print(json.dumps(this_job.payload()))", payload)
    assert json.loads(printed) == payload


def test_without_a_payload_there_is_none(files):
    assert in_job(files, "print(this_job.payload())") == "None\n"


def test_a_result_is_what_was_set_last(files):
    in_job(files, "this_job.set_result(1); this_job.set_result({'sum': [2, 'é']})")
    found = files.result("train", 3)
    assert found is not None and (found.value, found.error) == ({"sum": [2, "é"]}, None)


def test_setting_a_result_leaves_no_other_file(files, tmp_path):
    in_job(files, "this_job.set_result(1)")
    assert os.listdir(tmp_path / "job_files" / "results") == ["train.3.json"]


def test_threads_may_set_results_at_the_same_time(files):
    code = """
import concurrent.futures
with concurrent.futures.ThreadPoolExecutor(4) as threads:
    list(threads.map(this_job.set_result, ([n] * 1000 for n in range(400))))
print("set")
"""
    assert in_job(files, code) == "set\n"
    found = files.result("train", 3)
    assert found is not None and len(found.value) == 1000 and len(set(found.value)) == 1


def test_a_result_is_for_its_owner_only(files, tmp_path):
    in_job(files, "this_job.set_result(1)")
    path = tmp_path / "job_files" / "results" / "train.3.json"
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("value", ["{1, 2}", "float('nan')", "b'x'", "[object()]"])
def test_a_result_that_is_not_json_is_refused_and_the_old_one_stands(files, value):
    code = f"this_job.set_result(1)\ntry: this_job.set_result({value})\nexcept TypeError as e: "
    assert in_job(files, f"{code}print(e)").startswith("a result must be JSON: ")
    found = files.result("train", 3)
    assert found is not None and found.value == 1


def test_a_result_that_is_not_json_is_refused_outside_of_a_job_too():
    ran = run("this_job.set_result({1})")
    assert ran.returncode == 1
    assert "TypeError: a result must be JSON" in ran.stderr


def test_a_result_that_is_too_large_is_refused(files):
    code = "try: this_job.set_result('x' * 2**24)\nexcept ValueError as e: print(e)"
    assert in_job(files, code) == "a result must not be longer than 16777216 bytes of JSON\n"
    assert files.result("train", 3) is None


def test_a_result_that_cannot_be_put_in_place_leaves_no_other_file(files, tmp_path):
    code = (
        "import os; os.mkdir(os.environ['ANODEJOBS_RESULT'])\n"
        "try: this_job.set_result(1)\nexcept IsADirectoryError: print('refused')"
    )
    assert in_job(files, code) == "refused\n"
    assert os.listdir(tmp_path / "job_files" / "results") == ["train.3.json"]


def test_progress_is_one_line(files):
    in_job(files, "this_job.report_progress(0.25, 'a\\nb  c\\r')")
    assert (files.progress_folder / "train.3").read_text() == "0.25 a b c\n"


def test_progress_needs_no_text(files):
    in_job(files, "this_job.report_progress(1)")
    assert last_progress(files.progress_folder / "train.3") == (1.0, "")


def test_outside_of_a_job_results_and_progress_go_nowhere(tmp_path):
    ran = run("this_job.set_result(1); this_job.report_progress(0.5); print(this_job.payload())")
    assert (ran.stdout, ran.stderr, ran.returncode) == ("None\n", "", 0)


def test_progress_that_cannot_be_written_does_not_end_the_program(tmp_path):
    variables = {**MARKS, "ANODEJOBS_PROGRESS": str(tmp_path / "nowhere" / "train.3")}
    ran = run("this_job.report_progress(0.5); print('went on')", variables)
    assert (ran.stdout, ran.stderr) == ("went on\n", "")


def test_many_reports_do_not_fill_the_disk(files):
    in_job(files, "for n in range(10000): this_job.report_progress(n / 10000, f'step {n}')")
    path = files.progress_folder / "train.3"
    assert path.stat().st_size < 65 * 1024
    assert last_progress(path) == (0.9999, "step 9999")


def test_importing_it_imports_next_to_nothing():
    """Half of the time that a Python takes to start is what else it imports."""
    programs = [
        "import sys; print(*sys.modules)",
        "import anodejobs.calling, sys; print(*sys.modules)",
    ]
    bare, imported = (
        set(
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True
            ).stdout.split()
        )
        for code in programs
    )
    assert not (imported - bare) & {"asyncio", "collections", "json", "pydantic", "re", "typing"}
    assert "anodejobs.this_job" in imported
