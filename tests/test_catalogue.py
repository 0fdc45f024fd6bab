"""Templates as applications hold them: kept for every process, run with values that are checked."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from anodejobs import (
    ExponentialBackoff,
    Failure,
    InvalidJob,
    JobNotFound,
    Jobs,
    Limits,
    Parameter,
    RestartPolicy,
    RetryPolicy,
    Status,
    Template,
)
from anodejobs.catalogue import TEMPLATE

LIMIT_S = 60.0
SHOW = 'printf "[%s]" "$@"'


class _Odd:
    """What is no value of any field. Named alike in every process that collects the tests."""

    def __repr__(self) -> str:
        return "odd"


ODD = _Odd()


class Patiently(RetryPolicy):
    """A user's own policy."""

    pause: float = 0.0

    def delay_after(self, failure: Failure) -> float:
        return self.pause


def shown(*arguments: str, **fields: Any) -> Template:
    """Return the template of a job that writes its arguments in brackets."""
    return Template(
        {
            "name": "show",
            "command": ["/bin/sh", "-c", SHOW, "show", *arguments],
            "parameters": {
                "width": Parameter(type="int", min=16, max=4096, default=256),
                "source": Parameter(type="path"),
            },
            **fields,
        }
    )


TEMPLATES: dict[str, Template] = {
    "the least": Template(name="t", command="true"),
    "every kind of parameter": Template(
        name="t",
        command="true",
        parameters={
            "a": Parameter(type="str", pattern="[a-z]+", default="abc", description="letters"),
            "b": Parameter(type="int", min=-(10**30), max=10**30),
            "c": Parameter(type="float", min=0.1, max=1e300, default=3),
            "d": Parameter(type="bool", default=False),
            "e": Parameter(type="path", choices=["/a", Path("/b")]),
            "f": Parameter(required=False),
        },
    ),
    "a user's policy": Template(
        name="t", command="true", max_retries=3, retry=Patiently(pause=2.5, exit_codes=[3])
    ),
    "a policy": Template(name="t", command="true", max_retries=3, retry=ExponentialBackoff(2, 60)),
    "a service": Template(
        name="t", command="true", restart=RestartPolicy(when="always", initial=0.5)
    ),
    "a limited job": Template(name="t", command="true", limits=Limits(niceness=5, open_files=64)),
    "a job of its own": Template(
        name="t",
        command=["echo", "{{}}"],
        job_id="own",
        cwd="/",
        envs={"A": "ü"},
        tags=["b", "a"],
        metadata={"deep": [{"er": None}]},
        payload=[1, 2.5],
        priority="high",
        queue="q",
        timeout=5,
    ),
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
async def test_a_template_comes_back_as_it_was_kept(jobs: Jobs, template: Template) -> None:
    assert await jobs.add_template(template) == template
    kept = (await jobs.templates())["t"]
    assert kept == template
    assert kept.model_fields_set == template.model_fields_set


async def test_a_template_may_be_said_as_a_mapping(jobs: Jobs) -> None:
    fields = {"name": "t", "command": ["echo", "{a}"], "parameters": {"a": {"type": "int"}}}
    assert await jobs.add_template(fields) == Template(fields)
    await jobs.run_template("t", a=5)


async def test_a_template_runs_with_the_values_it_is_given(jobs: Jobs) -> None:
    await jobs.add_template(shown("--width={width}", "{source}", timeout=30, tags=["shown"]))
    record = await jobs.run_template("show", width=64, source="/a b; rm -rf $HOME")
    await jobs.wait(record.self_id)
    assert (await jobs.job_logs(record.self_id))[0] == "[--width=64][/a b; rm -rf $HOME]"
    assert (record.name, record.tags, record.timeout) == ("show", ["shown"], 30)


async def test_a_template_gives_the_environment_what_its_command_does_not_name(jobs: Jobs) -> None:
    await jobs.add_template(
        {"name": "t", "command": 'echo "$PARAM_WHO"', "parameters": {"who": Parameter()}}
    )
    record = await jobs.run_template("t", who="$(id)")
    await jobs.wait(record.self_id)
    assert (await jobs.job_logs(record.self_id))[0] == "$(id)\n"


async def test_a_parameter_may_have_the_name_of_an_argument(jobs: Jobs) -> None:
    parameters = {name: Parameter() for name in ("name", "self", "command")}
    command = ["echo", "{name}", "{self}", "{command}"]
    await jobs.add_template({"name": "t", "command": command, "parameters": parameters})
    record = await jobs.run_template("t", name="a", self="b", command="c")
    await jobs.wait(record.self_id)
    assert (await jobs.job_logs(record.self_id))[0] == "a b c\n"


async def test_a_template_takes_its_turn(jobs: Jobs) -> None:
    await jobs.create("true", "before")
    await jobs.add_template(shown("{source}", depends_on=["before"]))
    record = await jobs.submit_template("show", source="/a")
    assert record.status is Status.pending
    await jobs.start("before")
    assert (await jobs.wait(record.self_id)).status is Status.finished


async def test_a_template_that_waits_for_others_cannot_be_run_at_once(jobs: Jobs) -> None:
    await jobs.create("true", "before")
    await jobs.add_template(shown("{source}", depends_on=["before"]))
    with pytest.raises(InvalidJob, match=r"depends_on: .* submit it"):
        await jobs.run_template("show", source="/a")


async def test_a_users_policy_of_a_template_goes_with_its_jobs(jobs: Jobs) -> None:
    await jobs.add_template(
        {"name": "t", "command": "exit 3", "max_retries": 2, "retry": Patiently()}
    )
    record = await jobs.submit_template("t")
    ended = await jobs.wait(record.self_id)
    assert (ended.status, ended.attempt) == (Status.failed, 3)


@pytest.mark.parametrize(
    ("field", "params"),
    [
        ("source", {}),
        ("source", {"source": None}),
        ("source", {"source": 5}),
        ("width", {"source": "/a", "width": 15}),
        ("width", {"source": "/a", "width": "64"}),
        ("height", {"source": "/a", "height": 64}),
        ("job_id", {"source": "/a", "job_id": "x"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("call", ["run_template", "submit_template"])
async def test_a_value_that_is_wrong_is_refused_before_anything_is_stored(
    jobs: Jobs, call: str, field: str, params: dict[str, Any]
) -> None:
    await jobs.add_template(shown("{width}", "{source}"))
    with pytest.raises(InvalidJob) as caught:
        await getattr(jobs, call)("show", **params)
    assert caught.value.field == field
    assert await jobs.count() == 0


@pytest.mark.parametrize("call", ["run_template", "submit_template"])
async def test_a_template_that_there_is_not_is_not_found(jobs: Jobs, call: str) -> None:
    with pytest.raises(JobNotFound, match="there is no template 'nothing'"):
        await getattr(jobs, call)("nothing", a=5)


@pytest.mark.parametrize(
    ("field", "template"),
    [
        ("name", {"command": "true"}),
        ("name", {"name": "", "command": "true"}),
        ("name", {"name": 5, "command": "true"}),
        ("name", {"name": "x" * 201, "command": "true"}),
        ("command", {"name": "t"}),
        ("command", {"name": "t", "command": ["echo", "{a}"]}),
        ("parameters", {"name": "t", "command": "true", "parameters": {"a": {"type": "x"}}}),
        ("colour", {"name": "t", "command": "true", "colour": "red"}),
        ("restart", {"name": "t", "command": "true", "restart": "sometimes"}),
        ("restart", {"name": "t", "command": "true", "restart": ODD}),
        ("limits", {"name": "t", "command": "true", "limits": ODD}),
        ("retry", {"name": "t", "command": "true", "retry": ODD, "max_retries": 1}),
        ("max_retries", {"name": "t", "command": "true", "retry_delay": 1}),
        ("depends_on", {"name": "t", "command": "true", "depends_on": [0]}),
    ],
    ids=str,
)
async def test_a_template_that_is_wrong_is_not_kept(
    jobs: Jobs, field: str, template: dict[str, Any]
) -> None:
    with pytest.raises(InvalidJob) as caught:
        await jobs.add_template(template)
    assert caught.value.field == field
    assert await jobs.templates() == {}


async def test_a_template_is_replaced_by_one_of_its_name(jobs: Jobs) -> None:
    await jobs.add_template(Template(name="t", command="echo old"))
    await jobs.add_template(Template(name="t", command="echo new"))
    assert {name: t.command for name, t in (await jobs.templates()).items()} == {"t": "echo new"}


async def test_a_template_that_is_removed_is_gone(jobs: Jobs) -> None:
    await jobs.add_template(Template(name="t", command="true"))
    assert await jobs.remove_template("t")
    assert not await jobs.remove_template("t")
    assert await jobs.templates() == {}
    with pytest.raises(JobNotFound):
        await jobs.run_template("t")


@pytest.mark.parametrize("name", ["../../x", "a b", "ü🚀", "-", "x" * 200])
async def test_a_template_may_have_an_odd_name(jobs: Jobs, name: str) -> None:
    await jobs.add_template(Template(name=name, command="true"))
    assert (await jobs.run_template(name)).name == name


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}", '{"name": "strange", "colour": 1}'])
async def test_a_template_that_cannot_be_read_is_no_harm_to_others(
    jobs: Jobs, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    await jobs._jobdb.put_document(TEMPLATE, "strange", text)
    await jobs.add_template(Template(name="t", command="true"))
    assert list(await jobs.templates()) == ["t"]
    assert "'strange' cannot be read" in caplog.text
    await jobs.run_template("t")
    with pytest.raises(InvalidJob, match="template: 'strange' cannot be read"):
        await jobs.run_template("strange")
    assert await jobs.remove_template("strange")


async def test_a_template_of_a_policy_that_is_not_there_any_more_is_refused(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    await jobs.add_template(
        {"name": "t", "command": "true", "max_retries": 2, "retry": Patiently()}
    )
    monkeypatch.delattr(sys.modules[__name__], "Patiently")
    with pytest.raises(InvalidJob, match=r"'t' cannot be read: retry: .*Patiently"):
        await jobs.submit_template("t")
    assert await jobs.count() == 0


async def test_templates_outlive_their_application(tmp_path: Path) -> None:
    template = shown("{width}", "{source}")
    async with Jobs(tmp_path, executor="inline") as jobs:
        await jobs.add_template(template)
    async with Jobs(tmp_path, executor="inline") as jobs:
        assert await jobs.templates() == {"show": template}


HOST = """
import asyncio, sys
from anodejobs import Jobs

async def main():
    async with Jobs(sys.argv[1]) as jobs:
        record = await jobs.run_template("show", source="/from another process")
        await jobs.wait(record.self_id)
        print((await jobs.job_logs(record.self_id))[0], end="")

asyncio.run(main())
"""


async def test_another_process_runs_a_template(jobs: Jobs) -> None:
    await jobs.add_template(shown("{width}", "{source}"))
    host = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HOST, str(jobs.db_path)), stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            stdout, _ = await host.communicate()
    finally:
        if host.returncode is None:
            host.kill()
            await host.wait()
    assert stdout == b"[256][/from another process]"


async def test_what_is_kept_is_text_that_others_can_read(jobs: Jobs) -> None:
    await jobs.add_template(TEMPLATES["a policy"])
    (text,) = (await jobs._jobdb.documents(TEMPLATE)).values()
    kept = json.loads(text)
    assert kept["retry"]["kind"] == "exponential"
    assert kept["command"] == "true"
