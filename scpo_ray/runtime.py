"""Ray, and what a stage shows while it works."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal

import ray
import ray.exceptions
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from scpo_ray import telemetry
from scpo_ray.errors import ClusterError

_LOG_WIDTH = 140
"""Characters of tables where no terminal says how many it has, as in a job's log."""


def make_console(*, stderr: bool) -> Console:
    """As wide as the terminal, or as COLUMNS says."""
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if is_terminal or "COLUMNS" in os.environ else _LOG_WIDTH)


console = make_console(stderr=True)
"""Progress goes to stderr; results go to stdout."""


def connect(log_format: Literal["text", "json"] = "text") -> None:
    """Join the cluster that RAY_ADDRESS names (as `ray job submit` sets it), else start one on this machine; once.

    Args:
        log_format: json: every process of the job, this one too, writes structured lines to its log (`telemetry`).

    Raises:
        ClusterError: there is no cluster at the address, it refuses the token, or none starts here in time.
    """
    if ray.is_initialized():
        return
    logs = {"logging_config": telemetry.logging_config()} if log_format == "json" else {}
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if os.environ.get("RAY_ADDRESS"):
        with _as_cluster_errors(os.environ["RAY_ADDRESS"], "check RAY_ADDRESS, RAY_AUTH_MODE and the token"):
            ray.init(log_to_driver=False, logging_level=logging.WARNING, **logs)
    else:
        for name, value in LAPTOP_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        with _as_cluster_errors("Ray on this machine", "end what else takes its processors and memory, and rerun"):
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **logs)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the stages have their own, in responses and steps
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@contextlib.contextmanager
def _as_cluster_errors(place: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ClusterError(f"{place}: {_first_line(error)}; {remedy}") from error
    except Exception as error:
        if type(error) is not Exception:  # Ray has no class of its own for a node that does not start in time
            raise
        raise ClusterError(f"{place}: {_first_line(error)}; {remedy}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the search keeps records of its own
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupt ends the job, it is no result
    "RAY_AIR_NEW_OUTPUT": "0",  # Ray Tune announces its experiment on stdout, whatever its verbosity
}

LAPTOP_ENVIRONMENT = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray Data's own actors make the core worker warn on stderr in every stage
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody preempts a laptop; saves a process per training job
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # of 2: a job of seconds should not wait seconds for its end to be seen
}


@contextlib.contextmanager
def progress_bar(stage: str, *, unit: str, run: str) -> Iterator["Bar"]:
    """A stage at work: a progress bar on stderr, metrics for Prometheus, and log lines in the bar's place where they are JSON.

    Args:
        stage: what is at work: the bar's first line, and a label.
        run: the run directory, a label.
    """
    columns = (
        TextColumn("{task.description:<28}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    is_json = logging.getLogger("scpo_ray").isEnabledFor(logging.INFO)
    with (
        telemetry.stage(run, stage) as told,
        Progress(*columns, console=console, disable=is_json) as progress,
    ):
        yield Bar(progress, told)


class Bar:
    """Named lines of one progress display."""

    def __init__(self, progress: Progress, told: telemetry.Stage) -> None:
        self._progress, self.told = progress, told
        self._lines: dict[str, Any] = {}

    def update(
        self,
        completed: float,
        total: float,
        *,
        name: str = "",
        note: str = "",
        community: str = "",
        measures: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Set a line's state; the line appears with its first update.

        Args:
            measures: of `telemetry.METRICS`, as they stand.
        """
        self.told.progress(completed, total, measures, name=name, community=community)
        key = name or self.told.stage
        if key not in self._lines:
            self._lines[key] = self._progress.add_task(key, total=total, note=note)
        self._progress.update(self._lines[key], completed=completed, total=total, note=note)
