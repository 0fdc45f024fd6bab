"""Specs as documents: what is kept of a job that is to be made later, perhaps by another process.

Pure. A document holds the environment, so it is never shown to anybody.
"""

from __future__ import annotations

from typing import Any, TypeVar

from anodejobs.limits import check_limits
from anodejobs.records import JobSpec
from anodejobs.retries import check_restart, check_retry, retry_from_json, retry_to_json

Spec = TypeVar("Spec", bound=JobSpec)


def spec_to_json(spec: JobSpec) -> dict[str, Any]:
    """Return the spec as JSON values: what was given, and no more. Raises InvalidJob."""
    fields = spec.model_dump(
        mode="json", exclude_unset=True, exclude={"retry", "restart", "limits"}
    )
    if spec.retry is not None:
        fields["retry"] = retry_to_json(check_retry(spec.retry))
    if spec.restart != "never":
        policy = check_restart(spec.restart)
        is_named = isinstance(spec.restart, str)
        fields["restart"] = policy.when if is_named else policy.model_dump(mode="json")
    if spec.limits is not None:
        fields["limits"] = check_limits(spec.limits).model_dump(mode="json", exclude_unset=True)
    return fields


def spec_from_json(kind: type[Spec], fields: dict[str, Any]) -> Spec:
    """Return the spec that ``spec_to_json`` was given. Raises InvalidJob, as it may be old."""
    fields = dict(fields)
    if "retry" in fields:
        fields["retry"] = retry_from_json(fields["retry"])
    if isinstance(fields.get("restart"), dict):
        fields["restart"] = check_restart(fields["restart"])
    if "limits" in fields:
        fields["limits"] = check_limits(fields["limits"])
    return kind(fields)
