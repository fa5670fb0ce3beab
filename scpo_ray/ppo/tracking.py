"""Step metrics and samples to TensorBoard, Weights & Biases, MLflow."""

import contextlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

from scpo_ray.config.ppo import Logger
from scpo_ray.errors import ConfigError


@dataclass(frozen=True)
class RunInfo:
    """What trackers are told of a run."""

    name: str
    """For people."""
    identifier: str
    """The same for a run that goes on as for the one that was interrupted: they continue one curve."""
    folder: Path
    """Where TensorBoard's and offline files go."""
    first_step: int
    settings: Mapping[str, object]


class Tracker(Protocol):
    """Where metrics and samples go."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step."""

    def samples(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        """A table of texts; the rows have the same keys."""


class Trackers:
    """All of them."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step."""
        for tracker in self._trackers:
            tracker.metrics(step, values)

    def samples(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        """A table of texts; the rows have the same keys."""
        for tracker in self._trackers:
            tracker.samples(step, rows)


def check(loggers: Sequence[Logger]) -> None:
    """Refuse, before anything starts, a logger whose package is not installed.

    Raises:
        ConfigError: names the package and how to get it.
    """
    for logger in loggers:
        _module(logger)


@contextlib.contextmanager
def tracking(loggers: Sequence[Logger], run: RunInfo) -> Iterator[Trackers]:
    """Trackers that are open while the block lasts. An interrupted run's curves go on at `first_step`."""
    with contextlib.ExitStack() as stack:
        yield Trackers([stack.enter_context(_OPENERS[logger](_module(logger), run)) for logger in loggers])


def _module(logger: Logger) -> ModuleType:
    try:
        return importlib.import_module({"tensorboard": "torch.utils.tensorboard"}.get(logger, logger))
    except ImportError as error:
        package = {"mlflow": "mlflow-skinny"}.get(logger, logger)
        raise ConfigError(
            f"ppo.loggers: {logger} cannot be imported ({str(error).splitlines()[0]}); pip install {package}, or leave it out"
        ) from None


class _TensorBoard:
    def __init__(self, writer) -> None:
        self._writer = writer

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def samples(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
        lines += [" | ".join(_cell(value) for value in row.values()) for row in rows]
        self._writer.add_text("samples", "\n".join(f"| {line} |" for line in lines), step)


@contextlib.contextmanager
def _tensorboard(module: ModuleType, run: RunInfo) -> Iterator[Tracker]:
    writer = module.SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.first_step)
    try:
        if run.first_step == 0:
            writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in run.settings.items()))
        yield _TensorBoard(writer)
    finally:
        writer.close()


class _Wandb:
    def __init__(self, module: ModuleType, run) -> None:
        self._module, self._run = module, run

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def samples(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        table = self._module.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        self._run.log({"samples": table}, step=step)


@contextlib.contextmanager
def _wandb(module: ModuleType, run: RunInfo) -> Iterator[Tracker]:
    opened = module.init(
        project="scpo_ray",
        name=run.name,
        id=run.identifier,
        resume="allow",
        dir=str(run.folder),
        config=dict(run.settings),
        reinit=True,
    )
    try:
        yield _Wandb(module, opened)
    finally:
        opened.finish()


class _Mlflow:
    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._module.log_metrics({_mlflow_name(key): value for key, value in values.items()}, step)

    def samples(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        self._module.log_table({"step": [step] * len(rows), **columns}, "samples.json")


@contextlib.contextmanager
def _mlflow(module: ModuleType, run: RunInfo) -> Iterator[Tracker]:
    module.set_experiment("scpo_ray")
    known = module.search_runs(
        experiment_names=["scpo_ray"], filter_string=f"tags.scpo_ray_run = '{run.identifier}'", output_format="list"
    )
    options = {"run_id": known[0].info.run_id} if known else {"run_name": run.name}
    with module.start_run(**options):
        if not known:
            module.set_tag("scpo_ray_run", run.identifier)
            module.log_params({key: str(value)[:500] for key, value in run.settings.items()})
        yield _Mlflow(module)


def _mlflow_name(key: str) -> str:
    """MLflow takes letters, digits, `_-. :/` only."""
    return "".join(letter if letter.isalnum() or letter in "_-./ " else "_" for letter in key)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


_OPENERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
