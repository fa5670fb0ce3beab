"""Many trainings in one Ray job: worker groups that take tasks from a queue."""

import contextlib
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig

from scpo_ray import nodes
from scpo_ray.config import OptimizationConfig
from scpo_ray.errors import ScpoError, StorageError, TrainingError
from scpo_ray.folders import scratch_folder
from scpo_ray.training.queue import NOTHING_YET, TaskState, start_queue
from scpo_ray.training.stacks import has_stacks, stacks_folder
from scpo_ray.training.task import Observation, StepReport, TrainingTask, checkpoint_folder

_POLL_S = 0.5
_IDLE_S = 0.1
_LONGEST_WAIT_S = 60.0
_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_OWN_START_TIMEOUT_S = os.environ.get(_START_TIMEOUT)
"""What the user says; wins."""


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
    queue = start_queue(tasks, config.max_failures, num_groups=num_groups)
    place = checkpoint_folder(tasks[0]).parent
    with worker_groups(queue, config, num_groups=num_groups, max_tasks=len(tasks), place=place) as futures:
        while not all(future.done() for future in futures):
            time.sleep(_POLL_S)
            on_progress(ray.get(queue.state.remote()))
    state: TaskState = ray.get(queue.state.remote())
    on_progress(state)
    _account_for_all(tasks, state, futures)
    return state


@contextlib.contextmanager
def worker_groups(
    queue, config: OptimizationConfig, *, num_groups: int, max_tasks: int, place: Path
) -> Iterator[list[Future]]:
    """Groups of `config.num_workers` ranks at work on a queue, until it is empty and closed.

    Args:
        queue: a TaskQueue.
        max_tasks: how many tasks there may be: bounds how often workers are restarted.
        place: a folder on a disk that all workers share, for Ray Train's own notes.

    Yields:
        Each group's end.
    """
    bookkeeping = scratch_folder(place, "ray_train")
    trainers = [_trainer(queue, config, group, bookkeeping, num_tasks=max_tasks) for group in range(num_groups)]
    try:
        yield [_in_background(trainer.fit) for trainer in trainers]
    finally:
        shutil.rmtree(bookkeeping, ignore_errors=True)


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
    has = nodes.totals()
    num_workers = config.fewest_workers * num_groups
    wanted = {"CPU": config.cpus_per_worker * num_workers, "GPU": float(num_workers) if config.use_gpu else 0.0}
    setting = "num_workers" if config.fewest_workers == config.num_workers else "min_workers"
    for resource, amount in wanted.items():
        if amount > has.get(resource, 0.0):
            raise TrainingError(
                f"{num_workers} training workers need {amount:g} {resource}, the cluster has {has.get(resource, 0.0):g}; "
                f"lower {setting} or cpus_per_worker, or start Ray with more"
            )


def _trainer(queue, config: OptimizationConfig, group: int, bookkeeping: Path, *, num_tasks: int):
    """A worker group's trainer. Ray Train keeps notes of its own in `bookkeeping`, on the checkpoints' disk."""
    from ray.train.torch import TorchConfig  # with torch, which the queue's process and trials need not load

    from scpo_ray.training.group_trainer import GroupTrainer

    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(config.collective_timeout_s)  # its controller reads these
    start_timeout_s, num_starts = _patience(config)
    os.environ[_START_TIMEOUT] = _OWN_START_TIMEOUT_S or f"{start_timeout_s:g}"
    resources = {"CPU": config.cpus_per_worker} | ({"GPU": 1} if config.use_gpu else {})
    return GroupTrainer(
        train_fn,
        torch_config=TorchConfig(timeout_s=math.ceil(config.collective_timeout_s)),
        train_loop_config={"queue": queue, "group": group, "config": config},
        scaling_config=ScalingConfig(
            num_workers=_group_size(config), use_gpu=config.use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=f"group_{group}",
            storage_path=str(bookkeeping),
            failure_config=FailureConfig(
                max_failures=(config.max_failures + 1) * num_tasks,
                controller_failure_limit=num_starts,  # workers that die while starting, too; without it Ray tries for ever
            ),
        ),
    )


def _patience(config: OptimizationConfig) -> tuple[float, int]:
    """How long a group waits for nodes, which an autoscaler may have to start, and how often.

    One that could be smaller asks often how much room there is: what Ray knows about lost nodes is 20 s old at worst.
    """
    return (60.0, 100) if config.fewest_workers < config.num_workers else (600.0, 10)


def _group_size(config: OptimizationConfig) -> int | tuple[int, int]:
    fewest, most = config.fewest_workers, config.num_workers
    return most if fewest == most else (fewest, most)


def train_fn(loop_config: dict) -> None:
    """What every rank of a worker group runs: take a task, train it, until none is left.

    Nothing is reported to Ray Train, whose `report` waits until its controller has looked: the queue knows it all.
    """
    config: OptimizationConfig = loop_config["config"]
    if not config.use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import torch
    import torch.distributed as dist
    from ray.train.torch import get_device

    from scpo_ray.training.engine import join_group
    from scpo_ray.training.loop import BaseModels, Contact, train

    threads = config.threads_per_worker or max(1, (os.cpu_count() or 1) // config.num_workers)
    torch.set_num_threads(threads)
    join_group("nccl" if config.use_gpu else "gloo")
    _limit_collectives(config.collective_timeout_s)
    device = get_device()
    queue, group, is_first = loop_config["queue"], loop_config["group"], dist.get_rank() == 0
    bases = BaseModels()

    def progress(report: StepReport) -> None:
        if is_first:
            queue.advance.remote(group, report)

    def observe(observation: Observation | None) -> bool:
        return _same_on_all_ranks(lambda: ray.get(queue.observe.remote(group, observation)))

    def is_preempted() -> bool:
        info = ray.train.get_preemption_info()
        if info is not None and is_first:
            queue.expect_death.remote(group)
        return info is not None

    if is_first:
        time.sleep(ray.get(queue.pause_s.remote(group)))
    watches = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") != "0"
    contact = Contact(progress, observe, is_preempted if watches else None)
    while (task := _same_on_all_ranks(lambda: _next_task(queue, group, config.collective_timeout_s))) is not None:
        if task == NOTHING_YET:
            continue
        since = time.time()
        try:
            summary = train(task, bases, device=device, contact=contact)
        except ScpoError as error:  # raised on every rank alike: about this task alone
            if is_first:
                ray.get(queue.fail.remote(group, str(error), is_of_workers=isinstance(error, StorageError)))
        except Exception as error:
            if is_first:
                ray.get(queue.note_error.remote(group, f"{first_line(error)}{_where_they_stood(task, since)}"))
            raise
        else:
            if is_first:
                ray.get(queue.finish.remote(group, summary))


def first_line(error: Exception) -> str:
    """The error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"


def _limit_collectives(timeout_s: float) -> None:
    """DeepSpeed computes in a clone of the group that Ray Train has made, and gives it torch's own limit."""
    from deepspeed.utils import groups
    from torch.distributed.distributed_c10d import _set_pg_timeout

    _set_pg_timeout(timedelta(seconds=timeout_s), groups._clone_world_group())


def _where_they_stood(task: TrainingTask, since: float) -> str:
    """Where to read which rank hung, if one did.

    Args:
        since: when the task was taken, seconds since the epoch.
    """
    folder = stacks_folder(task)
    return f" (a step took too long; where each rank stood: {folder})" if has_stacks(folder, since) else ""


def _next_task(queue, group: int, timeout_s: float) -> TrainingTask | str | None:
    """Wait a while for a task; not for ever, since the other ranks wait in a collective that has a time limit."""
    import torch.distributed as dist

    until = time.monotonic() + min(_LONGEST_WAIT_S, timeout_s / 2)
    while (
        task := ray.get(queue.take.remote(group, dist.get_world_size()))
    ) == NOTHING_YET and time.monotonic() < until:
        time.sleep(_IDLE_S)
    return task


def _same_on_all_ranks(ask: Callable[[], Any]) -> Any:
    """What the first rank is answered, on every rank."""
    import torch.distributed as dist

    answer = [ask() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(answer, src=0)
    return answer[0]


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
