"""Metrics reach TensorBoard, W&B (offline) and MLflow (a folder), and a resumed run replaces what it repeats."""

import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scpo_ray.errors import ConfigError
from scpo_ray.ppo.tracking import RunInfo, check, tracking

ROWS = [{"prompt": "why | how", "response": "so ."}]


def info(folder, *, first_step: int = 0) -> RunInfo:
    return RunInfo("ppo X", "run0", folder, first_step, {"a": 1})


def test_a_resumed_run_replaces_what_it_repeats(tmp_path):
    for first_step, values in ((0, [1.0, 2.0, 3.0]), (1, [20.0, 30.0, 40.0])):
        with tracking(["tensorboard"], info(tmp_path, first_step=first_step)) as trackers:
            for step, value in enumerate(values, first_step):
                trackers.metrics(step, {"reward of Østmark": value})
            trackers.samples(0, ROWS)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("reward of Østmark")]
    assert found == [(0, 1.0), (1, 20.0), (2, 30.0), (3, 40.0)]
    text = events.Tensors("samples/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.splitlines()[2] == "| why \\| how | so . |"


def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    for step, value in enumerate((1.5, 2.5)):  # the second continues the first one's curve
        with tracking(["mlflow"], info(tmp_path, first_step=step)) as trackers:
            trackers.metrics(step, {"reward of Østmark, %": value})
            trackers.samples(step, ROWS)
    (run,) = mlflow.search_runs(experiment_names=["scpo_ray"], output_format="list")
    assert run.data.params == {"a": "1"}
    table = mlflow.load_table("samples.json", run_ids=[run.info.run_id])
    assert table.to_dict("records") == [{"step": step, **ROWS[0]} for step in (0, 1)]
    (name,) = run.data.metrics
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, name)
    assert [(point.step, point.value) for point in history] == [(0, 1.5), (1, 2.5)]


def test_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "120")  # seconds for its own process to start; 30 were once too few here
    with tracking(["wandb"], info(tmp_path)) as trackers:
        trackers.metrics(0, {"reward": 1.5})
        trackers.samples(0, ROWS)
    wandb.teardown()  # its own process may write the last of a finished run after `finish()`; this waits for its end
    (written,) = tmp_path.glob("wandb/offline-run-*-run0/run-run0.wandb")
    assert b"reward" in written.read_bytes()
    (table,) = tmp_path.glob("wandb/offline-run-*-run0/files/media/table/samples_*.json")
    assert "why | how" in table.read_text()


def test_a_logger_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(
        ConfigError, match=r"ppo.loggers: mlflow cannot be imported .*; pip install mlflow-skinny, or leave"
    ):
        check(["tensorboard", "mlflow"])
