"""What the cluster that a job runs on has, or could grow to: read before anything starts."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import psutil
import ray

from scpo_ray import nodes
from scpo_ray.errors import ClusterError
from scpo_ray.runtime import connect

_CONNECT_S = 3.0


@dataclass(frozen=True)
class Capacity:
    """Resources of every node when it is empty, those included that an autoscaler could start."""

    nodes: tuple[Mapping[str, float], ...]
    where: str
    """For people: `the cluster at 10.0.0.1:6379`, or `this machine`."""

    @property
    def totals(self) -> dict[str, float]:
        """CPU and GPU over all nodes."""
        return {name: sum(node.get(name, 0.0) for node in self.nodes) for name in ("CPU", "GPU")}

    @property
    def accelerator(self) -> str | None:
        """Ray's name of the GPUs, where there is one kind: `H100`."""
        kinds = {name.partition(":")[2] for node in self.nodes for name in node if name.startswith("accelerator_type:")}
        return kinds.pop() if len(kinds) == 1 else None


def capacity(log_format: Literal["text", "json"] = "text") -> Capacity:
    """Of the cluster that RAY_ADDRESS names; without it of this machine, on which no Ray is started for that.

    Raises:
        ClusterError: the cluster cannot be reached.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not ray.is_initialized():
        if not address:
            return Capacity((_this_machine(),), "this machine")
        _check_reachable(address)
    try:
        connect(log_format)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ClusterError(
            f"RAY_ADDRESS {address}: no cluster to be reached there ({reason}); check the address and the token, or unset it"
        ) from error
    where = f"the cluster at {ray.get_runtime_context().gcs_address}"
    return Capacity(tuple(nodes.all_nodes()), where)


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes.

    Raises:
        ClusterError: nothing listens there.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "://" in address:  # auto, or Ray Client
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise ClusterError(
            f"RAY_ADDRESS {address}: nothing answers there ({error}); check the address and that the cluster runs, or unset it"
        ) from error


def _this_machine() -> dict[str, float]:
    """As `ray.init` would count it, a container's limits heeded; Ray has no public name for that."""
    from ray._private.accelerators import get_all_accelerator_managers
    from ray._private.utils import get_num_cpus

    kinds = [kind for kind in get_all_accelerator_managers() if kind.get_resource_name() == "GPU"]
    return {
        "CPU": float(get_num_cpus()),
        "GPU": float(sum(kind.get_current_node_num_accelerators() for kind in kinds)),
        "memory": float(psutil.virtual_memory().total),
    }
