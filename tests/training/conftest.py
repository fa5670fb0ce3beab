"""A small prepared world, and tasks over it."""

from dataclasses import replace
from pathlib import Path

import pytest

from scpo_ray.artifacts import Recipe, RunDirectory
from scpo_ray.config import Config
from scpo_ray.stages import prepare, train_global
from scpo_ray.training.task import TrainingTask


@pytest.fixture(scope="session")
def prepared_world(tmp_path_factory) -> Config:
    """An atlas run directory in which `prepare` is done."""
    config = Config(
        run_dir=str(tmp_path_factory.mktemp("world") / "run"),
        prepare={
            "atlas": {"num_prompts": 40, "majority_annotators": 16, "minority_annotators": 4, "num_minorities": 1}
        },
        format={"max_tokens": 96},
        train_global={"epochs": 2, "learning_rate": 2e-3, "batch_size": 12},
    )
    prepare.run(config)
    return config


@pytest.fixture(scope="session")
def base_task(prepared_world) -> TrainingTask:
    """The global model's training in that world."""
    return train_global.plan(prepared_world, RunDirectory(prepared_world.run_dir))


@pytest.fixture
def make_task(base_task):
    """Another artifact name and other settings: `make_task("a", zero_stage=2)`."""

    def make(name: str, run_dir: Path | None = None, **changes: object) -> TrainingTask:
        recipe = Recipe(f"tests/{name}", "train_global", {"settings": repr(sorted(changes.items()))}, {}, 0)
        return replace(
            base_task,
            recipe=recipe,
            config=base_task.config.model_copy(update=changes),
            card={"name": name},
            run_address=str(run_dir) if run_dir is not None else base_task.run_address,
        )

    return make
