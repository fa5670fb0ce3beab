"""What a worker keeps of the trainings that it has finished: nothing."""

import gc
import os
import socket
from pathlib import Path

import torch
import torch.multiprocessing as mp

from scpo_ray.errors import TrainingError
from scpo_ray.training.task import TrainingTask


def rank_main(rank: int, port: int, tasks: list[TrainingTask], outcome: str) -> None:
    """One training after the other, the last of which fails; notes how many engines are alive after each."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import deepspeed

    from scpo_ray.training.loop import BaseModels, train

    torch.set_num_threads(1)
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    bases, alive = BaseModels(), []
    for task in tasks:
        try:
            train(task, bases, device=torch.device("cpu"))
        except TrainingError:
            alive.append("failed")
        gc.disable()  # what is alive now is alive for good
        alive.append(str(sum(type(value) is deepspeed.DeepSpeedEngine for value in gc.get_objects())))
        gc.enable()
    Path(outcome).write_text(" ".join(alive))


def test_no_engine_outlives_its_training(make_task, tmp_path):
    tasks = [make_task(f"memory_{number}", max_steps=1) for number in range(3)]
    tasks += [make_task("memory_failing", max_steps=3, learning_rate=1e30), make_task("memory_last", max_steps=1)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(rank_main, args=(port, tasks, str(tmp_path / "alive")), nprocs=1, start_method="spawn")
    alive = (tmp_path / "alive").read_text().split()
    assert alive[:4] == ["0", "0", "0", "failed"]
    assert alive[4] in ("0", "1") and alive[5:] == ["0"], "a failed one may live as long as its error, until the next"
