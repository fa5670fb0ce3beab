"""Metrics reach TensorBoard, W&B (offline) and MLflow (a folder), and a resumed run replaces what it repeats."""

import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scpo_ray.errors import ConfigError
from scpo_ray.ppo.tracking import check, tracking


def test_a_resumed_run_replaces_what_it_repeats(tmp_path):
    for first_step, values in ((0, [1.0, 2.0, 3.0]), (1, [20.0, 30.0, 40.0])):
        with tracking(["tensorboard"], name="run", folder=tmp_path, first_step=first_step, settings={"a": 1}) as log:
            for step, value in enumerate(values, first_step):
                log(step, {"reward of Østmark": value})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("reward of Østmark")]
    assert found == [(0, 1.0), (1, 20.0), (2, 30.0), (3, 40.0)]


def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with tracking(["mlflow"], name="ppo X", folder=tmp_path, first_step=0, settings={"ppo.num_steps": 2}) as log:
        log(0, {"reward of Østmark, %": 1.5})
        log(1, {"reward of Østmark, %": 2.5})
    (run,) = mlflow.search_runs(experiment_names=["scpo_ray"], output_format="list")
    assert run.data.params == {"ppo.num_steps": "2"}
    (name,) = run.data.metrics
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, name)
    assert [(point.step, point.value) for point in history] == [(0, 1.5), (1, 2.5)]


def test_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with tracking(["wandb"], name="ppo X", folder=tmp_path, first_step=0, settings={"a": 1}) as log:
        log(0, {"reward": 1.5})
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"reward" in written.read_bytes()


def test_a_logger_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(
        ConfigError, match=r"ppo.loggers: mlflow cannot be imported .*; pip install mlflow-skinny, or leave"
    ):
        check(["tensorboard", "mlflow"])
