"""The habits that all models share.

A mapping or keywords in, attributes or keys out; a field can be named through its class, and
spelled with the prefix ``f_``. Wrong input raises ``InvalidJob`` naming the field. This module
knows no job.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    Union,
    get_args,
    get_origin,
)

from pydantic import BaseModel, ConfigDict, ValidationError

from anodejobs.errors import InvalidJob

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)  # which pydantic does not export


class _NamesFields(ModelMetaclass):
    """Makes ``Model.field`` and ``Model.f_field`` give the field's name."""

    _is_making = False

    def __new__(mcs, *args: Any, **kwargs: Any) -> Any:
        # Asked while pydantic collects the fields of a subclass, the honest answer is "no default".
        _NamesFields._is_making = True
        try:
            return super().__new__(mcs, *args, **kwargs)
        finally:
            _NamesFields._is_making = False

    def __getattr__(cls, name: str) -> Any:  # noqa: N805  # a metaclass's self is a class
        field = name.removeprefix("f_")
        if not _NamesFields._is_making and field in cls.__dict__.get("__pydantic_fields__", ()):
            return field
        return super().__getattr__(name)  # type: ignore[misc]  # pydantic hides it from checkers


_set = object.__setattr__  # past the frozen model's own


class Model(BaseModel, metaclass=_NamesFields):
    """The habits all models share: a mapping or keywords in, attributes or keys out."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    _all_fields: ClassVar[set[str]]
    """The names of all fields: one set, shared by all that ``trusted`` makes."""
    _mutable_fields: ClassVar[tuple[str, ...]]
    """The names of those that may hold a list or a dict."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        cls._all_fields = set(cls.model_fields)
        cls._mutable_fields = tuple(
            name for name, field in cls.model_fields.items() if not _is_plain(field.annotation)
        )

    def __init__(self, data: Mapping[str, Any] | Model | None = None, /, **fields: Any) -> None:
        if isinstance(data, Model):
            data = data.model_dump(exclude_unset=True)
        elif data is not None and not isinstance(data, Mapping):
            raise InvalidJob(type(self).__name__, "is made from a mapping of its fields")
        fields = {**(data or {}), **fields}
        for name in fields:
            if not isinstance(name, str):
                raise InvalidJob(repr(name), _NO_FIELD)
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise _named(error, type(self).model_fields) from None

    def __getitem__(self, key: object) -> Any:  # to a checker ``Model.field`` is a field's value
        field = key.removeprefix("f_") if isinstance(key, str) else key
        if not isinstance(field, str) or field not in type(self).model_fields:
            raise KeyError(key)
        return getattr(self, field)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            field = name.removeprefix("f_")
            if field != name and field in type(self).model_fields:
                return getattr(self, field)
            return super().__getattr__(name)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """What is as it would be unsaid is left out: of a record, that is most."""
        fields = type(self).model_fields
        for name, value in super().__repr_args__():
            if name is None or value != fields[name].get_default(call_default_factory=True):
                yield name, value

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """Return a copy with the changes, which are trusted to be right.

        As ``model_copy(update=changes)``, in a fraction of the time: it is made for every event.
        """
        return self.trusted({**self.__dict__, **changes})

    def detached(self) -> Self:
        """Return a copy with lists and dicts of its own: who gets it may change them.

        Models share theirs with those that they are made from, and with who keeps them.
        """
        values = self.__dict__.copy()
        for name in self._mutable_fields:
            if values[name] is not None:
                values[name] = _copied(values[name])
        return self.trusted(values)

    @classmethod
    def trusted(cls, values: dict[str, Any]) -> Self:
        """Return the model with all its values, which are trusted to be right."""
        made = object.__new__(cls)
        _set(made, "__dict__", values)
        _set(made, "__pydantic_fields_set__", cls._all_fields)
        _set(made, "__pydantic_extra__", None)
        _set(made, "__pydantic_private__", None)
        return made


_NO_FIELD = "there is no such field"
_PLAIN = (str, int, float, datetime, NoneType)


def _is_plain(annotation: Any) -> bool:
    """Return whether nothing of the type can be changed."""
    kind = get_origin(annotation)
    if kind is Literal:
        return True
    if kind is Annotated:
        return _is_plain(get_args(annotation)[0])
    if kind in (Union, UnionType):
        return all(map(_is_plain, get_args(annotation)))
    return isinstance(annotation, type) and issubclass(annotation, _PLAIN)


def _copied(value: Any) -> Any:
    """Return a copy of what JSON can be, in a fraction of the time of ``copy.deepcopy``."""
    if type(value) is list:
        return [_copied(one) for one in value]
    if type(value) is dict:
        return {key: _copied(one) for key, one in value.items()}
    return value


def _named(error: ValidationError, known: Iterable[str]) -> InvalidJob:
    """Name the first wrong field, without repeating values: they may be secrets."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # What follows the field is a place inside it, or the name of a union's member.
    field = str(first["loc"][0]) if first["loc"] else "job"
    if first["type"] == "extra_forbidden":
        meant = get_close_matches(field, known, n=1)
        return InvalidJob(field, f"{_NO_FIELD}; did you mean {meant[0]!r}?" if meant else _NO_FIELD)
    return InvalidJob(field, first["msg"].removeprefix("Value error, "))
