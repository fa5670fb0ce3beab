"""A dead actor's work is done by its successor, up to a number of deaths."""

import os
import signal
import threading
from pathlib import Path

import pytest

from scpo_ray import nodes
from scpo_ray.errors import WorkerError
from scpo_ray.ppo.actors import Failures, Pool
from scpo_ray.ppo.hanging import EndsIfHung


class Worker(EndsIfHung):
    """Says what it has been told, and by which start of it."""

    def __init__(self, start: int) -> None:
        self._start, self._told = start, None

    def tell(self, what: str) -> None:
        self._told = what

    def answer(self, question: str) -> tuple:
        return question, self._told, self._start

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def die_once(self, path: str) -> str:
        if not os.path.exists(path):
            open(path, "w").close()
            self.die()
        return "survived"

    def hang_once(self, path: str) -> str:
        if not os.path.exists(path):
            open(path, "w").close()
            threading.Event().wait()
        return "woken"


def make_pool(ray, most: int, *, ready=lambda index, actor: None, limit_s: float = 60) -> tuple[Pool, list]:
    starts: list[int] = []

    def start(index: int):
        starts.append(index)
        return ray.remote(Worker).options(num_cpus=0.01).remote(len(starts))

    return Pool("worker", 2, start, Failures(most), ready=ready, limit_s=limit_s), starts


def test_a_successor_is_brought_up_to_date_and_asked_again(ray_cluster, tmp_path):
    pool, starts = make_pool(
        ray_cluster, 3, ready=lambda index, actor: ray_cluster.get(actor.tell.remote(f"state of {index}"))
    )
    calls = [
        pool.submit(1, "die_once", str(tmp_path / "died")),
        pool.submit(1, "answer", "after"),
        pool.submit(0, "answer", "a"),
    ]
    assert pool.collect(calls) == ["survived", ("after", "state of 1", 3), ("a", None, 1)]
    assert starts == [0, 1, 1]
    pool.stop()


def test_one_death_too_many_ends_the_run(ray_cluster):
    pool, starts = make_pool(ray_cluster, 1)
    with pytest.raises(WorkerError, match=r"worker 0, worker 0: died \(2 deaths, max_failures is 1\).*rerun to resume"):
        pool.collect([pool.submit(0, "die")])
    assert starts == [0, 1, 0]
    pool.stop()


def test_an_error_is_no_death(ray_cluster):
    pool, starts = make_pool(ray_cluster, 0)
    with pytest.raises(TypeError):
        pool.collect([pool.submit(0, "answer", "too", "many")])
    assert pool.all("answer", "fine") == [("fine", None, 1), ("fine", None, 2)]
    assert starts == [0, 1]
    pool.stop()


def test_a_call_that_hangs_is_a_death_and_says_where_it_stood(ray_cluster, tmp_path):
    pool, starts = make_pool(ray_cluster, 1, limit_s=2)
    calls = [pool.submit(0, "hang_once", str(tmp_path / "hung")), pool.submit(1, "answer", "meanwhile")]
    assert pool.collect(calls) == ["woken", ("meanwhile", None, 2)]
    assert starts == [0, 1, 0]
    logs = Path(ray_cluster._private.worker.global_worker.node.get_session_dir_path(), "logs")
    said = [text for path in logs.glob("worker-*.err") if "Timeout (0:00:02)!" in (text := path.read_text())]
    assert len(said) == 1 and "in hang_once" in said[0]
    pool.stop()


def test_deaths_that_a_notice_announced_are_no_failures(monkeypatch):
    going: set[str] = {"a node"}
    monkeypatch.setattr(nodes, "draining", lambda: frozenset(going))
    failures = Failures(0)
    assert failures.watch()
    failures.note("learner")
    going.clear()
    failures.note("rollout engine 0")  # it went together with the node, which is in no list any more
    assert failures.seen == []
    assert not failures.watch()  # a step went well without it
    with pytest.raises(WorkerError, match="max_failures is 0"):
        failures.note("learner")


def test_no_node_drains_unless_it_is_told_to(ray_cluster):
    assert nodes.draining() == frozenset()
