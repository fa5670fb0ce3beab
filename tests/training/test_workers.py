"""What a job of many trainings reports when worker groups end early."""

from concurrent.futures import Future
from dataclasses import replace

import psutil
import pytest
import ray.train

from scpo_ray.errors import TrainingError
from scpo_ray.training.queue import TaskState
from scpo_ray.training.task import TrainingSummary
from scpo_ray.training.workers import _account_for_all, run_tasks

SUMMARY = TrainingSummary("a", 1, 1, 1, 1, 0.1, [0.5], [], 1)


def ended_with(error: BaseException | None) -> Future:
    future: Future = Future()
    future.set_exception(error) if error is not None else future.set_result(None)
    return future


def test_trainings_of_a_group_that_ended_early_fail_and_the_finished_ones_count(make_task):
    tasks = [make_task("a"), make_task("b"), make_task("c")]
    state = TaskState(3, finished={"a": SUMMARY}, failed={"c": "too few pairs"})
    error = ray.train.ControllerError(RuntimeError("first line\nthe node went away"))
    _account_for_all(tasks, state, [ended_with(error), ended_with(None)])
    assert set(state.failed) == {"b", "c"}
    assert state.failed["c"] == "too few pairs"
    assert state.failed["b"].startswith("not finished: ") and "the node went away" in state.failed["b"]


def test_nothing_finished_is_an_error(make_task):
    with pytest.raises(TrainingError, match=r"^a, b: not finished: the worker groups ended early; rerun to resume$"):
        _account_for_all([make_task("a"), make_task("b")], TaskState(2), [ended_with(None)])


def test_another_error_is_raised_as_it_is(make_task):
    with pytest.raises(ZeroDivisionError):
        _account_for_all([make_task("a")], TaskState(1), [ended_with(ZeroDivisionError())])


def test_no_actor_of_rays_can_outlive_the_job(ray_cluster, make_task):
    """Ray's PlacementGroupCleaner is detached: a job that dies before Ray has told it whom to watch for leaves it behind."""
    task, seen = make_task("alone", max_steps=20), set[str]()

    def look(state: TaskState) -> None:
        seen.update(
            process.info["cmdline"][0] for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"]
        )

    run_tasks([task], task.config, on_progress=look)
    kinds = {title.removeprefix("ray::").split(".")[0].split(":")[0] for title in seen if title.startswith("ray::")}
    assert "TrainController" in kinds and "PlacementGroupCleaner" not in kinds, kinds


def test_steps_can_follow_what_was_offered_and_not_what_was_kept(ray_cluster, make_task):
    """Two epochs of 30 items in batches of 12 are six steps, however many items there are to learn from."""
    task = replace(make_task("offered", epochs=2.0, batch_size=12), num_items=30)
    state = run_tasks([task], task.config)
    assert state.finished[task.name].num_steps == 6
