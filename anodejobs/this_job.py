"""For Python programs that run as jobs: what they were given, and where their answers go.

    from anodejobs import this_job

    numbers = this_job.payload() or [1, 2, 3]
    for done, number in enumerate(numbers):
        this_job.report_progress(done / len(numbers), f"number {number}")
    this_job.set_result({"sum": sum(numbers)})

Nothing fails only because the program was started by hand: outside of a job ``payload`` gives None,
``report_progress`` and ``set_result`` write nothing. Nothing but ``os`` is imported before it is
needed, so that the import costs next to nothing.
"""

import os

__all__ = ["attempt", "is_a_job", "job_id", "payload", "report_progress", "set_result"]

MOST_RESULT_BYTES = 16 * 1024 * 1024
"""How long the JSON of a result may be."""

_ROOMY_BYTES = 64 * 1024
"""From this size on a progress file begins anew: only its last line is ever read."""

job_id: str | None = os.environ.get("ANODEJOBS_JOB_ID")
"""The id of the job that this program is part of, None outside of a job."""

is_a_job: bool = job_id is not None
"""Whether this program is part of a job."""

_number = os.environ.get("ANODEJOBS_ATTEMPT", "")
attempt: int | None = int(_number) if _number.isdecimal() else None
"""Which attempt of the job this is, from 1 on; None outside of a job."""


def payload() -> object:
    """Return the job's payload, None where it has none and outside of a job."""
    path = os.environ.get("ANODEJOBS_PAYLOAD")
    if not path:
        return None
    import json

    with open(path, "rb") as file:
        return json.loads(file.read())


def set_result(value: object) -> None:
    """Make a JSON value the job's result, in place of an earlier one, all at once.

    Raises TypeError where it is not JSON, also outside of a job, and ValueError where it is too
    large.
    """
    from _thread import get_ident

    data = _as_json(value)
    path = os.environ.get("ANODEJOBS_RESULT")
    if not path:
        return
    # Renamed from beside it: whoever reads the result sees the old one or the new one. Threads may
    # each set one.
    part = f"{path}.{os.getpid()}.{get_ident()}.part"
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def _as_json(value: object) -> bytes:
    import json

    try:
        data = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"a result must be JSON: {error}") from None
    if len(data) > MOST_RESULT_BYTES:
        raise ValueError(f"a result must not be longer than {MOST_RESULT_BYTES} bytes of JSON")
    return data


def report_progress(fraction: float, text: str = "") -> None:
    """Tell who watches the job how far it is, from 0 to 1, and in a few words with what.

    Costs some microseconds and can be called at every step: of many reports the last one counts.
    Where it cannot be written it is lost, and the program goes on.
    """
    line = f"{float(fraction):.6g} {' '.join(str(text).split())}\n".encode("utf-8", "replace")
    path = os.environ.get("ANODEJOBS_PROGRESS")
    if not path:
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except OSError:
        return
    try:
        if os.fstat(fd).st_size >= _ROOMY_BYTES:
            os.ftruncate(fd, 0)
        os.write(fd, line)
    except OSError:
        pass  # a full disk is no reason to end the work itself
    finally:
        os.close(fd)
