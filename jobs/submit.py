"""Submit jobs to a Ray cluster, each once the one before has succeeded; their output appears here.

export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265
python jobs/submit.py pipeline sft ppo -- --config jobs/experiments/ppo_atlas.yaml --run_dir /shared/ppo
"""

import argparse
import sys
from pathlib import Path

from scpo_ray.cli import run

JOBS = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "submit")
_MOST_GIB = 1_000_000
"""More than any node has, and little enough to be counted in bytes."""


def main() -> None:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--address ADDRESS] [--entrypoint-memory-gib GIB] JOB [JOB ...] -- [SETTING ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("jobs", nargs="+", choices=JOBS, metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--address", help="of the job server; when unset RAY_API_SERVER_ADDRESS")
    parser.add_argument(
        "--entrypoint-memory-gib",
        type=float,
        default=1.0,
        help="reserved for each job's own process, which with "
        "any may run on every node; 0 keeps it on the head (default: %(default)s)",
    )
    place = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    settings = sys.argv[place + 1 :]
    arguments, others = parser.parse_known_args(sys.argv[1:place])
    if others:
        parser.error(f"{others[0]}: not an option of submit.py; what the jobs are to be told goes after `--`")
    if not 0 <= arguments.entrypoint_memory_gib <= _MOST_GIB:
        parser.error(
            f"--entrypoint-memory-gib: {arguments.entrypoint_memory_gib}: not a number of GiB from 0 to {_MOST_GIB:,}"
        )
    from scpo_ray import submission  # deferred: a bad argument fails in milliseconds

    for job in arguments.jobs:
        submission.submit(job, settings, address=arguments.address, memory_gib=arguments.entrypoint_memory_gib)


if __name__ == "__main__":
    run(main)
