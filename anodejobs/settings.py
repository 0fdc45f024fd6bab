"""What a ``Jobs`` is made from, said by the environment: ``pip install 'anodejobs[settings]'``.

``ANODEJOBS_DIALECT=postgresql`` in the environment, or in a file ``.env``, or in code:
``JobsSettings(dialect="postgresql")``. Code takes precedence over the environment, and that over
the file.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from anodejobs.arguments import LONGEST_RECOVERY_S
from anodejobs.errors import InvalidJob
from anodejobs.stores import sqlite_store
from anodejobs.stores.base import Durability, JobStore

try:
    from pydantic_settings import BaseSettings, SettingsConfigDict
except ImportError as error:
    raise ImportError(
        "JobsSettings needs pydantic-settings: pip install 'anodejobs[settings]'"
    ) from error

__all__ = ["JobsSettings"]

_PREFIX: Final = "ANODEJOBS_"
_OF_STORES: Final = {
    "memory": (),
    "file": ("store_path", "durability"),
    "sqlite": ("dialect", "path", "durability"),
    "server": ("dialect", "host", "port", "username", "password", "name", "pool_size"),
}
"""The settings that say where and how a store is, by what it is."""


class JobsSettings(BaseSettings):
    """Where the jobs of an application are kept, how many may run and which. Reads nothing else.

    Each field is the variable of its name in capitals behind ``ANODEJOBS_``, such as
    ``ANODEJOBS_STORE_TYPE``. An empty one counts as unset; ``none`` is None; several names are
    given in JSON, ``["a", "b"]``. A ``.env`` is looked for where the application runs
    (``JobsSettings(_env_file=…)``: elsewhere, None: not at all). The jobs inherit the application's
    environment, so a password is better kept in the file, which they are not given.

    Raises an InvalidJob that names the variable; a password is in no message and no repr.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_file=".env",
        env_ignore_empty=True,
        env_parse_none_str="none",
        extra="ignore",  # jobs of our own, and the tests of others, have variables like ours
        hide_input_in_errors=True,
        validate_assignment=True,
    )

    db_path: Path = Path("./job_db")
    store_type: Literal["database", "file", "memory"] = "database"
    store_path: Path | None = None
    """The folder of a store of files; by default ``records`` in ``db_path``."""
    dialect: Literal["sqlite", "postgresql", "mysql", "mariadb"] = "sqlite"
    path: Path | None = None
    """The file of an SQLite database; by default ``jobs.db`` in ``db_path``."""
    host: str | None = None
    port: int | None = Field(default=None, ge=1, le=65535)
    username: str | None = None
    password: SecretStr | None = None
    name: str | None = None
    """The database on the server."""
    pool_size: int | None = Field(default=None, ge=1)
    """How many connections to the server may read at once; there is one more that writes."""
    durability: Durability | None = None
    """What a commit survives; by default ``process``."""
    recovery_timeout: float = Field(default=60.0, gt=0, le=LONGEST_RECOVERY_S)
    """Seconds without a sign of life after which a machine that shares the store is given up."""
    max_concurrent_jobs: int | None = Field(default=10, ge=1)
    queues: dict[str, Annotated[int, Field(ge=1)]] | None = None
    """The slots of each queue that has some of its own: ``{"gpu": 1}``."""
    only_queues: list[str] | None = Field(default=None, min_length=1)
    only_tags: list[str] | None = Field(default=None, min_length=1)
    retention_days: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        for name in values:
            if name not in type(self).model_fields and name[:1] != "_":
                raise InvalidJob(name, "there is no such setting")
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            name, *inside = map(str, first["loc"])
            problem = ": ".join([*inside, first["msg"]])
            raise InvalidJob(_said_as(name, in_code=name in values), problem) from None
        except UnicodeDecodeError:  # which has all of the file in it, passwords too
            file = values.get("_env_file", self.model_config["env_file"])
            raise InvalidJob(str(file), "is not UTF-8") from None

    @field_validator("queues", "only_queues", "only_tags", mode="before")
    @classmethod
    def _is_no_text(cls, value: object) -> object:
        """Refuse what was no JSON where it was read, which comes as it is."""
        if isinstance(value, str):
            raise PydanticCustomError("json", 'must be JSON, as in ["a", "b"] or {"a": 1}')
        return value

    def make_store(self) -> JobStore:
        """Return the store, which is not open. Raises InvalidJob where settings contradict."""
        kind: str = self.store_type
        if kind == "database":
            kind = "sqlite" if self.dialect == "sqlite" else "server"
        for name in dict.fromkeys(chain.from_iterable(_OF_STORES.values())):
            is_said = name in self.model_fields_set and getattr(self, name) is not None
            if is_said and name not in _OF_STORES[kind]:
                raise InvalidJob(_said_as(name), f"is of no use {self._as_it_is()}")
        match kind:
            case "memory":
                from anodejobs.stores.memory import MemoryJobStore

                return MemoryJobStore()
            case "file":
                from anodejobs.stores.file import FileJobStore

                return FileJobStore(self.store_path or self.db_path / "records")
            case "sqlite":
                path = self.path or self.db_path / "jobs.db"
                return sqlite_store(path, durability=self.durability or "process")
        return self._server_store()

    def _server_store(self) -> JobStore:
        from anodejobs.stores.database import DatabaseJobStore

        if self.name is None:
            raise InvalidJob(_said_as("name"), f"must be set {self._as_it_is()}")
        return DatabaseJobStore(
            dialect=self.dialect,
            host=self.host or "localhost",
            port=self.port,
            username=self.username,
            password=None if self.password is None else self.password.get_secret_value(),
            database=self.name,
            pool_size=self.pool_size,
        )

    def _as_it_is(self) -> str:
        if self.store_type != "database":
            return f"with {_said_as('store_type')}={self.store_type}"
        return f"with {_said_as('dialect')}={self.dialect}"


def _said_as(name: str, *, in_code: bool = False) -> str:
    """Return the name by which a setting is said."""
    return name if in_code else f"{_PREFIX}{name.upper()}"
