"""The queue by itself: who gets what, what is given up, and whose fault a failure is."""

import pytest

from scpo_ray.artifacts import Recipe
from scpo_ray.config import FormatConfig, OptimizationConfig
from scpo_ray.training.queue import NOTHING_YET, TaskQueue
from scpo_ray.training.task import Observation, StartModel, StepReport, TrainingSummary, TrainingTask

Queue = TaskQueue.__ray_metadata__.modified_class  # the class under the actor


def task(name: str, size: int = 1) -> TrainingTask:
    return TrainingTask(
        recipe=Recipe(name, "tune", {}, {}, 0),
        run_address="run",
        start=StartModel("model"),
        communities=("Brevia",),
        decisions=None,
        config=OptimizationConfig(),
        format_config=FormatConfig(),
        seed=0,
        size=size,
        card={"name": name},
    )


def summary(name: str) -> TrainingSummary:
    return TrainingSummary(name, 1, 1, 1, 1, 0.1, [0.5], [], 1)


@pytest.fixture
def queue():
    queue = Queue([], 1, num_groups=2, is_open=True)
    queue.add([task("a"), task("b"), task("c")])
    return queue


def test_an_open_queue_makes_idle_groups_wait_and_a_closed_one_sends_them_home():
    queue = Queue([task("small"), task("large", size=9)], 1, is_open=True)
    assert [queue.take(0, 1).name, queue.take(1, 1).name] == ["large", "small"]
    for group, name in enumerate(["large", "small"]):
        queue.finish(group, summary(name))
    assert queue.take(0, 1) == NOTHING_YET
    queue.close()
    assert queue.take(0, 1) is None


def test_what_is_given_up_never_starts_or_ends_at_its_next_word(queue):
    running = queue.take(0, 1)
    assert queue.observe(0, Observation(1, 1, (0.5,), ())) and queue.observe(0, None)
    queue.give_up(["a", "b"])
    assert not queue.observe(0, None) and not queue.observe(0, Observation(2, 2, (0.5,), ()))
    queue.fail(0, "stopped")
    assert queue.look(["a"])["a"].failure is None, "nobody asks any more"
    assert running.name == "a" and queue.take(0, 1).name == "c"


def test_a_restarted_group_gets_its_task_back_unless_that_was_given_up(queue):
    assert queue.take(0, 1).name == "a"
    queue.take(1, 1)
    queue.give_up(["b"])
    assert queue.take(0, 1).name == "a", "its workers died once"
    assert queue.take(1, 1).name == "c", "they died as well, but nobody wants b any more"


def test_workers_that_keep_dying_are_to_blame_and_not_the_task(queue):
    queue.take(0, 1)
    queue.note_error(0, "RuntimeError: no memory")
    queue.take(0, 1)
    assert queue.take(0, 1).name == "b"
    watched = queue.look(["a"])["a"]
    assert "died 2 times, at last of: RuntimeError: no memory" in watched.failure and watched.is_of_workers
    queue.fail(0, "loss is nan")
    assert not queue.look(["b"])["b"].is_of_workers
    queue.take(0, 1)
    queue.fail(0, "disk full", is_of_workers=True)
    assert queue.look(["c"])["c"].is_of_workers


def test_without_groups_nothing_waits_for_ever(queue):
    queue.take(0, 1)
    queue.end_group(0, "gone")
    assert queue.look(["a"])["a"].is_of_workers and queue.look(["b"])["b"].failure is None
    queue.end_group(1, "gone too")
    queue.add([task("d")])
    for name in "bcd":
        assert queue.look([name])[name].failure == "gone too" and queue.look([name])[name].is_of_workers


def test_a_death_that_was_announced_counts_as_no_failure_once():
    queue = Queue([task("a")], max_failures=1)
    assert queue.take(0, 1).name == "a"
    queue.expect_death(0)
    assert queue.take(0, 1).name == "a" and queue.state().num_deaths == 0
    assert queue.take(0, 1).name == "a" and queue.state().num_deaths == 1  # this one was not
    assert queue.take(0, 1) is None
    assert "died 2 times" in queue.state().failed["a"]


def test_a_group_waits_longer_after_every_death_and_not_for_what_was_announced():
    queue = Queue([task("a")], max_failures=9)
    assert queue.pause_s(0) == 0.0
    pauses = []
    for _ in range(9):
        queue.take(0, 1)
        pauses.append(queue.pause_s(0))
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    queue.expect_death(0)
    assert queue.pause_s(0) == 0.0


def test_a_group_that_grew_did_not_die():
    queue = Queue([task("a")], max_failures=1)
    for size in (2, 1, 2, 4):  # a node was lost, then nodes came
        assert queue.take(0, size).name == "a"
    assert queue.state().num_deaths == 1


def test_state_says_how_many_wait_and_where_each_stands():
    queue = Queue([task("a", size=2), task("b")], max_failures=1)
    queue.take(0, 1)
    report = StepReport(3, 10, 0.5, 0.1, num_pairs=12, num_tokens=100, num_padded_tokens=110)
    queue.advance(0, report)
    assert (queue.state().num_waiting, queue.state().progress, queue.state().communities) == (
        1,
        {"a": report},
        {"a": "Brevia"},
    )
