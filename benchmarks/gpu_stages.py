"""Scoring and training as their jobs run them, on Ray: what benchmarks/gpu.py measures beside their insides."""

import shutil
import time

import torch

from benchmarks import gpu_work
from benchmarks.gpu_work import Work, format_config, num_pairs, seen
from benchmarks.performance.rounds import Measured
from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config
from scpo_ray.runtime import connect
from scpo_ray.stages import prepare, score, train_global
from scpo_ray.stages.scoring_job import cache_address


class Stages:
    """A run of its own beside the model's folder, on the same texts and model."""

    def __init__(self, work: Work, *, learning_rate: float) -> None:
        connect()
        self._work, on_gpu = work, work.device.type == "cuda"
        self._scoring = Config(
            run_dir=f"{work.folder}_stages",
            prepare={"datasets": ["prism"], "prism": {"path": str(work.texts_at)}, "validation_fraction": 0.0},
            format=format_config(),
            train_global={"model": str(work.folder), "epochs": 0},
            score={"precision": "bfloat16", "gpus_per_scorer": int(on_gpu)},
        )
        learns = {"epochs": 100.0, "max_steps": gpu_work.STEPS, "batch_size": gpu_work.INTERACTIONS_PER_STEP}
        learns |= {"length_window": 1, "learning_rate": learning_rate, "precision": "bfloat16", "use_gpu": on_gpu}
        self._training = Config(
            run_dir=f"{work.folder}_trained",
            prepare=self._scoring.prepare.model_dump(),
            format=format_config(),
            train_global={"model": str(work.folder)} | learns,
        )
        for config in (self._scoring, self._training):
            prepare.run(config)
        train_global.run(self._scoring)

    def scored(self) -> Measured:
        """The whole stage, as if nothing had been scored before."""
        directory = RunDirectory(self._scoring.run_dir)
        if directory.find("scores") is not None:
            directory.remove("scores")
        shutil.rmtree(cache_address(self._scoring), ignore_errors=True)
        _leave_room()
        start = time.perf_counter()
        score.run(self._scoring)
        seconds = time.perf_counter() - start
        return Measured(directory.require("scores", job="score").statistics["num_tokens"], seconds)

    def trained(self) -> tuple[Measured, Measured]:
        """(its steps, the whole stage), of the majority's training pairs: as many as their tokens are of the other ways'."""
        directory = RunDirectory(self._training.run_dir)
        if directory.find("global_model") is not None:
            directory.remove("global_model")
        _leave_room()
        start = time.perf_counter()
        train_global.run(self._training)
        seconds = time.perf_counter() - start
        metrics = directory.read_json("global_model/metrics.json")
        of_others = sum(len(self._work.sequences[index].input_ids) for index in seen(self._work))
        pairs = num_pairs(self._work) * metrics["num_tokens"] / of_others
        return Measured(pairs, metrics["wall_time_s"]), Measured(pairs, seconds)


def _leave_room() -> None:
    """What this process holds of the GPU and does not use is the workers'."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
