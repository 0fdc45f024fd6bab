"""An attempt in a shim's care: what has happened to it, and who is told of that."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from json.encoder import encode_basestring_ascii

from anodejobs.events import Adopted, Attempt, End, Exited, Started, StartFailed
from anodejobs.executors.base import Launch
from anodejobs.shim.clients import Client
from anodejobs.shim.journal import Entry
from anodejobs.shim.protocol import Message, Told


@dataclass(slots=True, eq=False)
class Life(Entry):
    """An attempt in the shim's care."""

    owner: Client | None = None
    others: tuple[Client, ...] = ()  # as a rule there is none, and an empty set is not small
    """Who has asked for it as well, or had it before, and is told of it too."""
    askers: list[tuple[Client, int]] = field(default_factory=list)
    """Who waits to hear how its start went."""
    is_inherited: bool = False
    """Whether its owner may not have heard how it started."""
    is_acknowledged: bool = False
    is_clean: bool = False

    def add(self, client: Client) -> None:
        """Have it told, too."""
        self.others = (*(other for other in self.others if other is not client), client)

    def remove(self, client: Client) -> None:
        """Have it told no more, unless it is the owner."""
        self.others = tuple(other for other in self.others if other is not client)

    @property
    def has_ended(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], End)

    @property
    def has_failed_to_start(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], StartFailed)

    @property
    def is_newsworthy(self) -> bool:
        """Whether there is more to tell than how its start went, which is asked for."""
        return any(not isinstance(event, Started | StartFailed) for event in self.events)

    def news(self, text: str) -> str:
        """Return the message that says what happened to it, an event's text."""
        token, job_id = self.attempt.token, encode_basestring_ascii(self.launch.job_id)
        return f'{{"token":"{token}","job_id":{job_id},"event":{text}}}'


def begun_life(client: Client, message: Message, attempt: Attempt) -> Life:
    """Return the life of an attempt that an application asks for."""
    launch = Launch.from_json({**message["launch"], **message["exec"]}, client.env)
    return Life(message["number"], launch, attempt, line=message["line"], owner=client)


def as_recorded(event: Told) -> Told:
    """Return an end as it is told to an application that was not there to be told of it."""
    if isinstance(event, Exited) and event.evidence == "observed":
        return replace(event, evidence="recorded")
    return event


def latest_attempt(entry: Entry) -> Attempt:
    """Return the attempt as it was last told of, with its process where that is known."""
    told = (e.attempt for e in reversed(entry.events) if isinstance(e, Started | Adopted))
    return next(told, entry.attempt)
