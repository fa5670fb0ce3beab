"""What jobs tell those who operate them: metrics that Ray's agents serve to Prometheus, and structured log lines.

Every node's agent exports what the processes on it record, with Ray's own metrics, under `ray_scpo_...`; `docs/clusters.md`
says where to scrape, and `clusters/grafana` draws them. Log lines are `logging` records whose `extra` fields (run, stage,
name, community, rank) `ray.LoggingConfig` writes as JSON, with the job, node and worker that they come from.
"""

import contextlib
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util import metrics

LABELS = ("run", "stage", "name", "community")
"""run: its directory. name: of the model, policy or search that is worked on, where a stage has several."""

_PREFIX = "scpo_"
_LOG_EVERY_S = 10.0
_REPEAT_EVERY_S = 5.0
"""An agent forgets a gauge that it has not been told again for 20 s (two of Ray's report intervals)."""


@dataclass(frozen=True)
class Metric:
    """One number; its name is what Prometheus sees without `ray_scpo_`."""

    name: str
    description: str

    @property
    def is_total(self) -> bool:
        """It only grows: a Prometheus counter, whose rate is what one looks at."""
        return self.name.endswith("_total")


METRICS = {
    metric.name: metric
    for metric in (
        Metric("stage_running", "1 while the stage is at work, then 0"),
        Metric("stage_seconds", "how long the stage has been, or was, at work"),
        Metric("completed", "steps, responses, policies or trials that are done"),
        Metric("planned", "steps, responses, policies or trials that there are to do"),
        Metric("responses_total", "responses scored"),
        Metric("pairs_total", "preference pairs trained on, repetitions counted"),
        Metric("tokens_total", "tokens that a model has seen or written"),
        Metric("padded_tokens_total", "the same with padding: padding share = 1 - tokens / padded tokens"),
        Metric("kept_share", "share of a community's training pairs that its reward model learns from"),
        Metric("effective_sample_size", "of the weights of a community's kept training pairs"),
        Metric("loss", "training loss of the last step: nats per pair, or per token when a start policy learns"),
        Metric("margin", "mean reward of the chosen response over the rejected one in the last step's pairs"),
        Metric("queue_depth", "trainings that wait for a group of workers"),
        Metric("trainings_failed", "trainings of this job that failed"),
        Metric("best_objective", "of the finished trials, the best value of the objective that is searched for"),
        Metric("deaths_total", "actors and workers that died and were replaced"),
        Metric("reward", "mean reward of the last step's responses, in validation standard deviations"),
        Metric("kl", "divergence from the reference policy, nats per response"),
        Metric("kl_coefficient", "price of a nat of divergence"),
        Metric("response_tokens", "mean length of the last step's responses"),
        Metric("entropy", "of the policy, nats per token"),
        Metric("canary_difference", "largest difference of engine and learner on canaries after synchronising, nats"),
        Metric("generation_seconds", "of the last step: engines at work"),
        Metric("scoring_seconds", "of the last step: reward models at work"),
        Metric("training_seconds", "of the last step: learners at work"),
        Metric("synchronising_seconds", "of the last step: new weights on their way to the engines"),
    )
}

_log = logging.getLogger("scpo_ray")
_log.addHandler(logging.NullHandler())  # where lines are not asked for, there are none on stderr either
_instruments: dict[str, metrics.Gauge | metrics.Counter] = {}
_last: dict[tuple[str, tuple[str, ...]], float] = {}
"""(gauge, labels) -> value."""
_lock = threading.Lock()


class Stage:
    """Records what one stage of a run does; in any process of the cluster."""

    def __init__(self, run: str, stage: str) -> None:
        self.run, self.stage = run, stage
        self._last_line: dict[str, float] = {}
        """When something was last logged; infinity: its end was."""
        self._totals: dict[tuple[str, str, str], float] = {}

    def measure(self, values: Mapping[str, float], *, name: str = "", community: str = "") -> None:
        """Set metrics of the catalogue; values that are not finite are left out.

        Totals are given as they stand since the work began or was resumed; one that is smaller than before has begun again, so
        that what is computed twice is counted twice.

        Raises:
            KeyError: there is no such metric.
        """
        labels = dict(zip(LABELS, map(_ascii, (self.run, self.stage, name, community)), strict=True))
        for key, value in values.items():
            metric = METRICS[key]
            if not math.isfinite(value) or not ray.is_initialized():
                continue
            known = self._totals.get((key, name, community), 0.0) if metric.is_total else 0.0
            if metric.is_total:
                self._totals[key, name, community] = value
            _record(metric, float(value - known if value >= known else value), labels)

    def progress(
        self, completed: float, total: float, measures: Mapping[str, float], *, name: str, community: str
    ) -> None:
        """Metrics at every call, and a log line now and then."""
        self.measure({"completed": completed, "planned": total, **measures}, name=name, community=community)
        now = time.monotonic()
        last = self._last_line.get(name, -math.inf)
        is_over = completed >= total
        if now - last >= _LOG_EVERY_S or (is_over and last < math.inf):
            self._last_line[name] = math.inf if is_over else now
            self.log("progress", name=name, community=community, completed=completed, planned=total, **measures)

    def log(self, message: str, *, level: int = logging.INFO, **fields: Any) -> None:
        """One line; empty fields are left out."""
        # `name` is the logger's in every record.
        renamed = {"item" if key == "name" else key: value for key, value in fields.items() if value != ""}
        _log.log(level, message, extra={"run": self.run, "stage": self.stage, **renamed}, stacklevel=2)


@contextlib.contextmanager
def stage(run: str, name: str) -> Iterator[Stage]:
    """A stage at work, from its start to its end or its error."""
    told, start = Stage(run, name), time.monotonic()
    told.measure({"stage_running": 1})
    told.log("started")
    end, reason = "stopped", ""
    try:
        yield told
        end = "finished"
    except Exception as error:
        reason = str(getattr(error, "cause", error))
        raise
    finally:
        seconds = time.monotonic() - start
        told.measure({"stage_running": 0, "stage_seconds": seconds})
        level = logging.INFO if end == "finished" else logging.WARNING
        told.log(end, level=level, seconds=round(seconds, 3), error=reason)


def logging_config() -> ray.LoggingConfig:
    """For `ray.init`: every process of the job writes JSON lines to its log."""
    return ray.LoggingConfig(encoding="JSON", log_level="INFO", additional_log_standard_attrs=["name"])


def _ascii(label: str) -> str:
    r"""Ray's agents take no other labels: Côte d'Ivoire is C\xf4te d'Ivoire."""
    return label.encode("unicode_escape").decode("ascii")


def _record(metric: Metric, value: float, labels: dict[str, str]) -> None:
    if metric.name not in _instruments:
        kind = metrics.Counter if metric.is_total else metrics.Gauge
        _instruments[metric.name] = kind(_PREFIX + metric.name, description=metric.description, tag_keys=LABELS)
    instrument = _instruments[metric.name]
    if isinstance(instrument, metrics.Gauge):
        with _lock:
            if not _last:
                threading.Thread(target=_repeat, name="scpo_ray metrics", daemon=True).start()
            _last[metric.name, tuple(labels.values())] = value
        instrument.set(value, tags=labels)
    elif value:
        instrument.inc(value, tags=labels)


def _repeat() -> None:
    """Tell the agent every gauge again and again: what a stage said once, when it ended, stays as long as its process."""
    while True:
        time.sleep(_REPEAT_EVERY_S)
        with _lock:
            known = list(_last.items())
        for (name, labels), value in known if ray.is_initialized() else ():
            _instruments[name].set(value, tags=dict(zip(LABELS, labels, strict=True)))
