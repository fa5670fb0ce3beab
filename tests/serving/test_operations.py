"""Under load, a run is replaced and a replica dies: no wrong answer, and nobody is left without one."""

import asyncio
import collections
import os
import signal
import time
from collections.abc import Callable

import httpx
import psutil
import pytest

from tests.serving.conftest import TOKEN

HEADERS = {"Authorization": f"Bearer {TOKEN}"}
TEXTS = [f"text number {number} about the new harbour ." for number in range(40)]


def question(number: int) -> dict:
    return {"prompt": "what do you think ?", "response": TEXTS[number % len(TEXTS)], "scale": "raw"}


def known_answers(url: str) -> tuple[str, list[list[float]]]:
    """The run's digest, and every text's rewards, asked in peace."""
    with httpx.Client(headers=HEADERS, timeout=60) as client:
        answers = [client.post(f"{url}/v1/score", json=question(number)).json() for number in range(len(TEXTS))]
    (run,) = {answer["run"] for answer in answers}
    return run, [rewards(answer) for answer in answers]


def rewards(answer: dict) -> list[float]:
    return [row["raw"][0] for row in answer["communities"]]


async def storm(url: str, disturb: Callable[[], None], *, seconds: float) -> list[tuple[int, httpx.Response]]:
    """Sixteen callers ask without a pause; `disturb` happens in their midst, in a thread of its own."""
    answers: list[tuple[int, httpx.Response]] = []
    done = asyncio.Event()

    async def caller(client: httpx.AsyncClient, first: int) -> None:
        number = first
        while not done.is_set():
            answer = await client.post(f"{url}/v1/score", json=question(number))
            answers.append((number, answer))
            number += 16
            if answer.status_code in (429, 503):
                await asyncio.sleep(0.2)

    async with httpx.AsyncClient(headers=HEADERS, timeout=90) as client:
        callers = [asyncio.create_task(caller(client, first)) for first in range(16)]
        await asyncio.sleep(1)
        await asyncio.to_thread(disturb)
        await asyncio.sleep(seconds)
        done.set()
        await asyncio.gather(*callers)
    return answers


def check(answers: list[tuple[int, httpx.Response]], expected: dict[str, list[list[float]]]) -> collections.Counter:
    """Every answer is right for the run that it names; every refusal says when to come back."""
    seen: collections.Counter = collections.Counter()
    for number, answer in answers:
        seen[answer.status_code] += 1
        if answer.status_code == 200:
            found = answer.json()
            seen[found["run"]] += 1
            assert rewards(found) == pytest.approx(expected[found["run"]][number % len(TEXTS)], abs=1e-5)
        else:
            assert answer.status_code in (429, 503), answer.text
            assert int(answer.headers["Retry-After"]) >= 1
    return seen


def test_a_new_run_takes_over_without_a_dropped_request(deploy, controlled_run, adapter_run):
    url = deploy("rolling", run_dir=controlled_run.run_dir, max_loaded_models=1)  # every request loads every model
    old, expected_old = known_answers(url)
    new, expected_new = known_answers(deploy("rolled", run_dir=adapter_run.run_dir))
    answers = asyncio.run(storm(url, lambda: deploy("rolling", run_dir=adapter_run.run_dir), seconds=1))
    seen = check(answers, {old: expected_old, new: expected_new})
    assert seen[200] == len(answers)
    assert seen[old] > 20 and seen[new] > 20
    order = [answer.json()["run"] for _, answer in answers]
    assert order[0] == old and order[-1] == new


def test_a_killed_replica_costs_no_answer(deploy, adapter_run):
    """-9 for one of two, in the middle: what it was at is refused, the other goes on, a new one joins."""
    url = deploy("mortal", run_dir=adapter_run.run_dir, num_replicas=2)
    run, expected = known_answers(url)
    killed: list[int] = []

    def kill() -> None:
        victim = replicas("mortal")[0]
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)

    answers = asyncio.run(storm(url, kill, seconds=4))
    seen = check(answers, {run: expected})
    assert seen[200] > 50 and seen[503] <= 16
    end = time.monotonic() + 60
    while len(set(replicas("mortal")) - set(killed)) < 2:
        assert time.monotonic() < end, "no new replica"
        time.sleep(0.5)


def test_deadlines_are_kept_while_no_replica_is_there(deploy, adapter_run):
    url = deploy("gone", run_dir=adapter_run.run_dir)
    (victim,) = replicas("gone")
    os.kill(victim, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(victim)] if psutil.pid_exists(victim) else [], timeout=5)
    start = time.monotonic()
    answer = httpx.post(f"{url}/v1/score", json=question(0), headers=HEADERS | {"X-Deadline-S": "0.5"}, timeout=60)
    assert answer.status_code == 503 and answer.headers["Retry-After"] == "1"
    assert time.monotonic() - start < 6, "a new one takes eight seconds and more"
    answer = httpx.post(f"{url}/v1/score", json=question(0), headers=HEADERS, timeout=90)
    assert answer.status_code == 200, "it waits for the new replica where there is time"


def replicas(application: str) -> list[int]:
    """Process ids."""
    names = f"ServeReplica:{application}:"
    return [one.pid for one in psutil.process_iter(["cmdline"]) if names in " ".join(one.info["cmdline"] or ())]
