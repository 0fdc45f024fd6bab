"""What a job is given and gives back, how far it says it is, and what it may use: through Jobs."""

from __future__ import annotations

import asyncio
import shutil
import sys
from contextlib import aclosing
from pathlib import Path

import pytest

from anodejobs import InvalidJob, JobEvent, JobNotFound, Jobs, Limits, Status
from tests.conftest import python

pytestmark = pytest.mark.outer

LIMIT_S = 60.0


async def ended(jobs: Jobs, command: str | list[str], **spec):
    await jobs.run(command, "job", **spec)
    return await jobs.wait("job", timeout=LIMIT_S)


# Payload and result.


@pytest.mark.parametrize("payload", [{"a": [1, None, "ü"]}, [], 0, False, "text", {}])
async def test_a_job_reads_its_payload_and_its_result_is_on_record(jobs, payload):
    record = await ended(jobs, 'cat "$ANODEJOBS_PAYLOAD" > "$ANODEJOBS_RESULT"', payload=payload)
    assert (record.status, record.payload, record.result) == (Status.finished, payload, payload)
    assert await jobs.get_results("job") == payload


async def test_a_job_without_a_payload_is_told_of_none(jobs, monkeypatch):
    monkeypatch.setenv("ANODEJOBS_PAYLOAD", "of another job, in which the application runs")
    await ended(jobs, 'echo "${ANODEJOBS_PAYLOAD-none}"')
    assert await jobs.job_logs("job") == ("none\n", "")


async def test_a_job_that_writes_no_result_has_none(jobs):
    record = await ended(jobs, "true")
    assert (record.result, record.error) == (None, None)
    assert await jobs.get_results("job") is None


async def test_a_result_that_is_no_json_is_an_error_and_the_status_stands(jobs):
    record = await ended(jobs, 'echo "{" > "$ANODEJOBS_RESULT"')
    assert (record.status, record.exit_code, record.result) == (Status.finished, 0, None)
    assert record.error.startswith("the result is not JSON")


async def test_a_failed_job_keeps_its_result_and_says_how_it_failed(jobs):
    record = await ended(jobs, 'echo 5 > "$ANODEJOBS_RESULT"; exit 3')
    assert (record.status, record.result, record.error) == (Status.failed, 5, "exit code 3")


async def test_the_result_of_the_last_attempt_counts(jobs):
    record = await ended(
        jobs, 'echo "$ANODEJOBS_ATTEMPT" > "$ANODEJOBS_RESULT"; exit 1', max_retries=2
    )
    assert (record.attempt, record.result) == (3, 3)


async def test_a_new_run_knows_nothing_of_the_result_before(jobs):
    assert (
        await ended(jobs, 'echo 1 > "$ANODEJOBS_RESULT"; echo 1 >> "$ANODEJOBS_PROGRESS"')
    ).result == 1
    record = await ended(jobs, "true")
    assert (record.result, record.progress) == (None, None)


async def test_deleting_a_job_leaves_none_of_its_files(jobs):
    await ended(
        jobs,
        'echo 1 > "$ANODEJOBS_RESULT"; echo 1 > "$ANODEJOBS_PROGRESS"; exit 1',
        payload=1,
        max_retries=1,
    )
    assert await jobs.delete("job")
    files = [path for path in (jobs.db_path / "job_files").rglob("*") if path.is_file()]
    assert not files


async def test_results_of_an_unknown_job_are_an_error(jobs):
    with pytest.raises(JobNotFound):
        await jobs.get_results("unknown")


async def test_a_result_survives_the_application(tmp_path):
    async with Jobs(tmp_path, executor="inline") as jobs:
        await ended(jobs, 'echo "[1]" > "$ANODEJOBS_RESULT"', payload={"of": "it"})
    async with Jobs(tmp_path, executor="inline") as jobs:
        record = await jobs.get_status("job")
        assert record is not None
        assert (record.payload, record.result) == ({"of": "it"}, [1])


@pytest.mark.parametrize("payload", [float("nan"), object(), {1: 2}, b"bytes", "\udcff"])
async def test_a_payload_that_is_no_json_is_refused(jobs, payload):
    with pytest.raises(InvalidJob, match="payload"):
        await jobs.run("true", payload=payload)
    assert await jobs.count() == 0


# Progress.


async def test_progress_is_pushed_though_somebody_has_removed_its_folder(jobs):
    await jobs.run("true", "before")
    await jobs.wait("before")
    shutil.rmtree(jobs.db_path / "job_files" / "progress")
    async with aclosing(jobs.events("job")) as events, asyncio.timeout(LIMIT_S):
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        await jobs.run('echo 0.5 >> "$ANODEJOBS_PROGRESS"; exec sleep 1000', "job")
        event = await first
        while event.kind != "progress":
            event = await anext(events)
        assert event.progress == 0.5
    await jobs.stop("job")


async def test_progress_is_pushed_and_kept(jobs):
    said: list[JobEvent] = []
    await jobs.create(
        'echo "0.25 a quarter" >> "$ANODEJOBS_PROGRESS"; read go < go;'
        'echo "90% nearly" >> "$ANODEJOBS_PROGRESS"',
        "job",
        cwd=jobs.db_path,
    )
    (jobs.db_path / "go").unlink(missing_ok=True)
    await asyncio.to_thread(_make_fifo, jobs.db_path / "go")
    async with asyncio.timeout(LIMIT_S), aclosing(jobs.events("job", after=0)) as events:
        await jobs.start("job")
        async for event in events:
            if event.kind == "progress":
                said.append(event)
                if event.progress == 0.25:
                    record = await jobs.get_status("job")
                    assert record is not None and record.progress == 0.25
                    assert (await jobs.list_status())["job"].progress == 0.25
                    await asyncio.to_thread((jobs.db_path / "go").write_text, "\n")
            elif event.status == Status.finished:
                break
    assert (said[0].progress, said[0].text, said[0].attempt) == (0.25, "a quarter", 1)
    record = await jobs.wait("job")
    assert record.progress == 0.9


def _make_fifo(path: Path) -> None:
    import os

    os.mkfifo(path)


# Functions.


async def test_a_function_is_called_with_the_payload_and_its_value_is_the_result(
    jobs, tmp_path, monkeypatch
):
    (tmp_path / "sums.py").write_text("def add(a, b):\n    return {'sum': a + b}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    await jobs.run(call="sums:add", payload={"a": 1, "b": 2}, job_id="job")
    record = await jobs.wait("job", timeout=LIMIT_S)
    assert (record.status, record.result) == (Status.finished, {"sum": 3})


async def test_a_function_that_raises_fails_its_job_with_the_traceback_in_stderr(
    jobs, tmp_path, monkeypatch
):
    (tmp_path / "faults_of_mine.py").write_text("def fail():\n    raise ValueError('so')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    await jobs.submit(call="faults_of_mine:fail", job_id="job")
    record = await jobs.wait("job", timeout=LIMIT_S)
    _, stderr = await jobs.job_logs("job")
    assert (record.status, record.exit_code) == (Status.failed, 1)
    assert stderr.endswith("ValueError: so\n")


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"call": "no colon"}, "call: must be like"),
        ({"call": 5}, "call: must be like"),
        ({"call": "a:b", "command": "true"}, "call: cannot be combined with a command"),
        ({}, "command"),
    ],
)
async def test_a_call_that_makes_no_sense_is_refused(jobs, spec, problem):
    with pytest.raises(InvalidJob, match=problem):
        await jobs.run(**spec)
    assert await jobs.count() == 0


# Limits.


async def test_a_job_over_its_memory_says_so(jobs):
    record = await ended(
        jobs,
        python("x = bytearray(400_000_000)"),
        limits=Limits(memory_bytes=100_000_000),
    )
    assert record.status == Status.failed
    assert "over its memory" in record.error
    assert record.limits == {"memory_bytes": 100_000_000}


async def test_a_job_over_its_cpu_time_says_so(jobs):
    record = await ended(jobs, python("while True: pass"), limits={"cpu_seconds": 1})
    assert (record.status, record.error) == (
        Status.failed,
        "over its CPU time: limited to 1 s",
    )


async def test_limits_hold_in_the_job(jobs):
    program = (
        "import os, resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], os.nice(0))"
    )
    await ended(jobs, python(program), limits={"open_files": 64, "niceness": 7})
    assert await jobs.job_logs("job") == ("64 7\n", "")


async def test_a_program_that_is_not_there_fails_to_start_under_limits_too(jobs):
    record = await ended(jobs, ["/nowhere/at/all"], limits={"niceness": 3})
    assert record.status == Status.failed_start
    assert "No such file" in record.error


async def test_a_limit_that_cannot_be_set_fails_the_start(jobs):
    record = await jobs.run("true", limits={"user": "nobody-of-that-name"})
    assert record.status == Status.failed_start
    assert "nobody-of-that-name" in record.error


@pytest.mark.parametrize(
    "limits", [5, {"memory_bytes": 0}, {"cpu_seconds": "many"}, {"unheard_of": 1}]
)
async def test_limits_that_make_no_sense_are_refused(jobs, limits):
    with pytest.raises(InvalidJob, match="limits"):
        await jobs.run("true", limits=limits)
    assert await jobs.count() == 0


# Callbacks.


async def test_callbacks_hear_of_the_statuses_they_asked_for_in_order(jobs):
    heard: asyncio.Queue[tuple[str, Status]] = asyncio.Queue()

    async def hear(record):
        heard.put_nowait((record.self_id, record.status))

    end = await jobs.on(hear, status=[Status.finished, "failed"])
    for name, command in (("a", "true"), ("b", "false")):
        await jobs.run(command, name)
        await jobs.wait(name)
    async with asyncio.timeout(LIMIT_S):
        assert [await heard.get(), await heard.get()] == [("a", "finished"), ("b", "failed")]
    end()
    await jobs.run("true", "c")
    await jobs.wait("c")
    assert heard.empty()


async def test_a_callback_that_raises_is_called_again(jobs, caplog):
    called: asyncio.Queue[str] = asyncio.Queue()

    def fail(record):
        called.put_nowait(record.self_id)
        raise ValueError("a fault of the application's")

    await jobs.on(fail, status="finished")
    for name in ("a", "b"):
        await jobs.run("true", name)
    async with asyncio.timeout(LIMIT_S):
        assert {await called.get(), await called.get()} == {"a", "b"}
    assert "a callback failed for job" in caplog.text


async def test_a_callback_that_awaits_what_is_cancelled_is_called_again(jobs, caplog):
    called: asyncio.Queue[str] = asyncio.Queue()

    async def await_nobody(record):
        called.put_nowait(record.self_id)
        given_up = asyncio.get_running_loop().create_future()
        given_up.cancel()
        await given_up

    end = await jobs.on(await_nobody, status="finished")
    for name in ("a", "b"):
        await jobs.run("true", name)
    async with asyncio.timeout(LIMIT_S):
        assert {await called.get(), await called.get()} == {"a", "b"}
    assert "a callback failed for job" in caplog.text
    end()
    await jobs.run("true", "c")
    await jobs.wait("c")
    assert called.empty()


async def test_a_callback_that_is_under_way_is_cancelled_by_its_end(jobs):
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def hang(record):
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    end = await jobs.on(hang, status="finished")
    await jobs.run("true", "a")
    async with asyncio.timeout(LIMIT_S):
        await begun.wait()
        end()
        await cancelled.wait()


# Recovery.


@pytest.mark.parametrize(
    ("recovery", "status", "attempt"),
    [("lost", Status.lost, 1), ("fail", Status.failed, 1), ("pending", Status.finished, 2)],
)
async def test_what_becomes_of_an_interrupted_job_is_as_you_like_it(
    tmp_path, recovery, status, attempt
):
    code = (
        "import asyncio, os, sys\n"
        "from anodejobs import Jobs\n"
        "async def main():\n"
        "    async with Jobs(sys.argv[1], executor='inline') as jobs:\n"
        "        command = 'if [ $ANODEJOBS_ATTEMPT = 1 ]; then exec sleep 600; fi'\n"
        "        record = await jobs.run(command, 'job')\n"
        "        os.kill(record.last_pid, 9)\n"
        "        os.waitpid(record.last_pid, 0)\n"  # or the kernel could still tell its code
        "        os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    host = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(tmp_path))
    assert await host.wait() == -9
    async with Jobs(tmp_path, executor="inline", recovery=recovery) as jobs:
        record = await jobs.wait("job", timeout=LIMIT_S)
        assert (record.status, record.attempt) == (status, attempt)
        (entry,) = record.metadata["recovery_history"]
        assert (entry["was"], entry["attempt"]) == ("running", 1)
