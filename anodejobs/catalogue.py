"""Catalogue: the templates that are kept, by name."""

from __future__ import annotations

import json
import logging
from typing import Final

from anodejobs import documents
from anodejobs.errors import InvalidJob, JobNotFound
from anodejobs.jobdb import JobDB
from anodejobs.templates import Template

LOG = logging.getLogger("anodejobs")

TEMPLATE: Final = "template"
"""The kind of the documents."""


class Catalogue:
    """Keeps templates in the store, for every process that uses it."""

    def __init__(self, jobdb: JobDB) -> None:
        self._jobdb = jobdb

    async def add(self, template: Template) -> None:
        """Keep a template, in place of one of that name."""
        text = json.dumps(documents.spec_to_json(template))
        await self._jobdb.put_document(TEMPLATE, template.name, text)

    async def remove(self, name: str) -> bool:
        """Forget a template; return whether there was one."""
        if name not in await self._jobdb.documents(TEMPLATE):
            return False
        await self._jobdb.put_document(TEMPLATE, name, None)
        return True

    async def get(self, name: str) -> Template:
        """Return a template. Raises JobNotFound, and InvalidJob where it cannot be read here."""
        kept = await self._jobdb.documents(TEMPLATE)
        if name not in kept:
            raise JobNotFound(name, "template")
        return _read(name, kept[name])

    async def all(self) -> dict[str, Template]:
        """Return all templates by name, but for those that cannot be read here."""
        found: dict[str, Template] = {}
        for name, text in (await self._jobdb.documents(TEMPLATE)).items():
            try:
                found[name] = _read(name, text)
            except InvalidJob as error:
                LOG.error("%s; it is left out", error)
        return found


def _read(name: str, text: str) -> Template:
    try:
        return documents.spec_from_json(Template, json.loads(text))
    except (TypeError, ValueError) as error:  # a newer anodejobs kept it, or a class is not here
        raise InvalidJob("template", f"{name!r} cannot be read: {error}") from error
