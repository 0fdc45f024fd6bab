"""Named commands: which values their parameters take, and where these go, and never go."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anodejobs.errors import InvalidJob
from anodejobs.records import JobSpec
from anodejobs.templates import Parameter, Template, render

untimed = settings(deadline=None)

NASTY = [
    *("a b", "", " ", "'", '"', "$(touch x)", "`touch x`", "; touch x", "a\nb", "*", "~", "-rf"),
    *("{file}", "{{file}}", "{0}", "{file.__class__}", "%s", "\\", "ü", "${HOME}", "| cat", "&& x"),
]


class Colour(StrEnum):
    red = "red"

    def __str__(self) -> str:
        return "not red"


class Share(float):
    """One that tells its class, as those of numpy do."""

    def __repr__(self) -> str:
        return f"Share({super().__repr__()})"

    def __add__(self, other: float) -> Share:
        return Share(super().__add__(other))


class Number(IntEnum):
    five = 5


def template(command: str | list[str], **parameters: Any) -> Template:
    return Template(name="it", command=command, parameters=parameters)


def arguments(command: list[str], values: dict[str, Any], **parameters: Any) -> list[str]:
    found = render(template(command, **parameters), values)["command"]
    assert isinstance(found, list)
    return found


def text(parameter: Parameter, value: object) -> str:
    """Return what the program is given for the value."""
    return arguments(["do", "{it}"], {"it": value}, it=parameter)[1]


def refused(field: str, make: Callable[[], object]) -> str:
    with pytest.raises(InvalidJob) as caught:
        make()
    assert caught.value.field == field
    return caught.value.problem


# Commands that are lists.


def test_a_placeholder_is_an_argument_or_part_of_one() -> None:
    command = ["convert", "{source}", "--size={width}x{height}", "done"]
    integer = Parameter(type="int")
    values = {"source": "a b.png", "width": 3, "height": 4}
    assert arguments(command, values, source=Parameter(), width=integer, height=integer) == [
        "convert",
        "a b.png",
        "--size=3x4",
        "done",
    ]


@pytest.mark.parametrize("value", NASTY)
def test_a_value_is_text_and_nothing_else(value: str) -> None:
    command = ["do", "{file}", "<{file}>", "{file}{file}"]
    expected = ["do", value, f"<{value}>", value + value]
    assert arguments(command, {"file": value}, file=Parameter()) == expected


@untimed
@given(
    st.lists(st.sampled_from(["{a}", "{b}", "-", "{{", "}}", "x", " "]).map(str), max_size=5),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
)
def test_whatever_the_values_there_are_as_many_arguments_as_the_command_has(
    parts: list[str], a: str, b: str
) -> None:
    command = ["do", *parts, "".join(parts)]
    found = arguments(command, {"a": a, "b": b}, a=Parameter(), b=Parameter())
    meant = {"{a}": a, "{b}": b, "{{": "{", "}}": "}"}
    texts = [meant.get(part, part) for part in parts]
    assert found == ["do", *texts, "".join(texts)]


@pytest.mark.parametrize("value", NASTY)
def test_the_program_is_given_the_value_as_it_is(value: str) -> None:
    command = [sys.executable, "-I", "-S", "-c", "import sys; print(ascii(sys.argv[1:]))", "{it}"]
    found = arguments(command, {"it": value}, it=Parameter())
    told = subprocess.run(found, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == ascii([value])


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("{{it}}", "{it}"),
        ("{{{it}}}", "{x}"),
        ("{{", "{"),
        ("}}{{", "}{"),
        ("{{{{it}}}}", "{{it}}"),
        ('{{"it": "{it}"}}', '{"it": "x"}'),
        ("$it %it ${{it}}", "$it %it ${it}"),
    ],
)
def test_doubled_braces_are_literal(argument: str, expected: str) -> None:
    assert arguments(["do", argument], {"it": "x"}, it=Parameter())[1] == expected


@pytest.mark.parametrize(
    "argument",
    [
        *("{", "}", "{}", "{0}", "{it", "it}", "{it}}", "{{it}", "{ it }", "{it!r}", "{it:>5}"),
        *("{it.__class__}", "{it[0]}", "{it}{", "{it\n}", "{ït}", "{-it}", "{{{it}}", "{{}"),
    ],
)
def test_a_brace_that_means_nothing_is_refused(argument: str) -> None:
    problem = refused("command", lambda: template(["do", argument], it=Parameter()))
    assert problem.startswith("argument 1 has a lone ")


def test_a_placeholder_that_is_no_parameter_is_refused() -> None:
    assert "argument 2 names no parameter: {other}" in refused(
        "command", lambda: template(["do", "{it}", "{other}"], it=Parameter())
    )


def test_a_program_may_be_a_parameter_that_cannot_be_missing() -> None:
    tool = Parameter(choices=["gzip", "xz"])
    assert arguments(["{tool}", "-d"], {"tool": "xz"}, tool=tool) == ["xz", "-d"]
    refused("command", lambda: template(["{tool}"], tool=Parameter(required=False)))


def test_an_argument_is_left_out_with_the_parameter_it_names() -> None:
    command = ["do", "--level={level}", "{a}-{level}", "{a}"]
    level = Parameter(type="int", required=False)
    assert arguments(command, {"a": "x"}, a=Parameter(), level=level) == ["do", "x"]
    found = arguments(command, {"a": "x", "level": 5}, a=Parameter(), level=level)
    assert found == ["do", "--level=5", "x-5", "x"]


# Commands that are strings.


@pytest.mark.parametrize("value", NASTY)
def test_a_shell_is_given_values_in_its_environment_only(value: str) -> None:
    found = render(template('printf %s "$PARAM_FILE"', file=Parameter()), {"file": value})
    assert found["command"] == 'printf %s "$PARAM_FILE"'
    assert found["envs"] == {"PARAM_FILE": value}
    told = subprocess.run(
        ["/bin/sh", "-c", found["command"]], env=found["envs"], capture_output=True, check=True
    )
    assert told.stdout.decode() == value


@pytest.mark.parametrize("command", ["cat {file}", "cat '{file}'", "cat -- {file}{{file}}"])
def test_a_placeholder_in_a_shell_string_is_refused(command: str) -> None:
    problem = refused("command", lambda: template(command, file=Parameter()))
    assert 'write "$PARAM_FILE", or make the command a list' in problem


@pytest.mark.parametrize(
    "command",
    ["awk '{print}'", "cat ${file}", "{ true; }", "echo {a,b}", "find -exec rm {} ';'", "echo }{"],
)
def test_braces_that_a_shell_knows_are_left_to_it(command: str) -> None:
    assert render(template(command, file=Parameter()), {"file": "x"})["command"] == command


def test_a_parameter_that_no_placeholder_names_is_in_the_environment() -> None:
    made = template(["do", "{a}"], a=Parameter(), withoutPlace=Parameter(type="bool"))
    found = render(made, {"a": "x", "withoutPlace": True})
    assert (found["command"], found["envs"]) == (["do", "x"], {"PARAM_WITHOUTPLACE": "true"})


def test_a_parameter_without_a_value_is_not_in_the_environment() -> None:
    assert render(template("do", a=Parameter(required=False)), {})["envs"] == {}


def test_the_environment_of_the_template_is_kept() -> None:
    made = Template(name="it", command="do", envs={"A": "1"}, parameters={"b": Parameter()})
    assert render(made, {"b": "2"})["envs"] == {"A": "1", "PARAM_B": "2"}


def test_two_parameters_cannot_have_the_same_variable() -> None:
    problem = refused("parameters", lambda: template("do", aB=Parameter(), Ab=Parameter()))
    assert problem == "aB and Ab differ in case only"


def test_the_variable_of_a_parameter_is_its_own() -> None:
    made = {"name": "it", "command": "do", "parameters": {"b": {}}, "envs": {"PARAM_B": "1"}}
    refused("envs", lambda: Template(made))


# Values.


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("str", "a b", "a b"),
        ("str", "", ""),
        ("str", "-rf", "-rf"),
        ("str", Colour.red, "red"),
        ("int", 5, "5"),
        ("int", -5, "-5"),
        ("int", Number.five, "5"),
        ("int", 10**30, "1" + "0" * 30),
        ("float", 0.25, "0.25"),
        ("float", 5, "5"),
        ("float", 1e300, "1e+300"),
        ("float", Share(0.25), "0.25"),
        ("float", Number.five, "5"),
        ("bool", True, "true"),
        ("bool", False, "false"),
        ("path", "/a b", "/a b"),
        ("path", Path("/a/./b"), "/a/b"),
    ],
)
def test_a_value_as_text(kind: str, value: object, expected: str) -> None:
    found = text(Parameter(type=kind), value)
    assert found == expected
    assert type(found) is str


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("str", [5, True, 0.5, b"a", ["a"], {"a": 1}, "a\0b", "\udcff", Colour, Path("/a")]),
        ("int", [True, 5.0, "5", "", b"5", [5], math.nan, 10**5000]),
        ("float", [True, "5", math.nan, math.inf, -math.inf, [0.5], 1j]),
        ("bool", [0, 1, "true", "", [True]]),
        ("path", [5, b"/a", True, "", "a\0b", "\udcff", ["a"]]),
    ],
)
def test_a_value_of_another_type_is_refused_by_the_name_of_the_parameter(
    kind: str, values: list[object]
) -> None:
    for value in values:
        refused("it", lambda value=value: text(Parameter(type=kind), value))


@pytest.mark.parametrize(("kind", "step"), [("int", 1), ("float", 0.001)])
def test_a_number_is_within_its_bounds(kind: str, step: float) -> None:
    parameter = Parameter(type=kind, min=-2, max=3)
    assert [text(parameter, value) for value in (-2, 0, 3)] == ["-2", "0", "3"]
    assert refused("it", lambda: text(parameter, -2 - step)) == "must be at least -2"
    assert refused("it", lambda: text(parameter, 3 + step)) == "must be at most 3"


def test_a_bound_of_an_int_is_exact() -> None:
    parameter = Parameter(type="int", max=2**63)
    assert text(parameter, 2**63) == str(2**63)
    refused("it", lambda: text(parameter, 2**63 + 1))


@pytest.mark.parametrize("kind", ["str", "path"])
def test_the_whole_of_a_text_matches_its_pattern(kind: str) -> None:
    parameter = Parameter(type=kind, pattern="[a-z]+|[0-9]+")
    assert text(parameter, "abc") == "abc"
    for value in ("abc1", "abc\n", "\nabc", "-abc"):
        assert refused("it", lambda value=value: text(parameter, value)).startswith("must match ")


def test_a_value_is_one_of_its_choices() -> None:
    parameter = Parameter(choices=["low", "high"])
    assert text(parameter, "high") == "high"
    assert refused("it", lambda: text(parameter, "hig")) == "must be one of 'low', 'high'"


def test_a_number_is_one_of_its_choices() -> None:
    parameter = Parameter(type="int", choices=[1, 2])
    assert text(parameter, 1) == "1"
    refused("it", lambda: text(parameter, True))
    refused("it", lambda: text(parameter, 3))


def test_a_default_stands_for_a_value_that_is_not_given() -> None:
    made = template(["do", "{width}"], width=Parameter(type="int", default=256))
    assert render(made, {})["command"] == ["do", "256"]
    assert render(made, {"width": None})["command"] == ["do", "256"]
    assert render(made, {"width": 5})["command"] == ["do", "5"]


@pytest.mark.parametrize(("value", "expected"), [(0, "0"), (False, "false"), ("", "")])
def test_a_value_that_is_false_is_a_value(value: object, expected: str) -> None:
    kind = type(value).__name__
    assert text(Parameter(type=kind, required=False), value) == expected
    made = template(["do", "{it}"], it=Parameter(type=kind, default=value))
    assert render(made, {})["command"] == ["do", expected]


@pytest.mark.parametrize("values", [{}, {"it": None}])
def test_a_parameter_that_is_missing_is_named(values: dict[str, None]) -> None:
    made = template(["do", "{it}"], it=Parameter())
    assert refused("it", lambda: render(made, values)) == "is required by template 'it'"


def test_a_parameter_that_is_unknown_is_named() -> None:
    made = template(["do", "{a}"], a=Parameter(), b=Parameter(default=""))
    problem = refused("c", lambda: render(made, {"a": "x", "c": 5}))
    assert problem == "template 'it' has no such parameter; it has a, b"


def test_a_value_that_is_refused_is_not_told() -> None:
    made = template(["do", "{it}"], it=Parameter(pattern="[a-z]+"))
    assert "hunter2" not in refused("it", lambda: render(made, {"it": "hunter2-secret"}))


# What a parameter is made from.


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("type", {"type": "number"}),
        ("type", {"type": str}),
        ("min", {"type": "int", "min": "1"}),
        ("min", {"type": "int", "min": True}),
        ("min", {"type": "float", "min": math.nan}),
        ("min", {"min": 1}),
        ("max", {"type": "path", "max": 1}),
        ("max", {"type": "int", "min": 2, "max": 1}),
        ("pattern", {"pattern": "("}),
        ("pattern", {"pattern": "a{99999999999999}"}),
        ("pattern", {"pattern": 5}),
        ("pattern", {"type": "int", "pattern": "5"}),
        ("choices", {"choices": []}),
        ("choices", {"choices": "ab"}),
        ("choices", {"choices": ["a", 5]}),
        ("choices", {"type": "int", "choices": [1, True]}),
        ("choices", {"type": "int", "choices": [1, 2], "max": 1}),
        ("default", {"default": 5}),
        ("default", {"default": "a\0b"}),
        ("default", {"type": "int", "default": 5, "max": 4}),
        ("default", {"type": "float", "default": math.inf}),
        ("default", {"default": "c", "choices": ["a", "b"]}),
        ("default", {"default": "A", "pattern": "[a-z]"}),
        ("required", {"required": "yes"}),
        ("description", {"description": 5}),
        ("maximum", {"maximum": 5}),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused(field: str, fields: dict[str, Any]) -> None:
    refused(field, lambda: Parameter(fields))
    problem = refused("parameters", lambda: template("do", it=fields))
    assert problem.startswith(f"it: {field}: ")


@pytest.mark.parametrize("name", ["", "1a", "_a", "a-b", "a b", "a.b", "ä", "a\n", 5, None])
def test_what_cannot_name_a_parameter_is_refused(name: Any) -> None:
    fields = {"name": "it", "command": "do", "parameters": {name: Parameter()}}
    refused("parameters", lambda: Template(fields))


@pytest.mark.parametrize("value", ["int", 5, None, [], Parameter])
def test_what_is_no_parameter_is_refused(value: Any) -> None:
    assert refused("parameters", lambda: template("do", it=value)) == "it: must be a Parameter"
    refused("parameters", lambda: Template(name="it", command="do", parameters=value))


# What a template is made from.


def test_the_options_of_a_job_are_those_of_the_template() -> None:
    made = Template(
        name="thumbnail",
        description="makes it small",
        command=["do", "{it}"],
        parameters={"it": Parameter()},
        timeout=60,
        tags={"img"},
        cwd=Path("/tmp"),
        envs={"A": "1"},
    )
    found = render(made, {"it": "x"})
    assert found == {
        "name": "thumbnail",
        "description": "makes it small",
        "command": ["do", "x"],
        "timeout": 60.0,
        "tags": ["img"],
        "cwd": "/tmp",
        "envs": {"A": "1"},
    }
    assert JobSpec(found).command == ["do", "x"]


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 201, 5, None])
def test_a_template_has_a_name(name: Any) -> None:
    refused("name", lambda: Template(name=name, command="do"))


def test_a_template_without_a_name_is_refused() -> None:
    refused("name", lambda: Template(command="do"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("command", []), ("command", ["a\0"]), ("timeout", -1), ("envs", {"": ""}), ("time_out", 5)],
)
def test_what_a_job_refuses_a_template_refuses(field: str, value: object) -> None:
    refused(field, lambda: Template({"name": "it", "command": "do", field: value}))


@pytest.mark.parametrize(
    "fields",
    [
        {"command": ["do", "{a}", "{b}"], "parameters": {"a": {"type": "path"}, "b": {}}},
        {"command": 'do "$PARAM_A"', "parameters": {"a": {"type": "float", "default": 1.0}}},
        {"command": "do", "tags": {"x"}, "envs": {"A": "1"}, "timeout": 5},
        {"command": "do", "parameters": {"a": {"type": "int", "choices": [1, 2], "default": 2}}},
    ],
)
def test_a_template_survives_json(fields: dict[str, Any]) -> None:
    made = Template(name="it", **fields)
    for unset in (True, False):
        stored = json.dumps(made.model_dump(mode="json", exclude_unset=unset))
        assert Template(json.loads(stored)) == made
    assert Template.model_validate_json(made.model_dump_json()) == made


@untimed
@given(st.text("{}ab", max_size=12))
def test_any_argument_is_filled_in_as_it_reads_or_is_refused(argument: str) -> None:
    expected = filled_by_hand(argument, "{a}")
    if expected is None:
        refused("command", lambda: template(["do", argument], a=Parameter()))
    else:
        assert arguments(["do", argument], {"a": "{a}"}, a=Parameter())[1] == expected


def filled_by_hand(argument: str, value: str) -> str | None:
    """Return the argument with ``a`` filled in, or None where a brace means nothing."""
    found = ""
    while argument:
        for piece, text in (("{{", "{"), ("}}", "}"), ("{a}", value), ("a", "a"), ("b", "b")):
            if argument.startswith(piece):
                found += text
                argument = argument.removeprefix(piece)
                break
        else:
            return None
    return found
