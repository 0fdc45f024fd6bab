"""Metrics in the text format that Prometheus reads: ``pip install 'anodejobs[prometheus]'``.

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await exposition(jobs), media_type=CONTENT_TYPE)

All are gauges: jobs that have been removed are no longer counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

try:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        "anodejobs.prometheus needs prometheus-client: pip install 'anodejobs[prometheus]'"
    ) from error

if TYPE_CHECKING:
    from anodejobs.jobs import Jobs
    from anodejobs.records import Metrics

__all__ = ["CONTENT_TYPE", "exposition"]

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
"""The media type of what ``exposition`` returns."""


async def exposition(jobs: Jobs) -> bytes:
    """Return the metrics of ``jobs`` as they are now. Raises what ``Jobs.metrics`` does."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Told(await jobs.metrics()))
    return generate_latest(registry)


class _Told(Collector):
    """Gives the metrics of one moment to a registry."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[GaugeMetricFamily]:
        metrics, durations = self._metrics, self._metrics.durations
        # A queue that is empty is told of while it has any job: else an alert would see no zero.
        queues = dict.fromkeys(metrics.by_queue, 0)
        for name, label, help, values in (
            ("jobs", "status", "Jobs by status.", metrics.by_status),
            ("tagged_jobs", "tag", "Jobs by tag.", metrics.by_tag),
            ("queue_jobs", "queue", "Jobs by queue, ended ones too.", metrics.by_queue),
            ("priority_jobs", "priority", "Jobs by priority.", metrics.by_priority),
            ("queue_depth", "queue", "Jobs that wait for a slot.", queues | metrics.queue_depth),
            ("occupied_slots", "queue", "Jobs under way.", queues | metrics.occupied_slots),
        ):
            yield _labelled(name, label, help, values)
        for name, help, value in (
            ("timed_jobs", "Jobs that have started and ended.", durations.count),
            ("mean_duration_seconds", "How long these ran on average.", durations.mean),
            ("longest_duration_seconds", "How long the longest of them ran.", durations.max),
            ("retries", "Attempts after the first.", metrics.retries),
        ):
            if value is not None:
                yield GaugeMetricFamily(f"anodejobs_{name}", help, value)


def _labelled(name: str, label: str, help: str, values: Mapping[Any, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"anodejobs_{name}", help, labels=[label])
    for of, count in values.items():
        family.add_metric([str(of)], count)
    return family
