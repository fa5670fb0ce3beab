"""Faults on a seeded schedule: what runs on a cluster is killed while a job runs, and the job is submitted until it ends."""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from scpo_ray.local_cluster import end_node, processes_of, sessions, start_node
from tests.clusters import RAY, ROOT, Cluster

KINDS = ("worker", "actor", "driver", "node")
WORKERS = ("RayTrainWorker", "MapWorker", "Learner", "RewardActor")
"""Actors that train or score; all others are the kind "actor": engines, queues, Ray Train's and Ray Data's own."""

RAYS_OWN = (
    "ActorLocationTracker",
    "_StatsActor",
    "DashboardAgent",
    "RuntimeEnvAgent",
    "_AutoscalingCoordinator",
    "IDLE",
)
"""Processes that a cluster keeps from job to job."""

JOB_TIMEOUT_S = 900.0
CALM_S = 60.0
"""In which a cluster has to get rid of what a dead job has left."""


@dataclass(frozen=True)
class Fault:
    at_s: float
    """Since the job's first submission."""
    kind: str
    victim: str


@dataclass
class Outcome:
    """How a disturbed job went."""

    seconds: float = 0.0
    submissions: int = 0
    faults: list[Fault] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    """What each submission that failed said last."""
    lost: list[str] = field(default_factory=list)
    """Finished artifacts and records that changed or vanished afterwards."""


@dataclass(frozen=True)
class Schedule:
    """When something dies, and what: the same for a seed."""

    seed: int
    num_faults: int = 4
    mean_gap_s: float = 7.0
    kinds: tuple[str, ...] = KINDS
    calm_until: str = ""
    """A pattern of files in the run directory: nothing is killed before there is one."""

    def draws(self) -> Iterator[tuple[float, str, random.Random]]:
        """(seconds after the last one, kind, what chooses the victim); every kind before any comes again."""
        chance, left = random.Random(self.seed), list[str]()
        for _ in range(self.num_faults):
            left = left or chance.sample(self.kinds, len(self.kinds))
            yield chance.uniform(0.4, 1.6) * self.mean_gap_s, left.pop(), random.Random(chance.random())


def disturb(
    cluster: Cluster, command: list[str], run_dir: Path, schedule: Schedule, *, options: Sequence[str] = ()
) -> Outcome:
    """Submit a job again and again until it has ended well, while the schedule strikes.

    Args:
        options: of `ray job submit`.

    Raises:
        AssertionError: it failed although nothing had been killed since it was submitted, or took too long.
    """
    outcome, start, draws = Outcome(), time.monotonic(), schedule.draws()
    gap, kind, chance = next(draws, (float("inf"), "", random.Random()))
    due, finished, is_calm = start + gap, Finished(run_dir), bool(schedule.calm_until)
    while True:
        struck = len(outcome.faults)
        outcome.submissions += 1
        with submitted(cluster, command, *options) as (job, output):
            while job.poll() is None:
                assert time.monotonic() - start < JOB_TIMEOUT_S, f"{command}: not done after {JOB_TIMEOUT_S:g} s"
                if is_calm and any(run_dir.glob(schedule.calm_until)):
                    due, is_calm = time.monotonic() + gap, False
                if not is_calm and time.monotonic() >= due and (victim := strike(cluster, kind, command, chance)):
                    outcome.faults.append(Fault(time.monotonic() - start, kind, victim))
                    outcome.lost += finished.check()
                    gap, kind, chance = next(draws, (float("inf"), "", random.Random()))
                    due = time.monotonic() + gap
                time.sleep(0.1)
            printed = output.read_text()
        outcome.lost += finished.check()
        if job.returncode == 0:
            outcome.seconds = time.monotonic() - start
            return outcome
        assert len(outcome.faults) > struck, f"{command} failed by itself:\n{printed}"
        outcome.ends.append(_last_words(printed))


def _last_words(printed: str) -> str:
    """The job's error, or the last line that is not Ray's about the job."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("scpo_ray: error") or "Error: " in line]
    return (said or lines or [""])[-1][:300]


@contextlib.contextmanager
def submitted(cluster: Cluster, command: list[str], *options: str) -> Iterator[tuple[subprocess.Popen, Path]]:
    """As the README says: what submits, which goes when the job has ended, and the file of what the job prints."""
    output = Path(cluster.config.folder, "submitted.txt")
    with output.open("wb") as stream:
        job = subprocess.Popen(
            [str(RAY), "job", "submit", "--working-dir", ".", *options, "--", *command],
            cwd=ROOT,
            env=cluster.environment,
            stdout=stream,
            stderr=stream,
        )
    try:
        yield job, output
    except AssertionError as error:
        error.add_note(output.read_text()[-8000:])
        raise
    finally:
        job.kill()
        job.wait()


def strike(cluster: Cluster, kind: str, command: list[str], chance: random.Random) -> str:
    """Kill one of a kind (-9).

    Returns:
        What it was; "" while there is none.
    """
    if kind == "node":
        return _pull_the_plug(cluster)
    victims = sorted(_victims(cluster, kind, command), key=lambda process: process.pid)
    if not victims:
        return ""
    victim = chance.choice(victims)
    with contextlib.suppress(psutil.NoSuchProcess):
        name = "driver" if kind == "driver" else _title(victim)
        os.kill(victim.pid, signal.SIGKILL)
        return name
    return ""


def _pull_the_plug(cluster: Cluster) -> str:
    """Of the second node, once a part of the job is there; another node like it joins."""
    name = cluster.config.nodes[-1].name
    there = [title for node, title in _at_work(cluster) if node == name]
    if not there:
        return ""
    end_node(cluster.config, name, at_once=True)
    start_node(cluster.config, name, environment=cluster.environment)
    return f"node {name} with {', '.join(sorted({title.removeprefix('ray::').split('.')[0] for title in there}))}"


def _victims(cluster: Cluster, kind: str, command: list[str]) -> Iterator[psutil.Process]:
    if kind == "driver":
        yield from _drivers(command)
        return
    for process in _processes(cluster):
        title = _title(process)
        if _is_at_work(title) and "JobSupervisor" not in title and _is_worker(title) == (kind == "worker"):
            yield process


def _drivers(command: list[str]) -> Iterator[psutil.Process]:
    """The job's own process; Ray gives it a session of its own, apart from its node's."""
    for process in psutil.process_iter():
        if _title(process) == " ".join(command):
            yield process


def _processes(cluster: Cluster) -> Iterator[psutil.Process]:
    for _, session in sessions(Path(cluster.config.folder)):
        yield from processes_of(session)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.NoSuchProcess:
        return ""


def _is_worker(title: str) -> bool:
    """A task, or an actor that Ray makes of a function."""
    name = title.removeprefix("ray::")
    return not name[:1].isupper() or name.startswith(WORKERS)


def _is_at_work(title: str) -> bool:
    """A process of a job."""
    return title.startswith("ray::") and not title.removeprefix("ray::").startswith(RAYS_OWN)


class Finished:
    """What a run has finished: bytes that must not change any more."""

    PATTERNS = ("*/manifest.json", "*/*/manifest.json", "replicates/*/*/*/manifest.json", "tune/*/trials/*.json")
    UNFINISHED = ("checkpoints", "sft_checkpoints", "policy_checkpoints")

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._seen = self._read()

    def check(self) -> list[str]:
        """Names of those that did."""
        now = self._read()
        lost = [
            f"{path}: {'changed' if path in now else 'gone'}"
            for path, seen in self._seen.items()
            if now.get(path) != seen
        ]
        self._seen |= now
        return lost

    def _read(self) -> dict[str, str]:
        found = {}
        for pattern in self.PATTERNS:
            for path in self._run_dir.glob(pattern):
                name = path.relative_to(self._run_dir)
                if name.parts[0] in self.UNFINISHED or any(part.startswith(".") for part in name.parts):
                    continue
                with contextlib.suppress(FileNotFoundError):  # it has just been removed
                    content = path.read_bytes()
                    if b'"interrupted"' not in content:  # such a trial is tried again
                        found[str(name)] = hashlib.sha256(content).hexdigest()
        return found


def left_over(cluster: Cluster, command: list[str], run_dir: Path) -> list[str]:
    """What is still there of jobs that have ended: processes, placement groups, unfinished folders; waits for calm."""
    end = time.monotonic() + CALM_S
    while found := [*(title for _, title in _at_work(cluster)), *map(_title, _drivers(command)), *_reserved(cluster)]:
        if time.monotonic() > end:
            break
        time.sleep(0.5)
    return found + [str(path) for path in run_dir.rglob("*.tmp")]


def _at_work(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """(node, process) of what jobs have there."""
    for node, session in sessions(Path(cluster.config.folder)):
        for process in processes_of(session):
            title = _title(process)
            if _is_at_work(title):
                yield node, title


def _reserved(cluster: Cluster) -> Iterator[str]:
    headers = {"Authorization": f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}"}
    answer = httpx.get(f"{cluster.address}/api/v0/placement_groups", headers=headers, timeout=30).raise_for_status()
    for group in answer.json()["data"]["result"]["result"]:
        if group["state"] != "REMOVED":
            yield f"placement group {group['placement_group_id']}: {group['state']}"
