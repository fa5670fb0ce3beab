"""Many trainings in one Ray job: worker groups that take tasks from a queue, longest first."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from scpo_ray.artifacts import scratch_folder
from scpo_ray.config import OptimizationConfig
from scpo_ray.errors import ScpoError, TrainingError
from scpo_ray.training.task import TrainingSummary, TrainingTask, checkpoint_folder

_POLL_S = 0.5


@dataclass
class TaskState:
    """Where the trainings of a job stand."""

    num_tasks: int
    finished: dict[str, TrainingSummary] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    progress: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    """Task -> step, number of steps, loss."""


@ray.remote(num_cpus=0)
class TaskQueue:
    """Hands tasks to worker groups. A group that was restarted gets back the task it was working on."""

    def __init__(self, tasks: Sequence[TrainingTask], max_failures: int) -> None:
        self._waiting = sorted(tasks, key=lambda task: (-task.size, task.name))
        self._leases: dict[int, TrainingTask] = {}
        self._interruptions: dict[str, int] = {}
        self._errors: dict[str, str] = {}
        self._max_failures = max_failures
        self._state = TaskState(len(tasks))

    def note_error(self, group: int, error: str) -> None:
        """What ended the group's workers last, for the message should they go on failing."""
        self._errors[self._leases[group].name] = error

    def take(self, group: int) -> TrainingTask | None:
        """The group's unfinished task, else the longest that waits, else None."""
        if group in self._leases:
            task = self._leases[group]
            count = self._interruptions[task.name] = self._interruptions.get(task.name, 0) + 1
            if count <= self._max_failures:
                return task
            last = self._errors.get(task.name, "killed, or out of memory; see the Ray logs")
            self.fail(group, f"its worker group died {count} times, at last of: {last}; see train.max_failures")
        if self._waiting:
            self._leases[group] = self._waiting.pop(0)
        return self._leases.get(group)

    def advance(self, group: int, step: int, num_steps: int, loss: float) -> None:
        """Note progress, for the bar."""
        self._state.progress[self._leases[group].name] = (step, num_steps, loss)

    def finish(self, group: int, summary: TrainingSummary) -> None:
        """The group's task has written its artifact."""
        self._state.finished[self._leases.pop(group).name] = summary

    def fail(self, group: int, reason: str) -> None:
        """The group's task cannot succeed; the others go on."""
        self._state.failed[self._leases.pop(group).name] = reason

    def state(self) -> TaskState:
        """A snapshot."""
        return self._state


def run_tasks(
    tasks: Sequence[TrainingTask],
    config: OptimizationConfig,
    *,
    num_groups: int = 1,
    on_progress: Callable[[TaskState], None] = lambda state: None,
) -> TaskState:
    """Train every task; return what finished and what failed.

    Raises:
        TrainingError: the cluster cannot hold the workers, or a worker group failed for good outside any task.
    """
    num_groups = min(num_groups, len(tasks))
    check_resources(config, num_groups)
    queue = TaskQueue.remote(list(tasks), config.max_failures)
    bookkeeping = scratch_folder(checkpoint_folder(tasks[0]).parent, "ray_train")
    trainers = [_trainer(queue, config, group, bookkeeping, num_tasks=len(tasks)) for group in range(num_groups)]
    try:
        futures = [_in_background(trainer.fit) for trainer in trainers]
        while not all(future.done() for future in futures):
            time.sleep(_POLL_S)
            on_progress(ray.get(queue.state.remote()))
    finally:
        shutil.rmtree(bookkeeping, ignore_errors=True)
    state: TaskState = ray.get(queue.state.remote())
    on_progress(state)
    _account_for_all(tasks, state, futures)
    return state


def _in_background(function: Callable[[], object]) -> Future:
    """Run in a daemon thread: an interrupted driver must not wait for the trainings that it gives up."""
    future: Future = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


def check_resources(config: OptimizationConfig, num_groups: int) -> None:
    """Refuse at once what the cluster could never schedule, where waiting would look like hanging.

    Raises:
        TrainingError: more CPUs or GPUs are asked for than the cluster has.
    """
    has = ray.cluster_resources()
    num_workers = config.num_workers * num_groups
    wanted = {"CPU": config.cpus_per_worker * num_workers, "GPU": float(num_workers) if config.use_gpu else 0.0}
    for resource, amount in wanted.items():
        if amount > has.get(resource, 0.0):
            raise TrainingError(
                f"{num_workers} training workers need {amount:g} {resource}, the cluster has {has.get(resource, 0.0):g}; "
                "lower num_workers or cpus_per_worker, or start Ray with more"
            )


def _trainer(queue, config: OptimizationConfig, group: int, bookkeeping: Path, *, num_tasks: int) -> TorchTrainer:
    """A worker group. Ray Train keeps notes of its own in `bookkeeping`, on the disk that holds the checkpoints."""
    resources = {"CPU": config.cpus_per_worker} | ({"GPU": 1} if config.use_gpu else {})
    return TorchTrainer(
        train_fn,
        train_loop_config={"queue": queue, "group": group, "config": config},
        scaling_config=ScalingConfig(
            num_workers=config.num_workers, use_gpu=config.use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=f"group_{group}",
            storage_path=str(bookkeeping),
            failure_config=FailureConfig(
                max_failures=(config.max_failures + 1) * num_tasks,
                controller_failure_limit=10,  # workers that die while starting; without it Ray tries for ever
            ),
        ),
    )


def train_fn(loop_config: dict) -> None:
    """What every rank of a worker group runs: take a task, train it, until none is left."""
    config: OptimizationConfig = loop_config["config"]
    if not config.use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import torch
    import torch.distributed as dist

    from scpo_ray.training.loop import BaseModels, train

    threads = config.threads_per_worker or max(1, (os.cpu_count() or 1) // config.num_workers)
    torch.set_num_threads(threads)
    deepspeed.init_distributed(dist_backend="nccl" if config.use_gpu else "gloo")
    device = ray.train.torch.get_device()
    queue, group, is_first = loop_config["queue"], loop_config["group"], dist.get_rank() == 0
    bases = BaseModels()

    def progress(step: int, num_steps: int, loss: float) -> None:
        if is_first:
            queue.advance.remote(group, step, num_steps, loss)

    while (task := _same_on_all_ranks(queue.take, group)) is not None:
        try:
            summary = train(task, bases, device=device, progress=progress)
        except ScpoError as error:  # raised on every rank alike: about this task alone
            if is_first:
                ray.get(queue.fail.remote(group, str(error)))
        except Exception as error:
            if is_first:
                ray.get(queue.note_error.remote(group, first_line(error)))
            raise
        else:
            if is_first:
                ray.get(queue.finish.remote(group, summary))
        ray.train.report({"task": task.name})


def first_line(error: Exception) -> str:
    """The error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"


def _same_on_all_ranks(take, group: int) -> TrainingTask | None:
    import torch.distributed as dist

    taken = [ray.get(take.remote(group)) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(taken, src=0)
    return taken[0]


def _account_for_all(tasks: Sequence[TrainingTask], state: TaskState, futures: Sequence[Future]) -> None:
    """A worker group that ended early takes down its own trainings alone; with nothing finished at all, it is an error."""
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, ray.train.TrainingFailedError):
            raise error
    unfinished = [task.name for task in tasks if task.name not in state.finished and task.name not in state.failed]
    if not unfinished:
        return
    reason = str(errors[0]).strip().splitlines()[-1] if errors else "the worker groups ended early"
    if not state.finished:
        raise TrainingError(f"{', '.join(unfinished)}: not finished: {reason}; rerun to resume") from next(
            iter(errors), None
        )
    state.failed |= dict.fromkeys(unfinished, f"not finished: {reason}; rerun to resume")
