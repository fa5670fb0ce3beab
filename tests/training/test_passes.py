"""A batch that is passed through the model in parts gives the steps that it gives as a whole."""

import json
import os
import socket
from pathlib import Path

import numpy as np
import torch.multiprocessing as mp
from safetensors.torch import load_file

from scpo_ray.artifacts import RunDirectory
from scpo_ray.training.task import TrainingTask

LEAST = 300
"""Tokens of a pass, where the whole batch has 5 to 10 times as many."""


def rank_main(rank: int, port: int, tasks: list[TrainingTask], outcome: str) -> None:
    """The first task as it is, the second in small passes; notes losses, and tokens of every pass."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import deepspeed
    import torch

    from scpo_ray import packing
    from scpo_ray.packing import Packer
    from scpo_ray.training.loop import BaseModels, train

    torch.set_num_threads(1)
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    inputs_of, found = Packer.inputs_of, []
    for task in tasks:
        seen: list[int] = []

        def noted(self, sequences, seen=seen):
            inputs = inputs_of(self, sequences)
            seen.append(inputs["input_ids"].numel() * torch.is_grad_enabled())
            return inputs

        Packer.inputs_of = noted
        summary = train(task, BaseModels(), device=torch.device("cpu"))
        found.append([summary.losses, [size for size in seen if size]])
        packing._LARGEST_TENSOR, packing._LEAST_TOKENS = 0, LEAST
    Path(outcome).write_text(json.dumps(found))


def test_parts_of_a_batch_add_up_to_it(make_task, tmp_path):
    tasks = [make_task(name, max_steps=8, weight_decay=0.0) for name in ("whole", "in_parts")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(rank_main, args=(port, tasks, str(tmp_path / "found")), nprocs=1, start_method="spawn")
    (losses, passes), (other_losses, other_passes) = json.loads((tmp_path / "found").read_text())
    assert len(passes) == 8 and min(passes) > 2 * LEAST
    assert len(other_passes) > 24 and max(other_passes) <= LEAST
    np.testing.assert_allclose(other_losses, losses, atol=2e-5, rtol=0)
    run = RunDirectory(tasks[0].run_address)
    weights, other = (load_file(run.fetch(task.recipe.name) / "model.safetensors") for task in tasks)
    for name, tensor in weights.items():
        np.testing.assert_allclose(other[name].numpy(), tensor.numpy(), atol=2e-4, err_msg=name)
