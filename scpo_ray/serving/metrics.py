"""What one replica counts, in Prometheus' format."""

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from scpo_ray.serving.rewards import Rewards

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Requests by route and status, their times, what waits, what was computed and what was remembered.

    Args:
        replica: who counted: a scrape through a shared address reaches one replica or another.
    """

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "scpo_requests", "Requests answered, by route and status.", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "scpo_request_seconds",
            "From the head to the answer.",
            ["route"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self.in_progress = Gauge("scpo_requests_in_progress", "Requests being answered.", registry=self.registry)

    def watch(self, rewards: Rewards) -> None:
        """Also show what a replica's models do."""
        self.registry.register(_RewardsCollector(rewards))

    def observe(self, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
        """One answered request, under its route's pattern: paths themselves are the caller's to choose, without end."""
        route = getattr(scope.get("route"), "path", "other")
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """For a scrape."""
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """Every metric, with the replica as a label."""
        for metric in self.registry.collect():
            metric.samples = [
                sample._replace(labels={"replica": self._replica, **sample.labels}) for sample in metric.samples
            ]
            yield metric


class _RewardsCollector(Collector):
    def __init__(self, rewards: Rewards) -> None:
        self._rewards = rewards

    def collect(self) -> list[Metric]:
        batcher, cache = self._rewards.batcher, self._rewards.cache
        cost = batcher.cost
        made: list[tuple[Callable[..., Metric], str, str, float]] = [
            (
                GaugeMetricFamily,
                "scpo_queued_responses",
                "Responses times models that wait.",
                batcher.num_queued,
            ),
            (GaugeMetricFamily, "scpo_cached_rewards", "Rewards remembered.", len(cache)),
            (
                CounterMetricFamily,
                "scpo_model_loads",
                "Whole models read into memory.",
                batcher.models.num_loads,
            ),
            (CounterMetricFamily, "scpo_cache_hits", "Rewards that were remembered when asked for.", cache.num_hits),
            (CounterMetricFamily, "scpo_forward_passes", "Batches computed.", cost.num_forward_passes),
            (CounterMetricFamily, "scpo_scored_responses", "Responses computed.", cost.num_responses),
            (CounterMetricFamily, "scpo_scored_tokens", "Tokens computed, padding left out.", cost.num_tokens),
            (CounterMetricFamily, "scpo_padded_tokens", "Tokens computed with padding.", cost.num_padded_tokens),
            (
                CounterMetricFamily,
                "scpo_forward_seconds",
                "Time in forward passes and in loading models.",
                batcher.busy_s,
            ),
        ]
        return [kind(name, text, value=value) for kind, name, text, value in made]
