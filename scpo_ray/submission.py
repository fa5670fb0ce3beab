"""Jobs on a cluster, through its job server: what `ray job submit --working-dir .` does, one after another."""

import asyncio
import contextlib
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from scpo_ray.config.section import holds_key
from scpo_ray.errors import ClusterError, ConfigError

_REMEMBERED = 100_000
"""Characters; Ray's own message of a failed job has 20,000 at most."""
_ATTEMPTS, _FIRST_WAIT_S, _POLL_S, _PATIENCE_S = 5, 1.0, 1.0, 15.0


def submit(job: str, settings: Sequence[str], *, address: str | None = None, memory_gib: float = 1.0) -> str:
    """Send the current folder, run `python jobs/JOB.py SETTINGS` there, and show what it writes until it ends.

    Args:
        address: of the job server, whatever RAY_API_SERVER_ADDRESS says; that when unset.
        memory_gib: reserved for the job's own process; with any it may run on every node. No CPU is: stages need them all.

    Returns:
        The submission's id.

    Raises:
        ConfigError: an address among the settings holds a key: whoever may list jobs reads their command lines; or the current
            folder is not the project's.
        ClusterError: the job server cannot be reached or refuses, or the job did not succeed.
    """
    if any(map(holds_key, settings)):
        raise ConfigError(
            f"{job}: an address holds a user or a key, which the list of jobs would show; set it in the cluster's environment "
            "(AWS_ACCESS_KEY_ID and the like), and leave it out here"
        )
    if not Path("jobs", f"{job}.py").is_file():
        raise ConfigError(
            f"{Path.cwd()}: no jobs/{job}.py here, and this folder is what would be uploaded; submit from the project's root"
        )
    logging.getLogger("ray").setLevel(logging.ERROR)  # which lists every file that is left out of the upload
    client = _client(address)
    entrypoint = shlex.join(["python", f"jobs/{job}.py", *settings])
    metadata = {"project": "scpo_ray", "job": job, "run_dir": _value_of("--run_dir", settings) or "as configured"}
    submission = _submit_patiently(client, entrypoint, metadata, memory_gib)
    with _as_lost(submission):
        _await_start(client, submission)
        shown = asyncio.run(_show(client, submission))
        while not (status := client.get_job_status(submission)).is_terminal():
            time.sleep(_POLL_S)  # the log ended before the status was known
    if status != JobStatus.SUCCEEDED:
        reason, _, written = (client.get_job_info(submission).message or "").partition("\n")
        reason = reason.removesuffix(":")
        if (
            written.strip() and written.strip() not in shown
        ):  # Ray looks for output on the head when nodes share a machine
            print(written, file=sys.stderr)
        raise ClusterError(
            f"jobs/{job}.py ({submission}): {status.lower()} ({reason}); what it wrote is above: ray job logs {submission}"
        )
    return submission


def _client(address: str | None) -> JobSubmissionClient:
    if address is not None:
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # else Ray lets what is set there win
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError, AuthenticationError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(
            f"{address or 'RAY_API_SERVER_ADDRESS'}: no job server to be reached ({reason}); give its address, and "
            "RAY_AUTH_MODE=token with its token"
        ) from error


@contextlib.contextmanager
def _as_lost(submission: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, AuthenticationError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(
            f"{submission}: the job server was lost ({reason}); where it still runs, so does the job: ray job status {submission}"
        ) from error


def _submit_patiently(client: JobSubmissionClient, entrypoint: str, metadata: dict[str, str], memory_gib: float) -> str:
    """A cluster that has just started takes a moment until jobs can run; other refusals are final."""
    for attempt in range(_ATTEMPTS):
        try:
            return client.submit_job(
                entrypoint=entrypoint,
                runtime_env={"working_dir": "."},
                metadata=metadata,
                entrypoint_memory=int(memory_gib * 2**30) or None,
            )
        except (RuntimeError, AuthenticationError) as error:
            if "No available agent" not in str(error) or attempt + 1 == _ATTEMPTS:
                raise ClusterError(f"{entrypoint}: not accepted ({' '.join(str(error).split())[:300]})") from error
            time.sleep(_FIRST_WAIT_S * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def _await_start(client: JobSubmissionClient, submission: str) -> None:
    """Say once why a job does not start: on a cluster that grows it may yet, elsewhere never."""
    due = time.monotonic() + _PATIENCE_S
    while client.get_job_status(submission) == JobStatus.PENDING:
        if time.monotonic() > due:
            said = " ".join((client.get_job_info(submission).message or "").split())
            print(f"{submission}: waits to start ({said}); to give up: ray job stop {submission}", file=sys.stderr)
            due = math.inf
        time.sleep(_POLL_S)


async def _show(client: JobSubmissionClient, submission: str) -> str:
    """What the job writes, as it writes it; its end is returned."""
    shown = ""
    async for lines in client.tail_job_logs(submission):
        print(lines, end="", flush=True)
        shown = (shown + lines)[-_REMEMBERED:]
    return shown


def _value_of(option: str, settings: Sequence[str]) -> str | None:
    """`--option value` or `--option=value`."""
    for place, setting in enumerate(settings):
        if setting.startswith(f"{option}="):
            return setting.partition("=")[2]
        if setting == option and place + 1 < len(settings):
            return settings[place + 1]
    return None
