"""Killed in mid-run, resumed bit for bit."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from scpo_ray.artifacts import RunDirectory
from scpo_ray.training.stacks import stacks_folder
from scpo_ray.training.task import StepReport, checkpoint_folder
from scpo_ray.training.workers import run_tasks

SETTINGS = {"max_steps": 60, "epochs": 20.0, "max_steps_overrides_epochs": True, "checkpoint_every_steps": 10}
SETTINGS |= {"keep": "best", "evaluations_per_epoch": 2.0, "dropout": False}


def weights_of(task) -> dict[str, torch.Tensor]:
    return load_file(RunDirectory(task.run_address).fetch(task.recipe.name) / "model.safetensors")


def metrics_of(task) -> dict:
    metrics = json.loads((RunDirectory(task.run_address).fetch(task.recipe.name) / "metrics.json").read_text())
    del metrics["wall_time_s"], metrics["task"]
    return metrics


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, base_task):
    from scpo_ray.artifacts import Recipe

    task = replace(
        base_task,
        recipe=Recipe("tests/undisturbed", "train_global", {}, {}, 0),
        config=base_task.config.model_copy(update=SETTINGS),
        card={"name": "undisturbed"},
    )
    assert run_tasks([task], task.config).failed == {}
    return task


def assert_equal_to(undisturbed, task) -> None:
    expected, found = weights_of(undisturbed), weights_of(task)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert metrics_of(undisturbed) == metrics_of(task)


def training_workers() -> list[psutil.Process]:
    """Those of this test session's own cluster, whose raylet is a child of this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_a_killed_worker_resumes_and_ends_bit_for_bit_the_same(undisturbed, make_task):
    task = make_task("killed worker", **SETTINGS)
    killed_at: list[int] = []

    def kill_once(state) -> None:
        step = state.progress[task.name].step if task.name in state.progress else 0
        if step >= 15 and not killed_at:
            killed_at.append(step)
            for process in training_workers():
                process.send_signal(signal.SIGKILL)

    state = run_tasks([task], task.config, on_progress=kill_once)

    assert state.failed == {}
    assert killed_at and killed_at[0] < 60, "the worker was killed before its end"
    assert_equal_to(undisturbed, task)
    assert not checkpoint_folder(task).exists(), "nothing is left of the unfinished training"


@pytest.mark.slow  # for its length alone
def test_a_rank_that_hangs_ends_by_timeout_and_the_others_say_where_they_stood(undisturbed, make_task, monkeypatch):
    """One of two ranks is stopped: the other waits in a collective, until it may not."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "12")  # of 600: a stopped process answers Ray neither
    task = make_task("one of two hangs", **SETTINGS, num_workers=2, collective_timeout_s=4)
    stopped: list[psutil.Process] = []

    def stop_one(state) -> None:
        step = state.progress[task.name].step if task.name in state.progress else 0
        if step >= 15 and not stopped:
            stopped.append(training_workers()[0])
            stopped[0].suspend()

    state = run_tasks([task], task.config, on_progress=stop_one)

    assert state.failed == {} and state.num_deaths == 1
    assert not stopped[0].is_running()
    (written,) = stacks_folder(task).glob("rank_*.txt")  # a process that is stopped writes nothing
    assert "Timeout (0:00:04)!" in written.read_text()
    assert "in _sum_over_ranks" in written.read_text() or "in backward" in written.read_text()
    for name, tensor in weights_of(undisturbed).items():  # which one rank trained
        torch.testing.assert_close(weights_of(task)[name], tensor, atol=1e-4, rtol=1e-3, msg=name)


def test_a_group_that_keeps_dying_fails_its_task_and_the_others_finish(ray_cluster, make_task):
    doomed = make_task("doomed", **SETTINGS, max_failures=1)
    healthy = make_task("healthy", max_steps=3)
    sizes = {"doomed": 2, "healthy": 1}

    tasks = [replace(task, size=sizes[task.name]) for task in (doomed, healthy)]

    killed_at: list[StepReport] = []

    def kill_always(state) -> None:
        """Whenever it has moved since the last kill: a worker that is killed before it takes a task counts for none."""
        progress = state.progress.get("doomed")
        if progress is not None and "doomed" not in state.failed and progress not in killed_at[-1:]:
            killed_at.append(progress)
            for process in training_workers():
                process.send_signal(signal.SIGKILL)
                process.wait(10)

    state = run_tasks(tasks, doomed.config, on_progress=kill_always)

    assert list(state.finished) == ["healthy"]
    assert "died 2 times" in state.failed["doomed"]


DRIVER = """
import pickle, sys
from scpo_ray.runtime import connect
from scpo_ray.training.workers import run_tasks
connect()
task = pickle.load(open(sys.argv[1], "rb"))
run_tasks([task], task.config)
"""


INTERRUPTED = """
import pickle, signal, sys
from scpo_ray import cli
from scpo_ray.runtime import connect
from scpo_ray.training.workers import run_tasks
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs inherit that it is ignored
connect()
task = pickle.load(open(sys.argv[1], "rb"))
cli.run(lambda: run_tasks([task], task.config))
"""


@pytest.mark.slow  # tests/chaos kills the same, and more
def test_a_killed_driver_resumes_and_ends_bit_for_bit_the_same(undisturbed, make_task, tmp_path):
    import pickle

    task = make_task("killed driver", **SETTINGS)
    (tmp_path / "task.pickle").write_bytes(pickle.dumps(task))
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "task.pickle")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    folder = checkpoint_folder(task)
    deadline = time.monotonic() + 120
    while not list(folder.glob("step_*")) and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    resumed_from = sorted(path.name for path in folder.glob("step_*"))
    assert resumed_from, "the driver was killed between its first checkpoint and its end"
    assert RunDirectory(task.run_address).find(task.recipe.name) is None

    assert run_tasks([task], task.config).failed == {}

    assert_equal_to(undisturbed, task)
    assert not list(folder.parent.glob(".ray_train*")), "what the killed driver left is swept"


def test_an_interrupted_driver_stops_at_once_and_says_how_to_go_on(make_task, tmp_path):
    import pickle

    task = make_task("interrupted", **SETTINGS | {"max_steps": 2000})
    (tmp_path / "task.pickle").write_bytes(pickle.dumps(task))
    driver = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path / "task.pickle")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(checkpoint_folder(task).glob("step_*")) and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.send_signal(signal.SIGINT)
    try:
        _, shown = driver.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
    assert driver.returncode == 130
    assert shown.endswith("scpo_ray: interrupted; the same command resumes after the last finished step\n")
    assert list(checkpoint_folder(task).glob("step_*"))


@pytest.mark.slow  # tests/chaos kills the same, and more
def test_one_rank_goes_on_with_what_two_began(undisturbed, make_task):
    """The same batches in other parts: equal but for the order of sums. The other way round: tests/chaos/test_shrink.py."""
    began = make_task("two began", **SETTINGS, num_workers=2, max_failures=0)
    killed: list[psutil.Process] = []

    def kill_all(state) -> None:
        if began.name in state.progress and state.progress[began.name].step >= 15 and not killed:
            killed.extend(training_workers())
            for worker in killed:
                worker.kill()

    assert "died 1 times" in run_tasks([began], began.config, on_progress=kill_all).failed[began.name]
    assert len(killed) == 2
    goes_on = replace(began, config=began.config.model_copy(update={"num_workers": 1}))
    steps: list[int] = []
    state = run_tasks(
        [goes_on], goes_on.config, on_progress=lambda state: steps.extend(r.step for r in state.progress.values())
    )
    assert state.failed == {} and min(steps) > 10
    assert metrics_of(goes_on)["losses"] == pytest.approx(metrics_of(undisturbed)["losses"], rel=1e-3)
    for name, tensor in weights_of(undisturbed).items():
        torch.testing.assert_close(weights_of(goes_on)[name], tensor, atol=1e-4, rtol=1e-3, msg=name)


def test_a_zero_checkpoint_of_another_world_size_is_refused(ray_cluster, make_task):
    task = make_task("two then one", max_steps=6, zero_stage=1)
    folder = checkpoint_folder(task) / "step_00000002"
    folder.mkdir(parents=True)
    for rank in range(2):
        (folder / f"rank_{rank}.pt").touch()
    (folder / "zero_stage").write_text("1")

    state = run_tasks([task], task.config)

    assert "written by 2 ranks, num_workers is 1, and this checkpoint (ZeRO stage 1)" in state.failed[task.name]


@pytest.mark.slow  # for its length alone
def test_best_weights_that_are_gone_are_one_line(ray_cluster, make_task):
    """A checkpoint without the best weights that it names: training on would end with others, or not at all."""
    task = make_task("best is gone", **SETTINGS, max_failures=0)
    killed: list[psutil.Process] = []

    def kill_once(state) -> None:
        if task.name in state.progress and state.progress[task.name].step >= 15 and not killed:
            killed.extend(training_workers())
            for worker in killed:
                worker.kill()

    assert "died 1 times" in run_tasks([task], task.config, on_progress=kill_once).failed[task.name]
    for best in checkpoint_folder(task).glob("best_*.pt"):
        best.unlink()
    reason = run_tasks([task], task.config).failed[task.name]
    assert re.search(
        rf"best_\d+\.pt: is missing; delete {checkpoint_folder(task)} to begin this training again", reason
    )
    assert "\n" not in reason
