"""Metrics as applications see them, and as Prometheus reads them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from anodejobs import Durations, FixedDelay, JobRecord, Jobs, Metrics, Status
from anodejobs.prometheus import CONTENT_TYPE, exposition
from anodejobs.testing import NOON, make_insert, make_record

AWKWARD = 'a "b"\\c\nd'


async def put(jobs: Jobs, *records: JobRecord) -> None:
    await jobs._root.open()
    assert None not in await jobs._jobdb._store.commit([make_insert(r) for r in records])


async def test_metrics_follow_jobs_from_the_queue_to_their_end(jobs: Jobs) -> None:
    empty = await jobs.metrics()
    assert (empty.by_queue, empty.queue_depth, empty.occupied_slots) == ({}, {}, {})
    await jobs.pause_queue("night")
    await jobs.create("true", "waiting", queue="night", tags=["a"], priority="high")
    await jobs.submit("true", "queued", queue="night", tags=["a", "b"])
    await jobs.run("sleep 1000", "running")
    metrics = await jobs.metrics()
    present = {status: n for status, n in metrics.by_status.items() if n}
    assert present == {Status.pending: 1, Status.queued: 1, Status.running: 1}
    assert metrics.by_tag == {"a": 2, "b": 1}
    assert metrics.by_queue == {"night": 2, "default": 1}
    assert metrics.by_priority == {30: 1, 20: 2}
    assert metrics.queue_depth == {"night": 1}
    assert metrics.occupied_slots == {"default": 1}
    assert metrics.durations == Durations()
    ended = await jobs.stop("running")
    assert ended is not None and ended.started_at and ended.finished_at
    took = (ended.finished_at - ended.started_at).total_seconds()
    metrics = await jobs.metrics()
    assert metrics.occupied_slots == {}
    assert metrics.durations == Durations(count=1, mean=took, max=took)


async def test_metrics_count_retries(jobs: Jobs) -> None:
    await jobs.submit("exit 1", "thrice", max_retries=2, retry=FixedDelay(0))
    await jobs.wait("thrice")
    assert (await jobs.metrics()).retries == 2


async def test_a_job_that_is_cancelled_before_its_retry_did_not_run_until_then(jobs: Jobs) -> None:
    await jobs.submit("exit 1", "again", max_retries=1, retry=FixedDelay(600))
    async for event in jobs.events("again", after=0):
        if event.ended is not None:
            break
    assert (await jobs.cancel("again")).started_at is not None
    assert (await jobs.metrics()).durations == Durations()


async def test_metrics_are_a_model_that_web_applications_return(jobs: Jobs) -> None:
    await put(jobs, make_record("a", status="queued"))
    metrics = await jobs.metrics()
    assert Metrics.model_validate_json(metrics.model_dump_json()) == metrics
    with pytest.raises(ValidationError):
        metrics.retries = 5


# For Prometheus.


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    """Return what Prometheus's own parser reads: values by name and label."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


async def test_prometheus_reads_what_the_metrics_say(jobs: Jobs) -> None:
    moments = {"started_at": NOON, "finished_at": NOON.replace(second=3)}
    await put(
        jobs,
        make_record("a", status="finished", tags=["red"], attempt=3, **moments),
        make_record("b", status="queued", queue="gpu", priority=7),
        make_record("c", status="running"),
    )
    read = samples(await exposition(jobs))
    by_status = {key[1]: n for key, n in read.items() if key[0] == "anodejobs_jobs"}
    assert by_status == {**dict.fromkeys(Status, 0), "finished": 1, "queued": 1, "running": 1}
    rest = {key: n for key, n in read.items() if key[0] != "anodejobs_jobs"}
    assert rest == {
        ("anodejobs_tagged_jobs", "red"): 1,
        ("anodejobs_queue_jobs", "default"): 2,
        ("anodejobs_queue_jobs", "gpu"): 1,
        ("anodejobs_priority_jobs", "20"): 2,
        ("anodejobs_priority_jobs", "7"): 1,
        ("anodejobs_queue_depth", "default"): 0,
        ("anodejobs_queue_depth", "gpu"): 1,
        ("anodejobs_occupied_slots", "default"): 1,
        ("anodejobs_occupied_slots", "gpu"): 0,
        ("anodejobs_timed_jobs",): 1,
        ("anodejobs_mean_duration_seconds",): 3.0,
        ("anodejobs_longest_duration_seconds",): 3.0,
        ("anodejobs_retries",): 2,
    }


async def test_without_jobs_there_is_a_count_and_no_duration(jobs: Jobs) -> None:
    read = samples(await exposition(jobs))
    assert read["anodejobs_timed_jobs",] == 0
    assert ("anodejobs_mean_duration_seconds",) not in read
    assert ("anodejobs_longest_duration_seconds",) not in read


async def test_a_label_may_be_any_text(jobs: Jobs) -> None:
    await put(jobs, make_record("a", tags=[AWKWARD, "ü🚀"]))
    read = samples(await exposition(jobs))
    assert read["anodejobs_tagged_jobs", AWKWARD] == 1
    assert read["anodejobs_tagged_jobs", "ü🚀"] == 1


async def test_every_metric_is_explained(jobs: Jobs) -> None:
    for family in text_string_to_metric_families((await exposition(jobs)).decode()):
        assert family.documentation and family.type == "gauge", family.name
    assert CONTENT_TYPE.startswith("text/plain")


def test_without_the_extra_it_says_how_to_get_it() -> None:
    code = "import sys; sys.modules['prometheus_client'] = None; import anodejobs.prometheus"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "ImportError: anodejobs.prometheus needs" in told.stderr
    assert "pip install 'anodejobs[prometheus]'" in told.stderr
