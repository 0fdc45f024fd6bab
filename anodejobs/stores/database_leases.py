"""The leases of the hosts that share a database, by its clock and no other."""

from __future__ import annotations

from dataclasses import dataclass

from anodejobs.stores.base import Lease
from anodejobs.stores.database_sql import Dialect, Session


@dataclass(frozen=True, slots=True)
class Member:
    """A host, and how long its lease lasts."""

    host: str
    lasts_s: float


def renew(session: Session, member: Member, epoch: int) -> None:
    """Have the lease last from now on; make it, with this epoch, where there is none.

    Nobody else may write meanwhile.
    """
    now, lasts = session.dialect.now, round(member.lasts_s * 1e6)
    if session.rows("SELECT epoch FROM anodejobs_hosts WHERE host = ?", (member.host,)):
        update = f"UPDATE anodejobs_hosts SET lasts = ?, heard_at = {now} WHERE host = ?"
        session.do(update, (lasts, member.host))
    else:
        insert = (
            f"INSERT INTO anodejobs_hosts (host, epoch, lasts, heard_at) VALUES (?, ?, ?, {now})"
        )
        session.do(insert, (member.host, epoch, lasts))


def expired(dialect: Dialect) -> str:
    """Return the query for the leases that are over, as ``lease_of`` wants them."""
    now = dialect.now
    return (
        f"SELECT host, epoch, {now} - heard_at FROM anodejobs_hosts"
        f" WHERE heard_at + lasts < {now} ORDER BY host"
    )


def lease_of(row: tuple[str, int, int]) -> Lease:
    """Return the lease of a row."""
    host, epoch, silent = row
    return Lease(host, int(epoch), int(silent) / 1e6)


def has_expired(session: Session, lease: Lease) -> bool:
    """Return whether it is still this lease, and over. Nobody else may write meanwhile."""
    found = session.rows(
        "SELECT epoch FROM anodejobs_hosts WHERE host = ? AND epoch = ?"
        f" AND heard_at + lasts < {session.dialect.now}",
        (lease.host, lease.epoch),
    )
    return bool(found)


def remove(session: Session, lease: Lease) -> None:
    """Forget the lease: the host's next one is another."""
    session.do("DELETE FROM anodejobs_hosts WHERE host = ?", (lease.host,))
