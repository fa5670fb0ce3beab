"""scpo_ray: what is done around jobs.

scpo_ray cluster up clusters/local.yaml       a Ray cluster on this machine, token authentication on
scpo_ray cluster down clusters/local.yaml     ends it
scpo_ray runs runs                            run directories: their stages, what is made, what it took and cost
scpo_ray verify runs/demo                     reads every artifact of a run: is its content what its manifest says?
"""

import argparse
import math
from collections.abc import Sequence

from scpo_ray.cli import run
from scpo_ray.errors import ArtifactError


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; an expected failure is one line and an exit code."""
    parser = argparse.ArgumentParser(
        prog="scpo_ray", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    _add_cluster(commands)
    runs = commands.add_parser("runs", help="run directories: their stages, what is made, what it took")
    runs.add_argument(
        "folder", nargs="*", default=["runs"], help="a run directory, or a folder of them; s3:// and gs:// too (runs)"
    )
    for device in ("cpu", "gpu"):
        runs.add_argument(f"--{device}-price", type=_price, default=0.0, help=f"of an hour of a {device.upper()} (0)")
    runs.set_defaults(do=_runs)
    verify = commands.add_parser("verify", help="read every artifact: is its content what its manifest says?")
    verify.add_argument("run_dir", nargs="+", help="a run directory; s3:// and gs:// too")
    verify.set_defaults(do=_verify)
    arguments = parser.parse_args(argv)
    run(lambda: arguments.do(arguments))


def _price(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: a price is a number from 0 on")
    return value


def _add_cluster(commands: argparse._SubParsersAction) -> None:
    cluster = commands.add_parser("cluster", help="a Ray cluster of several nodes on this machine")
    actions = cluster.add_subparsers(required=True)
    for name, do, about in (("up", _up, "start it"), ("down", _down, "end every process of it")):
        action = actions.add_parser(name, help=about)
        action.add_argument("file", help="its shape, as clusters/local.yaml")
        action.set_defaults(do=do)


def _runs(arguments: argparse.Namespace) -> None:
    from scpo_ray import ledger
    from scpo_ray.runtime import make_console

    make_console(stderr=False).print(
        ledger.table(
            [run for folder in arguments.folder for run in ledger.runs_in(folder)],
            ledger.Prices(arguments.cpu_price, arguments.gpu_price),
        )
    )


def _verify(arguments: argparse.Namespace) -> None:
    from scpo_ray import ledger

    wrong = []
    for folder in arguments.run_dir:
        for run_dir in ledger.runs_in(folder):
            number, found = ledger.verify(run_dir)
            wrong += found
            print(f"{run_dir}: {number - len(found)} of {number} artifacts are as they were made")
    if wrong:
        raise ArtifactError(f"{'; '.join(wrong)}; delete these folders and rerun what made them")


def _up(arguments: argparse.Namespace) -> None:
    from scpo_ray import local_cluster

    shape = local_cluster.read_shape(arguments.file)
    address = local_cluster.up(shape)
    print(
        f"{len(shape.nodes)} nodes; submit with RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS={address} ray job submit ..."
    )


def _down(arguments: argparse.Namespace) -> None:
    from scpo_ray import local_cluster

    ended = local_cluster.down(local_cluster.read_shape(arguments.file))
    print(f"ended: {', '.join(ended) or 'nothing ran'}")


if __name__ == "__main__":
    main()
