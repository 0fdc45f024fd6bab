"""Catalogue: the templates that are kept, by name."""

from __future__ import annotations

from typing import Final

from anodejobs import documents
from anodejobs.errors import JobNotFound
from anodejobs.jobdb import JobDB
from anodejobs.templates import Template

TEMPLATE: Final = "template"
"""The kind of the documents."""


class Catalogue:
    """Keeps templates in the store, for every process that uses it."""

    def __init__(self, jobdb: JobDB) -> None:
        self._jobdb = jobdb

    async def add(self, template: Template) -> None:
        """Keep a template, in place of one of that name."""
        text = documents.encoded(documents.spec_to_json(template))
        await self._jobdb.put_document(TEMPLATE, template.name, text)

    async def remove(self, name: str) -> bool:
        """Forget a template; return whether there was one."""
        if name not in await self._jobdb.documents(TEMPLATE):
            return False
        await self._jobdb.put_document(TEMPLATE, name, None)
        return True

    async def get(self, name: str) -> Template:
        """Return a template. Raises JobNotFound."""
        kept = await self.all()
        if name not in kept:
            raise JobNotFound(name)
        return kept[name]

    async def all(self) -> dict[str, Template]:
        """Return all templates by name."""
        kept = await self._jobdb.documents(TEMPLATE)
        return {
            name: documents.spec_from_json(Template, documents.decoded(text))
            for name, text in kept.items()
        }
