"""Two jobs on one run: the second waits for the first, and is not kept waiting by one that was killed."""

import contextlib
import select
import subprocess
import sys
import time

import pytest

from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config
from scpo_ray.stages import best_of_n, evaluate, ppo, score, sft, train, train_global
from scpo_ray.stages.turns import turn

CODE = """
import sys
from scpo_ray.artifacts import RunDirectory
from scpo_ray.stages.turns import turn
with turn(RunDirectory(sys.argv[1]), "train", sys.argv[2]):
    print("in", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def take(tmp_path):
    with contextlib.ExitStack() as stack:

        def start(address: str) -> subprocess.Popen:
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            command = [sys.executable, "-c", CODE, address, str(tmp_path / "checkpoints")]
            return stack.enter_context(subprocess.Popen(command, text=True, **pipes))

        yield start


def test_the_second_waits_until_the_first_has_died(take, tmp_path):
    first = take(str(tmp_path))
    assert first.stdout.readline() == "in\n"
    second = take(str(tmp_path))
    said = second.stderr.readline() + second.stderr.readline()
    assert f"train: waiting for process {first.pid} on " in said.replace("\n", " ")
    with turn(RunDirectory(str(tmp_path)), "sft", None), turn(RunDirectory(str(tmp_path / "other")), "train", None):
        pass  # another stage, another run
    with turn(RunDirectory(str(tmp_path)), "train", None, of=["Chile"]):
        pass  # another part of the work
    with (
        turn(RunDirectory(str(tmp_path)), "train", None, of=["Chile", "Peru"]),
        turn(RunDirectory(str(tmp_path)), "x", None),
    ):
        assert len(list(tmp_path.glob(".train-*.lock"))) == 2, "of each its own"
    assert second.poll() is None
    first.kill()
    assert second.stdout.readline() == "in\n"
    second.kill()


def test_many_take_turns_and_leave_nothing(take, tmp_path):
    """Each removes the file when it leaves; those that waited for it must not be in at the same time as who takes a new one."""
    run = tmp_path / "run"
    run.mkdir()
    waiting = [take(str(run)) for _ in range(5)]
    seen = []
    while waiting:
        inside = [one for one in waiting if select.select([one.stdout], [], [], 0.2)[0]]
        assert len(inside) <= 1
        for one in inside:
            assert one.stdout.readline() == "in\n"
            time.sleep(0.5)
            assert not any(select.select([other.stdout], [], [], 0)[0] for other in waiting if other is not one)
            one.stdin.close()
            one.wait(timeout=30)
            waiting.remove(one)
            seen.append(one.pid)
    assert len(seen) == 5 and not list(run.iterdir())


def test_a_refused_job_leaves_no_folder(tmp_path):
    run = RunDirectory(str(tmp_path / "typo"))
    with pytest.raises(ZeroDivisionError), turn(run, "score", None):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_runs_on_an_object_store_are_told_apart_on_their_disk(take):
    """The store itself is not asked."""
    one, two = (f"s3://bucket/{name}?region=us-east-1" for name in ("one", "two"))
    first = take(one)
    assert first.stdout.readline() == "in\n"
    other = take(two)
    assert other.stdout.readline() == "in\n"
    same = take(one)
    assert "waiting for process" in same.stderr.readline()
    for process in (first, other, same):
        process.kill()


@pytest.mark.parametrize("stage", [train_global, score, train, evaluate, sft, ppo, best_of_n])
def test_every_stage_with_a_model_takes_turns(tmp_path, monkeypatch, stage):
    class TookATurn(Exception):
        pass

    def taken(directory, name, checkpoint_dir, of=None):
        raise TookATurn(directory.address, name, checkpoint_dir, of)

    monkeypatch.setattr(stage, "turn", taken)
    monkeypatch.setattr(train, "communities_to_train", lambda config, directory: ["Chile"])
    monkeypatch.setattr(ppo, "target_names", lambda config, directory: ["Chile"])
    name = stage.__name__.rpartition(".")[2]
    section = {"score": "train", "evaluate": "train", "best_of_n": "ppo"}.get(name, name)
    config = Config(run_dir=str(tmp_path)).with_settings(
        {f"{section}.checkpoint_dir": "/shared/unfinished"}
        | {f"{one}.communities": ("Chile",) for one in ("train", "ppo", "sft", "train_global")}
    )
    with pytest.raises(TookATurn) as raised:
        stage.run(config)
    *taken_for, of = raised.value.args
    assert taken_for == [str(tmp_path), name, "/shared/unfinished"]
    assert ("Chile" in (of or ())) == (stage in (train, ppo)), "jobs may share communities among them"
