"""What nodes a Ray cluster has, and which ones its autoscaler may add. Ray is asked; a job is connected by then."""

import json
import math
import os
from collections.abc import Mapping

import ray

from scpo_ray.errors import ConfigError

AUTOSCALING = "SCPO_AUTOSCALING"
"""Environment variable, set where the cluster is defined: JSON, a list of {"nodes": 4, "CPU": 16, "GPU": 8}: all that the
autoscaler may have running of each kind, those included that run already. Ray tells its jobs nothing of that by itself."""

Node = Mapping[str, float]
"""Resource -> how much a node has when it is empty."""


def all_nodes() -> list[Node]:
    """Those that live, and those that the autoscaler may add."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [*alive, *_to_be_added(alive)]


def totals() -> dict[str, float]:
    """CPU and GPU over `all_nodes`."""
    nodes = all_nodes()
    return {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}


def can_grow() -> bool:
    """Whether the autoscaler may add anything: who waits for a node waits for a machine to start."""
    return len(all_nodes()) > sum(node["Alive"] for node in ray.nodes())


def draining() -> frozenset[str]:
    """Ids of nodes that will be taken away: preempted, or drained by who operates the cluster."""
    return frozenset(ray._private.state.state.get_draining_nodes())


def _to_be_added(alive: list[Node]) -> list[Node]:
    found: list[Node] = []
    for kind, number in _kinds():
        names = {"CPU", "GPU", *kind}
        running = sum(all(node.get(name, 0.0) == kind.get(name, 0.0) for name in names) for node in alive)
        found += [kind] * max(0, number - running)
    return found


def _kinds() -> list[tuple[Node, int]]:
    """Kinds of nodes and how many of each there may be.

    Raises:
        ConfigError: the variable is not what it should be.
    """
    said = os.environ.get(AUTOSCALING, "")
    if not said.strip():
        return []
    try:
        kinds = [dict(kind) for kind in json.loads(said)]
        found = [
            ({name: _amount(name, kind[name]) for name in kind if name != "nodes"}, _whole(kind["nodes"]))
            for kind in kinds
        ]
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ConfigError(
            f"{AUTOSCALING}: {said[:200]!r} cannot be read ({type(error).__name__}: {error}); "
            'it is a list like [{"nodes": 4, "CPU": 16, "GPU": 8}], set where the cluster is defined'
        ) from error
    return [(kind, number) for kind, number in found if kind and number > 0]


def _amount(name: str, said: object) -> float:
    if name.upper() in ("CPU", "GPU") and name != name.upper():
        raise ValueError(f"{name}: Ray writes {name.upper()}")
    amount = float(said)  # type: ignore[arg-type]
    if not 0 <= amount < math.inf:
        raise ValueError(f"{name}: {amount} is no amount")
    return amount


def _whole(said: object) -> int:
    number = float(said)  # type: ignore[arg-type]
    if number < 0 or not number.is_integer():
        raise ValueError(f"nodes: {said} is no number of nodes")
    return int(number)
