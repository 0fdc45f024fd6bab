"""Where records are kept. ``base`` is the contract; each other module is one technology."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from anodejobs.errors import StoreError
from anodejobs.stores.base import JobStore, check_durability


def from_url(url: str, *, durability: str = "process") -> JobStore:
    """Return the store a URL names, such as ``memory://`` or ``sqlite:///path/to/jobs.db``.

    The technology's module is imported only when it is chosen. Raises InvalidJob where it does not
    have that ``durability``, and StoreError, which does not repeat a URL that may have a password
    in it.
    """
    # Before anything is taken apart: a password may have signs that other URLs have not.
    if url.partition(":")[0].partition("+")[0] in ("postgresql", "postgres", "mysql", "mariadb"):
        from anodejobs.stores.database import DatabaseJobStore

        check_durability(durability, where_useless="a database server, whose own settings say it")
        return DatabaseJobStore(url)
    try:
        parts = urlsplit(url)
    except ValueError:
        raise StoreError("the URL of the store cannot be read") from None
    if parts.scheme == "memory":
        from anodejobs.stores.memory import MemoryJobStore

        check_durability(durability, where_useless="memory://")
        return MemoryJobStore()
    if parts.scheme == "sqlite" and _names_file(parts):
        # As SQLAlchemy has it: three slashes before a relative path, four before an absolute one.
        return sqlite_store(Path(unquote(parts.path[1:])), durability=durability)
    if parts.scheme == "file" and _names_folder(parts):
        from anodejobs.stores.file import FileJobStore

        check_durability(durability)  # it syncs every commit
        return FileJobStore(unquote(parts.path))
    raise StoreError(
        f"there is no store for {parts.scheme or 'a URL without a scheme'}://…; "
        "use memory://, sqlite:///path/to/jobs.db, file:///path/to/folder, "
        "postgresql://…, mysql://… or mariadb://…"
    )


def _names_file(parts: SplitResult) -> bool:
    """Return whether it is a path on this machine, and that is all."""
    has_more = parts.netloc or parts.query or parts.fragment
    return not has_more and len(parts.path) > 1 and parts.path != "/:memory:"


def _names_folder(parts: SplitResult) -> bool:
    """Return whether it is as file URLs are: an absolute path on this machine, and that is all."""
    is_here = parts.netloc in ("", "localhost")
    return is_here and parts.path[:1] == "/" and not parts.query and not parts.fragment


def sqlite_store(path: Path, *, durability: str) -> JobStore:
    """Return a store in the SQLite file at ``path``."""
    from anodejobs.stores.sqlite import SqliteJobStore

    return SqliteJobStore(path, durability=durability)
