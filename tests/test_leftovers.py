"""What a failed test leaves behind is ended: nobody else would."""

from __future__ import annotations

import os
import signal
from subprocess import Popen

import pytest

from tests.conftest import end_jobs_of


def test_the_jobs_of_a_test_can_be_ended_and_nobody_elses(request: pytest.FixtureRequest) -> None:
    sleep, job = ["sleep", "1000"], {"ANODEJOBS_TOKEN": "x"}
    mine = Popen(sleep, env={**os.environ, **job}, start_new_session=True)
    others = [
        Popen(sleep, env={**os.environ, **env})
        for env in (
            {},
            {**job, "PYTEST_RUN": "another"},
            {**job, "PYTEST_CURRENT_TEST": "x (call)"},
        )
    ]
    try:
        end_jobs_of(request.node.nodeid)
        assert mine.wait(60) == -signal.SIGKILL
        assert [other.poll() for other in others] == [None] * 3
    finally:
        for process in (mine, *others):
            process.kill()
            process.wait()
