"""What a shim and the applications say to each other: JSON objects, one a line.

Pure. The first message of an application is ``hello``, and the answer to it tells the version of
the shim. That exchange, ``drain`` and ``ack`` stay as they are in every version, so that a newer
application can at least see an older shim through.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final, Literal

from anodejobs.events import (
    Adopted,
    Attempt,
    Event,
    Exited,
    Lost,
    Started,
    StartFailed,
    StopFailed,
    StopRequested,
)

VERSION: Final = 2
"""Changes when a message changes its meaning; not when one is added that may be ignored."""

Message = dict[str, Any]
Told = Started | StartFailed | Adopted | StopRequested | StopFailed | Exited | Lost

_KINDS: Final = {
    kind.__name__: kind
    for kind in (Started, StartFailed, Adopted, StopRequested, StopFailed, Exited, Lost)
}
_FIELDS: Final[dict[type[Event], tuple[str, ...]]] = {
    kind: tuple(name for name in kind.__slots__ if name not in ("at", "attempt"))
    for kind in _KINDS.values()
}
LONGEST_BYTES: Final = 64 * 1024 * 1024
"""No message is longer: an argument list and an environment are a few MiB at most."""


REQUESTS: Final[dict[str, dict[str, type | tuple[type, ...]]]] = {
    "hello": {"id": int, "mine": list},
    "env": {"vars": dict},
    "held": {"id": int},
    "start": {"id": int, "number": int, "begin": dict, "launch": dict, "exec": dict},
    "adopt": {"id": int, "number": int, "begin": dict, "launch": dict, "exec": dict},
    "stop": {"id": int, "attempt": dict, "grace": (int, float), "may_hasten": bool},
    "signal": {"id": int, "attempt": dict, "signum": int},
    "ack": {"token": str},
    "follow": {"sub": int, "token": str, "stream": str, "offset": int},
    "read": {"sub": int, "offset": int},
    "unfollow": {"sub": int},
    "growth": {"on": bool},
    "age": {"age": int},
    "drain": {"id": int},
}
"""What an application may ask for, and what must be said with it."""


class TooLong(ValueError):
    """Something is to be sent, or arrives, that is no message."""


def event_to_text(event: Event) -> str:
    """Return ``event_to_json`` as text."""
    # Those that every job has by hand, in a third of the time.
    if isinstance(event, Started):
        at = event.at.timestamp()
        return f'{{"kind":"Started","at":{at},"attempt":{event.attempt.to_text()}}}'
    if isinstance(event, Exited) and event.log_error is None and event.limit is None:
        return (
            f'{{"kind":"Exited","at":{event.at.timestamp()},"exit_code":{event.exit_code},'
            f'"evidence":"{event.evidence}","ended_by_itself":{_truth(event.ended_by_itself)},'
            f'"in_start_grace":{_truth(event.in_start_grace)},"log_error":null,'
            f'"cpu_seconds":{_number(event.cpu_seconds)},'
            f'"peak_memory_bytes":{_number(event.peak_memory_bytes)}}}'
        )
    return _encode(event_to_json(event))


def _number(value: float | None) -> str:
    return "null" if value is None else repr(value)


def _truth(value: bool) -> str:
    return "true" if value else "false"


def event_to_json(event: Event) -> Message:
    """Return the event as JSON values."""
    kind = type(event)
    fields: Message = {name: getattr(event, name) for name in _FIELDS[kind]}
    fields["kind"] = kind.__name__
    fields["at"] = event.at.timestamp()
    if isinstance(event, Started | Adopted):
        fields["attempt"] = event.attempt.to_json()
    return fields


def event_from_json(fields: Message) -> Told:
    """Return what ``event_to_json`` was made from, but for what only a newer version knows."""
    kind = _KINDS[fields["kind"]]
    known = {name: fields[name] for name in _FIELDS[kind] if name in fields}
    known["at"] = datetime.fromtimestamp(fields["at"], UTC)
    if "attempt" in fields:
        known["attempt"] = Attempt.from_json(fields["attempt"])
    event: Told = kind(**known)
    return event


def start_request(
    what: Literal["start", "adopt"], number: int, attempt: Attempt, launch: tuple[str, str]
) -> str:
    """Return the text of a request, without its closing brace; of a launch in its two parts."""
    lasting, passing = launch
    return f'{{"do":"{what}",{begin_text(number, attempt, lasting)},"exec":{{{passing}}}'


def request_of(message: Message) -> str:
    """Return the text of any other request, without its closing brace."""
    return _encode(message)[:-1]


def begin_text(number: int, attempt: Attempt, lasting: str) -> str:
    """Return what is to be known of an attempt that begins, as the inside of a JSON object."""
    return f'"begin":{attempt.to_text()},"number":{number},"launch":{{{lasting}}}'


def begin_of(request: bytes) -> bytes:
    """Return the ``begin_text`` in a request, as a line for the journal: nobody encodes it anew."""
    # Neither mark can be in a text before it: the quotes in there are escaped.
    return b"{%b}\n" % request[request.index(b'"begin":') : request.index(b',"exec":')]


def check_request(message: Message) -> None:
    """Raise ValueError, KeyError or TypeError for what is no request, or not all of one."""
    for name, kind in REQUESTS[message["do"]].items():
        if not isinstance(message[name], kind):
            raise ValueError(f"{name} of {message['do']} is not as it should be")
    if "begin" in message:
        check_begin(message)


def check_begin(message: Message) -> None:
    """Raise as ``check_request`` where an attempt that begins could not be seen to its end."""
    token, launch = message["begin"]["token"], message["launch"]
    most = launch["logs"]["max_bytes"]
    if not (
        isinstance(token, str)
        and token.isascii()
        and token.isalnum()
        and isinstance(launch["job_id"], str)
        and isinstance(launch["logs"]["backups"], int)
        and (most is None or most > 0)
    ):
        raise ValueError("no attempt begins so")


def check_length(line: bytes) -> None:
    """Raise TooLong for what the other side would cut us off for, as often as it is sent."""
    if len(line) > LONGEST_BYTES:
        raise TooLong(f"more than {LONGEST_BYTES} bytes")


def encoded(message: Message) -> bytes:
    """Return the message as a line. Any text survives, surrogates of odd bytes included."""
    return _encode(message).encode("ascii") + b"\n"


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder(parse_constant=_refused).decode


class Lines:
    """Puts messages together from the bytes that arrive."""

    def __init__(self) -> None:
        self._rest = bytearray()  # however small the pieces are, it is no larger than they are

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are complete now. Raises TooLong."""
        head, newline, rest = data.rpartition(b"\n")
        if not newline:
            self._keep(data)
            return []
        if self._rest:
            head, self._rest = bytes(self._rest) + head, bytearray()
        self._keep(rest)
        return head.split(b"\n")

    def _keep(self, part: bytes) -> None:
        if len(self._rest) + len(part) > LONGEST_BYTES:
            raise TooLong(f"more than {LONGEST_BYTES} bytes and no message")
        self._rest += part


def decoded(lines: list[bytes]) -> list[Message]:
    """Return the message in each line. Raises ValueError for what is none."""
    messages: list[Message] = _decode(f"[{b','.join(lines).decode()}]")
    if len(messages) != len(lines) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("a message is an object")
    return messages
