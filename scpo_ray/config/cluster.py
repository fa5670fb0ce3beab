"""Shape of a Ray cluster on one machine (clusters/local.yaml)."""

import math
from pathlib import Path
from typing import Annotated

from pydantic import Field, Strict, field_validator, model_validator

from scpo_ray.config.section import Section

_LONGEST_PATH = 40
"""Of 107 bytes that a socket's path may have, Ray's session takes the rest."""
_RAYS_OWN = ("CPU", "GPU", "memory", "object_store_memory")


class NodeShape(Section):
    """One node: processes of its own, as on a machine of its own."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=40)
    num_cpus: int = Field(default=1, ge=0)
    """What Ray may place there; processes are not bound to cores."""

    num_gpus: int = Field(default=0, ge=0)
    resources: dict[str, Annotated[float, Strict()]] = Field(default_factory=dict)
    """Custom resources, to place work by name: `{second: 1}`."""

    @field_validator("resources")
    @classmethod
    def _are_custom(cls, resources: dict[str, float]) -> dict[str, float]:
        for name, amount in resources.items():
            if name in _RAYS_OWN:
                raise ValueError(f"{name} is Ray's own; use num_cpus, num_gpus or object_store_mb")
            if not 0 < amount < math.inf:
                raise ValueError(f"{name}: {amount} is no amount; give a number above 0")
        return resources


class LocalClusterConfig(Section):
    """The first node is the head."""

    nodes: tuple[NodeShape, ...] = Field(min_length=1)
    port: int = Field(default=6379, ge=1024, le=65535)
    """Of the head's control store (GCS)."""

    dashboard_port: int = Field(default=8265, ge=1024, le=65535)
    """Of the job server and the dashboard; loopback only."""

    folder: str = "/tmp/scpo_ray-cluster"
    """A folder per node for Ray's logs and sockets, whose paths must be short; and what `cluster down` has to end."""

    object_store_mb: int = Field(default=500, ge=80)
    """Shared memory of each node, MB."""

    @field_validator("folder")
    @classmethod
    def _is_the_same_from_everywhere(cls, folder: str) -> str:
        path = Path(folder).expanduser()
        if not path.is_absolute():
            raise ValueError(f"{folder} depends on where the command is given; write the whole path")
        return str(path)

    @model_validator(mode="after")
    def _ports_differ(self) -> "LocalClusterConfig":
        if self.port == self.dashboard_port:
            raise ValueError(f"port and dashboard_port are both {self.port}; give each its own")
        return self

    @model_validator(mode="after")
    def _sockets_have_short_paths(self) -> "LocalClusterConfig":
        longest = max(len(node.name) for node in self.nodes)
        if len(self.folder) + longest > _LONGEST_PATH:
            raise ValueError(
                f"folder {self.folder} and a node's name of {longest} characters are longer than {_LONGEST_PATH} together, too "
                "long for Ray's sockets; shorten one"
            )
        return self

    @field_validator("nodes")
    @classmethod
    def _names_differ(cls, nodes: tuple[NodeShape, ...]) -> tuple[NodeShape, ...]:
        names = [node.name for node in nodes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two nodes are called {name!r}; give each a name of its own")
        return nodes
