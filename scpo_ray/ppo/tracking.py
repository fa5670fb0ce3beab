"""Step metrics to TensorBoard, Weights & Biases, MLflow."""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from scpo_ray.config.ppo import Logger
from scpo_ray.errors import ConfigError

Log = Callable[[int, Mapping[str, float]], None]


def check(loggers: Sequence[Logger]) -> None:
    """Refuse, before anything starts, a logger whose package is not installed.

    Raises:
        ConfigError: names the package and how to get it.
    """
    for logger in loggers:
        _module(logger)


@contextlib.contextmanager
def tracking(
    loggers: Sequence[Logger], *, name: str, folder: Path, first_step: int, settings: Mapping[str, object]
) -> Iterator[Log]:
    """A function that takes (step, metrics). What an interrupted run logged from `first_step` on is replaced (TensorBoard).

    Args:
        name: of the run, for people.
        folder: where TensorBoard's and offline files go.
        settings: shown beside the curves.
    """
    with contextlib.ExitStack() as stack:
        logs = [
            stack.enter_context(_OPENERS[logger](_module(logger), name, folder, first_step, settings))
            for logger in loggers
        ]

        def log(step: int, metrics: Mapping[str, float]) -> None:
            for each in logs:
                each(step, metrics)

        yield log


def _module(logger: Logger) -> ModuleType:
    try:
        return importlib.import_module({"tensorboard": "torch.utils.tensorboard"}.get(logger, logger))
    except ImportError as error:
        package = {"mlflow": "mlflow-skinny"}.get(logger, logger)
        raise ConfigError(
            f"ppo.loggers: {logger} cannot be imported ({str(error).splitlines()[0]}); pip install {package}, or leave it out"
        ) from None


@contextlib.contextmanager
def _tensorboard(module: ModuleType, name: str, folder: Path, first_step: int, settings: Mapping) -> Iterator[Log]:
    writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)
    try:
        if first_step == 0:
            writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

        def log(step: int, metrics: Mapping[str, float]) -> None:
            for key, value in metrics.items():
                writer.add_scalar(key, value, step)
            writer.flush()

        yield log
    finally:
        writer.close()


@contextlib.contextmanager
def _wandb(module: ModuleType, name: str, folder: Path, first_step: int, settings: Mapping) -> Iterator[Log]:
    run = module.init(
        project="scpo_ray", name=name, dir=str(folder), config=dict(settings), resume="allow", reinit=True
    )
    try:
        yield lambda step, metrics: run.log(dict(metrics), step=step)
    finally:
        run.finish()


@contextlib.contextmanager
def _mlflow(module: ModuleType, name: str, folder: Path, first_step: int, settings: Mapping) -> Iterator[Log]:
    module.set_experiment("scpo_ray")
    with module.start_run(run_name=name):
        module.log_params({key.replace(" ", "_"): str(value)[:500] for key, value in settings.items()})
        yield lambda step, metrics: module.log_metrics(
            {_mlflow_name(key): value for key, value in metrics.items()}, step
        )


def _mlflow_name(key: str) -> str:
    """MLflow takes letters, digits, `_-. :/` only."""
    return "".join(letter if letter.isalnum() or letter in "_-./ " else "_" for letter in key)


_OPENERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
