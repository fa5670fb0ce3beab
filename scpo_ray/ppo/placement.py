"""Where engines, scorers and learners run: one placement group, reserved whole or refused at once."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from scpo_ray import nodes
from scpo_ray.config import LearnerConfig, PpoConfig
from scpo_ray.errors import ConfigError, WorkerError

Kind = Literal["engine", "scorer", "learner"]
_WAIT_S, _WAIT_FOR_MACHINES_S = 120.0, 1200.0
"""For other jobs; for nodes that an autoscaler has to start, image and all."""


@dataclass(frozen=True)
class Layout:
    """Bundles of resources, and which bundle each actor is in."""

    bundles: list[dict[str, float]]
    bundle_of: dict[tuple[Kind, int], int]
    needs: dict[Kind, dict[str, float]]
    """Resources of one actor."""


def layout(config: LearnerConfig, kinds: tuple[Kind, ...] = ("engine", "scorer", "learner")) -> Layout:
    """One bundle per actor (apart), or the i-th actors of all kinds in one bundle (colocated)."""
    is_colocated = isinstance(config, PpoConfig) and config.placement == "colocated"
    needs = {
        kind: {"CPU": getattr(config, f"cpus_per_{kind}"), "GPU": getattr(config, f"gpus_per_{kind}")} for kind in kinds
    }
    numbers = {kind: getattr(config, f"num_{kind}s") for kind in kinds}
    bundles: list[dict[str, float]] = []
    bundle_of = {}
    for kind in kinds:
        for index in range(numbers[kind]):
            if not is_colocated or index >= len(bundles):
                bundles.append({})
            place = index if is_colocated else len(bundles) - 1
            bundle_of[kind, index] = place
            for resource, amount in needs[kind].items():
                if amount:
                    bundles[place][resource] = round(bundles[place].get(resource, 0.0) + amount, 4)
    return Layout([bundle or {"CPU": 0.001} for bundle in bundles], bundle_of, needs)


class Placement:
    """A reserved layout."""

    def __init__(self, plan: Layout) -> None:
        self._plan = plan
        self._group = placement_group(plan.bundles, strategy="PACK")
        wait_s = _WAIT_FOR_MACHINES_S if nodes.can_grow() else _WAIT_S
        if not self._group.wait(wait_s):
            remove_placement_group(self._group)
            raise WorkerError(
                f"ppo: the cluster could not place {len(plan.bundles)} bundles within {wait_s:g} s; other jobs hold its "
                "resources, or no single node has room for a bundle: wait, or lower the actors' resources"
            )

    def options(self, kind: Kind, index: int) -> dict[str, object]:
        """For `ray.remote(...).options`: an actor's resources and its bundle."""
        need = self._plan.needs[kind]
        return {
            "num_cpus": need["CPU"],
            "num_gpus": need["GPU"],
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=self._group,
                placement_group_bundle_index=self._plan.bundle_of[kind, index],
            ),
        }

    def release(self) -> None:
        """Give everything back."""
        remove_placement_group(self._group)


@contextlib.contextmanager
def reserved(config: LearnerConfig, kinds: tuple[Kind, ...] = ("engine", "scorer", "learner")) -> Iterator[Placement]:
    """The resources of a run while the block lasts.

    Raises:
        ConfigError: the cluster has less than is asked for.
        WorkerError: the cluster has it, but not free or not together.
    """
    plan = layout(config, kinds)
    check(plan, nodes.totals())
    placement = Placement(plan)
    try:
        yield placement
    finally:
        placement.release()


def check(plan: Layout, has: dict[str, float]) -> None:
    """Refuse at once what could never be placed, where waiting would look like hanging.

    Raises:
        ConfigError: more CPUs or GPUs in all than the cluster has.
    """
    for resource in ("CPU", "GPU"):
        wanted = sum(bundle.get(resource, 0.0) for bundle in plan.bundles)
        if wanted > has.get(resource, 0.0) + 1e-6:
            parts = ", ".join(
                f"{sum(kind == each for each, _ in plan.bundle_of)} {kind}s of {need[resource]:g}"
                for kind, need in plan.needs.items()
                if need[resource]
            )
            raise ConfigError(
                f"{parts} need {wanted:g} {resource}, the cluster has {has.get(resource, 0.0):g}; lower num_engines, "
                f"num_scorers, num_learners or their {resource.lower()}s_per_..., or start Ray with more"
            )
