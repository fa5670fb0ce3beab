"""Checkpoints on a disk that fills up under one rank of two."""

import contextlib
import os
import resource
import socket
from pathlib import Path

import torch
import torch.multiprocessing as mp

from scpo_ray.config import ModelConfig, OptimizationConfig
from scpo_ray.errors import StorageError

CONFIG = OptimizationConfig(zero_stage=1, num_workers=2)


def rank_main(rank: int, port: int, folder: str) -> None:
    """One checkpoint with room for it, then one for which rank 1 has none; notes what each attempt ended with."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import deepspeed

    from scpo_ray import models
    from scpo_ray.training.engine import load_checkpoint, make_engine, save_checkpoint

    torch.set_num_threads(1)
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    made = models.make(ModelConfig(vocab_size=100), texts=["a b c"], max_tokens=32, seed=0)
    engine = make_engine(
        made.model, CONFIG, world_size=2, device=torch.device("cpu"), learning_rate=CONFIG.learning_rate
    )
    outcome = Path(folder, f"rank_{rank}.txt")
    save_checkpoint({"state": engine}, Path(folder, "step_1"), state={"step": 1})
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        save_checkpoint({"state": engine}, Path(folder, "step_2"), state={"step": 2})
    except StorageError as error:
        with contextlib.suppress(ValueError):
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        restored = load_checkpoint({"state": engine}, Path(folder, "step_1"))["step"]
        outcome.write_text(f"{error} | restored {restored}")


def test_a_full_disk_under_one_rank_is_one_error_on_all_and_keeps_the_last_checkpoint(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(rank_main, args=(port, str(tmp_path)), nprocs=2, start_method="spawn")

    outcomes = [(tmp_path / f"rank_{rank}.txt").read_text() for rank in range(2)]

    assert outcomes[0] == outcomes[1], "no rank waits for one that has given up"
    assert "the checkpoint cannot be written" in outcomes[0] and outcomes[0].endswith("| restored 1")
    assert not (tmp_path / "step_2").exists()
