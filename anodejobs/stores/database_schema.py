"""The tables of a database that others may use too, made and migrated by numbered steps."""

from __future__ import annotations

from typing import Final

from anodejobs.errors import StoreError
from anodejobs.stores.database_sql import Mysql, Postgres, Session, Table
from anodejobs.stores.rows import RECORD_COLUMNS

# One script a version; a database of version n has had the first n. Never change one that was
# released. A name that starts with ours is nobody else's.
POSTGRES_MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE anodejobs_jobs (
        job_id text COLLATE "C" PRIMARY KEY,
        created_at bigint NOT NULL,
        name text COLLATE "C",
        user_id text COLLATE "C",
        workflow_id text COLLATE "C",
        batch_id text COLLATE "C",
        queue text COLLATE "C" NOT NULL,
        priority bigint NOT NULL,
        revision bigint NOT NULL,
        status text COLLATE "C" NOT NULL,
        last_update bigint NOT NULL,
        started_at bigint,
        finished_at bigint,
        submitted_at bigint,
        due_at bigint,
        number bigint NOT NULL,
        last_pid bigint,
        exit_code bigint,
        evidence text,
        error text,
        reached text NOT NULL,
        progress double precision,
        attempt text NOT NULL
    );
    CREATE INDEX anodejobs_jobs_by_creation ON anodejobs_jobs (created_at, job_id);
    CREATE INDEX anodejobs_jobs_by_status ON anodejobs_jobs (status, created_at, job_id);
    CREATE INDEX anodejobs_jobs_by_update ON anodejobs_jobs (last_update, job_id);
    CREATE INDEX anodejobs_jobs_by_name ON anodejobs_jobs (left(name, 200), job_id)
        WHERE name IS NOT NULL;
    CREATE INDEX anodejobs_jobs_by_user ON anodejobs_jobs (left(user_id, 200), created_at, job_id)
        WHERE user_id IS NOT NULL;
    CREATE INDEX anodejobs_jobs_by_workflow
        ON anodejobs_jobs (left(workflow_id, 200), created_at, job_id)
        WHERE workflow_id IS NOT NULL;
    CREATE INDEX anodejobs_jobs_by_batch
        ON anodejobs_jobs (left(batch_id, 200), created_at, job_id)
        WHERE batch_id IS NOT NULL;
    CREATE TABLE anodejobs_specs (
        job_id text COLLATE "C" PRIMARY KEY,
        spec text NOT NULL,
        launch text NOT NULL,
        environment text COLLATE "C" NOT NULL
    );
    CREATE TABLE anodejobs_environments (digest text COLLATE "C" PRIMARY KEY, body text NOT NULL);
    CREATE TABLE anodejobs_tags (
        job_id text COLLATE "C" NOT NULL,
        nth bigint NOT NULL,
        tag text COLLATE "C" NOT NULL,
        PRIMARY KEY (job_id, nth)
    );
    CREATE INDEX anodejobs_tags_by_tag ON anodejobs_tags (left(tag, 200));
    CREATE TABLE anodejobs_dependencies (
        depends_on text COLLATE "C" NOT NULL,
        job_id text COLLATE "C" NOT NULL,
        PRIMARY KEY (depends_on, job_id)
    );
    CREATE INDEX anodejobs_dependencies_by_job ON anodejobs_dependencies (job_id);
    CREATE TABLE anodejobs_history (
        seq bigint PRIMARY KEY,
        job_id text COLLATE "C" NOT NULL,
        attempt bigint NOT NULL,
        at bigint NOT NULL,
        previous text,
        status text NOT NULL,
        why text,
        ended text
    );
    CREATE INDEX anodejobs_history_by_job ON anodejobs_history (job_id, seq);
    CREATE TABLE anodejobs_documents (
        digest text COLLATE "C" PRIMARY KEY,
        kind text COLLATE "C" NOT NULL,
        name text COLLATE "C" NOT NULL,
        body text NOT NULL
    );
    CREATE TABLE anodejobs_counters (
        name text COLLATE "C" PRIMARY KEY, value bigint NOT NULL
    ) WITH (fillfactor = 10);
    INSERT INTO anodejobs_counters VALUES ('seq', 0), ('turn', 0)
    """,
    """
    ALTER TABLE anodejobs_jobs
        ADD COLUMN cpu_seconds double precision, ADD COLUMN peak_memory_bytes bigint
    """,
    """
    CREATE TABLE anodejobs_hosts (
        host text COLLATE "C" PRIMARY KEY,
        epoch bigint NOT NULL,
        lasts bigint NOT NULL,
        heard_at bigint NOT NULL
    )
    """,
    # Who removes the last job that names an environment removes that, too, and has to find out. The
    # new name keeps hosts of an older version, which take what they have once written to be there,
    # from naming one that is gone.
    """
    CREATE INDEX anodejobs_specs_by_environment ON anodejobs_specs (environment);
    ALTER TABLE anodejobs_environments RENAME TO anodejobs_base_environments
    """,
)

# Nothing of a script is undone where it fails here, so that each statement may come once more.
MYSQL_MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE IF NOT EXISTS anodejobs_jobs (
        job_id VARCHAR(200) PRIMARY KEY,
        created_at BIGINT NOT NULL,
        name LONGTEXT,
        user_id LONGTEXT,
        workflow_id LONGTEXT,
        batch_id LONGTEXT,
        queue VARCHAR(200) NOT NULL,
        priority BIGINT NOT NULL,
        revision BIGINT NOT NULL,
        status VARCHAR(20) NOT NULL,
        last_update BIGINT NOT NULL,
        started_at BIGINT,
        finished_at BIGINT,
        submitted_at BIGINT,
        due_at BIGINT,
        number BIGINT NOT NULL,
        last_pid BIGINT,
        exit_code BIGINT,
        evidence LONGTEXT,
        error LONGTEXT,
        reached LONGTEXT NOT NULL,
        progress DOUBLE,
        attempt LONGTEXT NOT NULL,
        KEY by_creation (created_at, job_id),
        KEY by_status (status, created_at, job_id),
        KEY by_update (last_update, job_id),
        KEY by_name (name(200), job_id),
        KEY by_user (user_id(200), created_at, job_id),
        KEY by_workflow (workflow_id(200), created_at, job_id),
        KEY by_batch (batch_id(200), created_at, job_id)
    ) {options};
    CREATE TABLE IF NOT EXISTS anodejobs_specs (
        job_id VARCHAR(200) PRIMARY KEY,
        spec LONGTEXT NOT NULL,
        launch LONGTEXT NOT NULL,
        environment VARCHAR(64) NOT NULL
    ) {options};
    CREATE TABLE IF NOT EXISTS anodejobs_environments (
        digest VARCHAR(64) PRIMARY KEY, body LONGTEXT NOT NULL
    ) {options};
    CREATE TABLE IF NOT EXISTS anodejobs_tags (
        job_id VARCHAR(200) NOT NULL,
        nth BIGINT NOT NULL,
        tag LONGTEXT NOT NULL,
        PRIMARY KEY (job_id, nth),
        KEY by_tag (tag(200))
    ) {options};
    CREATE TABLE IF NOT EXISTS anodejobs_dependencies (
        depends_on VARCHAR(200) NOT NULL,
        job_id VARCHAR(200) NOT NULL,
        PRIMARY KEY (depends_on, job_id),
        KEY by_job (job_id)
    ) {options};
    CREATE TABLE IF NOT EXISTS anodejobs_history (
        seq BIGINT PRIMARY KEY,
        job_id VARCHAR(200) NOT NULL,
        attempt BIGINT NOT NULL,
        at BIGINT NOT NULL,
        previous VARCHAR(20),
        status VARCHAR(20) NOT NULL,
        why LONGTEXT,
        ended LONGTEXT,
        KEY by_job (job_id, seq)
    ) {options};
    CREATE TABLE IF NOT EXISTS anodejobs_documents (
        digest VARCHAR(64) PRIMARY KEY,
        kind LONGTEXT NOT NULL,
        name LONGTEXT NOT NULL,
        body LONGTEXT NOT NULL
    ) {options};
    CREATE TABLE IF NOT EXISTS anodejobs_counters (
        name VARCHAR(64) PRIMARY KEY, value BIGINT NOT NULL
    ) {options};
    INSERT INTO anodejobs_counters VALUES ('seq', 0), ('turn', 0)
        ON DUPLICATE KEY UPDATE value = value
    """,
    # MySQL cannot add a column only where it is missing.
    """
    SET @anodejobs = (SELECT IF(count(*) = 0,
        'ALTER TABLE anodejobs_jobs
            ADD COLUMN cpu_seconds DOUBLE, ADD COLUMN peak_memory_bytes BIGINT',
        'DO 0')
        FROM information_schema.columns WHERE table_schema = DATABASE()
        AND table_name = 'anodejobs_jobs' AND column_name = 'peak_memory_bytes');
    PREPARE anodejobs FROM @anodejobs;
    EXECUTE anodejobs;
    DEALLOCATE PREPARE anodejobs
    """,
    """
    CREATE TABLE IF NOT EXISTS anodejobs_hosts (
        host VARCHAR(200) PRIMARY KEY,
        epoch BIGINT NOT NULL,
        lasts BIGINT NOT NULL,
        heard_at BIGINT NOT NULL
    ) {options}
    """,
    # Nor can it make an index only where there is none.
    """
    SET @anodejobs = (SELECT IF(count(*) = 0,
        'CREATE INDEX by_environment ON anodejobs_specs (environment)',
        'DO 0')
        FROM information_schema.statistics WHERE table_schema = DATABASE()
        AND table_name = 'anodejobs_specs' AND index_name = 'by_environment');
    PREPARE anodejobs FROM @anodejobs;
    EXECUTE anodejobs;
    DEALLOCATE PREPARE anodejobs;
    SET @anodejobs = (SELECT IF(count(*) = 1,
        'RENAME TABLE anodejobs_environments TO anodejobs_base_environments',
        'DO 0')
        FROM information_schema.tables WHERE table_schema = DATABASE()
        AND table_name = 'anodejobs_environments');
    PREPARE anodejobs FROM @anodejobs;
    EXECUTE anodejobs;
    DEALLOCATE PREPARE anodejobs
    """,
)

_KEYS, _FACTS = RECORD_COLUMNS.split(", revision, ")
_CHANGED = (f"{_KEYS}, revision, {_FACTS}").split(", ")[1:]

JOBS: Final = Table(
    "anodejobs_jobs",
    ("job_id", *_CHANGED, "attempt"),
    key="job_id",
    on_taken=", ".join(
        [
            *(f"{column} = excluded.{column}" for column in _CHANGED),
            "attempt = coalesce(nullif(excluded.attempt, ''), anodejobs_jobs.attempt)",
        ]
    ),
)
"""An attempt that is empty leaves the one that is there."""
SPECS: Final = Table(
    "anodejobs_specs",
    ("job_id", "spec", "launch", "environment"),
    key="job_id",
    on_taken="spec = excluded.spec,"
    " launch = coalesce(nullif(excluded.launch, ''), anodejobs_specs.launch),"
    " environment = coalesce(nullif(excluded.environment, ''), anodejobs_specs.environment)",
)
ENVIRONMENTS: Final = Table("anodejobs_base_environments", ("digest", "body"), key="digest")
TAGS: Final = Table("anodejobs_tags", ("job_id", "nth", "tag"))
DEPENDENCIES: Final = Table("anodejobs_dependencies", ("depends_on", "job_id"))
HISTORY: Final = Table(
    "anodejobs_history",
    ("seq", "job_id", "attempt", "at", "previous", "status", "why", "ended"),
)
DOCUMENTS: Final = Table(
    "anodejobs_documents",
    ("digest", "kind", "name", "body"),
    key="digest",
    on_taken="body = excluded.body",
)
COUNTERS: Final = Table(
    "anodejobs_counters",
    ("name", "value"),
    key="name",
    on_taken="value = anodejobs_counters.value + excluded.value",
)


def prepare(session: Session, place: str) -> None:
    """Bring the database to the newest version, or refuse it unharmed."""
    dialect = session.dialect
    dialect.lock(session)
    try:
        _migrate(session, place)
    finally:
        dialect.unlock(session)


def is_outdated(session: Session) -> bool:
    """Return whether a newer anodejobs has changed the tables since they were prepared."""
    rows = session.rows("SELECT version FROM anodejobs_version")
    return bool(rows) and int(rows[0][0]) > len(_scripts(session))


def _migrate(session: Session, place: str) -> None:
    scripts = _scripts(session)
    version = _version(session)
    if version > len(scripts):
        raise StoreError(
            f"{place} has version {version} of a newer anodejobs, this one knows "
            f"{len(scripts)}; it was left as it is: upgrade anodejobs"
        )
    for number, script in enumerate(scripts[version:], start=version + 1):
        for statement in script.split(";"):
            session.do(statement)
        session.do("DELETE FROM anodejobs_version")
        session.do(f"INSERT INTO anodejobs_version VALUES ({number})")


def _scripts(session: Session) -> tuple[str, ...]:
    dialect = session.dialect
    if isinstance(dialect, Mysql):
        # Mostly the default; the older formats have no room for an id in an index.
        options = (
            f"ENGINE InnoDB ROW_FORMAT DYNAMIC CHARACTER SET utf8mb4 COLLATE {dialect.collation}"
        )
        return tuple(script.format(options=options) for script in MYSQL_MIGRATIONS)
    return POSTGRES_MIGRATIONS


def _version(session: Session) -> int:
    is_there = (
        "to_regclass('anodejobs_version') IS NOT NULL"
        if isinstance(session.dialect, Postgres)
        else "count(*) FROM information_schema.tables"
        " WHERE table_schema = DATABASE() AND table_name = 'anodejobs_version'"
    )
    ((found,),) = session.rows(f"SELECT {is_there}")
    if not found:
        session.do("CREATE TABLE anodejobs_version (version INTEGER NOT NULL PRIMARY KEY)")
    rows = session.rows("SELECT version FROM anodejobs_version")
    return int(rows[0][0]) if rows else 0
