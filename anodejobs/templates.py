"""Named commands with parameters that are typed and checked.

Pure. A value never becomes code: it is the text of one argument, or of part of one, or it is in
the environment. It is not split, not evaluated, and never part of what a shell reads.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, Required, cast

from pydantic import BeforeValidator, ConfigDict, Field

from anodejobs.errors import InvalidJob
from anodejobs.fields import JobId, Text, no_nul
from anodejobs.models import Model
from anodejobs.records import JobOptions, JobSpec

__all__ = ["Parameter", "Rendered", "Template", "render"]

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
_PIECE: Final = re.compile(rf"\{{\{{|\}}\}}|\{{(?P<name>{_NAME.pattern})\}}|[{{}}]", re.ASCII)
"""What is special in an argument: a literal brace, a placeholder, a brace that is wrong."""


def _path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


_Number = int | Annotated[float, Field(allow_inf_nan=False)]
_Given = bool | _Number | str


class Parameter(Model):
    """What a parameter of a template takes.

    The program is given a float as ``0.25``, a bool as ``true`` or ``false``, all else as it is.
    """

    model_config = ConfigDict(strict=True)

    type: Literal["str", "int", "float", "bool", "path"] = "str"
    """A float may also be given as an int, a path also as a ``Path``. Nothing else is converted,
    and that a path exists is not checked."""
    min: _Number | None = None
    """The least number it may be."""
    max: _Number | None = None
    """The greatest number it may be."""
    pattern: Text | None = None
    """A regular expression that the whole of a str or path must match."""
    choices: list[Annotated[_Given, BeforeValidator(_path)]] | None = None
    """If set, it must be one of these."""
    default: Annotated[_Given, BeforeValidator(_path)] | None = None
    """What it is when it is not given."""
    required: bool = True
    """Whether it must be given where it has no default. One that need not, and is not, is left
    out with the argument that names it."""
    description: Text | None = None

    def __init__(self, data: Mapping[str, Any] | Model | None = None, /, **fields: Any) -> None:
        super().__init__(data, **fields)
        self._check()

    @property
    def may_be_missing(self) -> bool:
        """Whether it may have no value at all."""
        return self.default is None and not self.required

    def text_of(self, value: object) -> str:
        """Return what the program is given for the value.

        Raises ValueError, saying what the value must be.
        """
        given: Any = _path(value) if self.type == "path" else value
        if not _is_a(self.type, given):
            raise ValueError(f"must be {_CALLED[self.type]}")
        if self.choices is not None and given not in self.choices:
            raise ValueError(f"must be one of {', '.join(map(repr, self.choices))}")
        if self.min is not None and given < self.min:
            raise ValueError(f"must be at least {self.min}")
        if self.max is not None and given > self.max:
            raise ValueError(f"must be at most {self.max}")
        if self.pattern is not None and not re.fullmatch(self.pattern, given):
            raise ValueError(f"must match {self.pattern}")
        if isinstance(given, bool):
            return "true" if given else "false"
        return no_nul(_written(given))

    def _check(self) -> None:
        """Raise InvalidJob where the fields, each of them right, do not fit together."""
        is_number = self.type in ("int", "float")
        for field in ("min", "max"):
            if self[field] is not None and not is_number:
                raise InvalidJob(field, "is for the types int and float only")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise InvalidJob("max", "must be at least min")
        if self.pattern is not None:
            if self.type not in ("str", "path"):
                raise InvalidJob("pattern", "is for the types str and path only")
            try:
                re.compile(self.pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise InvalidJob("pattern", f"is not a regular expression: {error}") from None
        if self.choices == []:
            raise InvalidJob("choices", "is empty")
        default = [] if self.default is None else [self.default]
        for field, values in (("choices", self.choices or []), ("default", default)):
            for value in values:
                try:
                    self.text_of(value)
                except ValueError as error:
                    raise InvalidJob(field, str(error)) from None


_CALLED: Final = {
    "str": "a str",
    "int": "an int",
    "float": "a finite number",
    "bool": "True or False",
    "path": "a path that is not empty",
}


def _is_a(kind: str, value: Any) -> bool:
    match kind:
        case "bool":
            return isinstance(value, bool)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "float":
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            return is_number and (isinstance(value, int) or math.isfinite(value))
        case "path":
            return isinstance(value, str) and value != ""
        case _:
            return isinstance(value, str)


def _written(value: str | float) -> str:
    try:
        # As the built-in type writes it: one of another class may have its own opinion.
        match value:
            case str():
                return str.__str__(value)
            case int():
                return int.__repr__(value)
            case _:
                return float.__repr__(value)
    except ValueError:  # Python's limit to the digits of an int
        raise ValueError("has too many digits") from None


def _parameters(value: Any) -> Any:
    """Make parameters from their fields, and name the one that is wrong."""
    if not isinstance(value, Mapping):
        return value
    made = {}
    for name, fields in value.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a name: letters, digits and _, a letter first")
        if not isinstance(fields, (Mapping, Parameter)):
            raise ValueError(f"{name}: must be a Parameter")
        try:
            made[name] = fields if isinstance(fields, Parameter) else Parameter(fields)
        except InvalidJob as error:
            raise ValueError(f"{name}: {error}") from None
    return made


class Template(JobSpec):
    """A job with blanks: all that ``Jobs.run`` takes but a ``call``, and what its parameters are.

    In a list, ``{width}`` stands for the value of the parameter ``width``, also within an argument
    (``--width={width}``); it never becomes more than that one argument. ``{{`` and ``}}`` are
    literal braces. A value that begins with ``-`` may be taken for an option by the program: have a
    ``--`` before it, or write ``--name={name}``. A placeholder in the first argument lets whoever
    fills it in choose the program.

    What no placeholder names is given in the environment, as ``PARAM_`` and the name in capitals:
    in a string, which goes to a shell, that is every parameter. Write it as ``"$PARAM_WIDTH"``,
    with the quotes. Braces have no meaning there, but a placeholder is refused: it would not be
    filled in.

        Template(
            name="thumbnail",
            command=["convert", "{source}", "-resize", "{width}x", "{source}.png"],
            parameters={
                "source": Parameter(type="path"),
                "width": Parameter(type="int", min=16, max=4096, default=256),
            },
            timeout=60,
        )

    The name and the description are also those of the jobs.
    """

    name: JobId
    parameters: Annotated[dict[str, Parameter], BeforeValidator(_parameters)] = Field(
        default_factory=dict
    )

    def __init__(self, data: Mapping[str, Any] | Model | None = None, /, **fields: Any) -> None:
        super().__init__(data, **fields)
        _check_environment(self)
        if isinstance(self.command, str):
            _check_shell(self.command, self.parameters)
        else:
            _check_arguments(self.command, self.parameters)


class Rendered(JobOptions, total=False):
    """What ``Jobs.run`` is called with."""

    command: Required[str | list[str]]
    job_id: str | None


def render(template: Template, params: Mapping[str, object]) -> Rendered:
    """Return what ``Jobs.run`` is to be called with to run the template with these values.

    A value of None is as good as none. Raises InvalidJob naming the parameter that is unknown,
    missing, or has a value it does not take.
    """
    texts = _texts(template, params)
    named: set[str] = set()
    command = template.command
    if not isinstance(command, str):
        named = {name for argument in command for name in _names(argument)}
        missing = template.parameters.keys() - texts.keys()
        command = [_filled(part, texts) for part in command if missing.isdisjoint(_names(part))]
    rest = {_variable(name): text for name, text in texts.items() if name not in named}
    options = {name: getattr(template, name) for name in template.model_fields_set}
    del options["name"]
    options.pop("parameters", None)
    filled = {**options, "name": template.name, "command": command}
    return cast(Rendered, {**filled, "envs": {**template.envs, **rest}})


def _texts(template: Template, params: Mapping[str, object]) -> dict[str, str]:
    """Return what stands for each parameter that has a value."""
    for name in params:
        if name not in template.parameters:
            known = ", ".join(template.parameters) or "none"
            problem = f"template {template.name!r} has no such parameter; it has {known}"
            raise InvalidJob(str(name), problem)
    texts = {}
    for name, parameter in template.parameters.items():
        value = params.get(name)
        if value is None:
            value = parameter.default
        if value is not None:
            try:
                texts[name] = parameter.text_of(value)
            except ValueError as error:
                raise InvalidJob(name, str(error)) from None
        elif parameter.required:
            raise InvalidJob(name, f"is required by template {template.name!r}")
    return texts


def _variable(name: str) -> str:
    """Return the environment variable of a parameter; the prefix keeps it from being ``PATH``."""
    return f"PARAM_{name.upper()}"


def _names(argument: str) -> Iterator[str]:
    """Give the parameters that an argument names."""
    return (piece["name"] for piece in _PIECE.finditer(argument) if piece["name"])


def _filled(argument: str, texts: Mapping[str, str]) -> str:
    # All at once: braces in a value are not looked at.
    return _PIECE.sub(
        lambda piece: texts[piece["name"]] if piece["name"] else piece[0][0], argument
    )


def _check_arguments(command: list[str], parameters: Mapping[str, Parameter]) -> None:
    for number, argument in enumerate(command):
        for piece in _PIECE.finditer(argument):
            name = piece["name"]
            if piece[0] in ("{", "}"):
                problem = f"a lone {piece[0]}: write {{name}}, or {piece[0] * 2} for the brace"
                raise InvalidJob("command", f"argument {number} has {problem}")
            if name and name not in parameters:
                raise InvalidJob("command", f"argument {number} names no parameter: {{{name}}}")
            if name and number == 0 and parameters[name].may_be_missing:
                raise InvalidJob("command", f"the program depends on {name}, which may be missing")


def _check_shell(command: str, parameters: Mapping[str, Parameter]) -> None:
    for name in parameters:
        # `${name}` is a variable of the shell.
        if re.search(rf"(?<!\$)\{{{name}\}}", command):
            problem = f'write "${_variable(name)}", or make the command a list'
            raise InvalidJob(
                "command", f"{{{name}}} is not filled in where a shell reads: {problem}"
            )


def _check_environment(template: Template) -> None:
    names: dict[str, str] = {}
    for name in template.parameters:
        variable = _variable(name)
        if variable in names:
            raise InvalidJob("parameters", f"{names[variable]} and {name} differ in case only")
        if variable in template.envs:
            raise InvalidJob("envs", f"{variable} is the parameter {name}")
        names[variable] = name
