"""Which actors a stage starts, and what each of them reserves: known from the configuration alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from scpo_ray.config import Config, OptimizationConfig
from scpo_ray.ppo.placement import Kind, layout

JOBS: Mapping[str, tuple[str, ...]] = {
    "prepare": ("prepare",),
    "train_global": ("train_global",),
    "score": ("score",),
    "select": ("select",),
    "train": ("train",),
    "evaluate": ("evaluate",),
    "report": ("report",),
    "pipeline": ("prepare", "train_global", "score", "select", "train", "evaluate", "report"),
    "tune": ("prepare", "train_global", "score", "tune"),
    "sft": ("sft",),
    "ppo": ("ppo",),
    "best_of_n": ("best_of_n",),
}
"""Job -> its stages, in order."""


@dataclass(frozen=True)
class Needs:
    """What a stage reserves at one time."""

    what: str
    """`2 training workers`."""

    bundles: tuple[Mapping[str, float], ...]
    """Resources that have to be on one node, of each actor or of actors that share a place."""

    most: tuple[Mapping[str, float], ...]
    """The same when nothing is missing: groups of workers may be smaller while nodes are."""

    remedy: str
    """Settings to change where the cluster can never place them."""


def needs_of(config: Config, stage: str) -> Needs | None:
    """What a stage reserves; None for stages that work in the job's own process."""
    if stage not in _NEEDS:
        return None
    return _NEEDS[stage](config)


def reserved(config: Config, stage: str) -> dict[str, float]:
    """CPU and GPU that a stage holds while it makes one artifact: of a training one of the worker groups."""
    needs = needs_of(config, stage)
    bundles = needs.most if needs else ()
    number = config.train.num_worker_groups if stage == "train" else 1
    totals = {name: sum(bundle.get(name, 0.0) for bundle in bundles) / number for name in ("CPU", "GPU")}
    return {name: total for name, total in totals.items() if total}


def _scorers(config: Config) -> Needs:
    score = config.score
    scorers = ({"CPU": score.cpus_per_scorer, "GPU": score.gpus_per_scorer},) * score.num_scorers
    return Needs(
        _count(score.num_scorers, "scorer"),
        scorers,
        scorers,
        "lower score.num_scorers, score.cpus_per_scorer or score.gpus_per_scorer",
    )


def _workers(section: str, *, grouped: bool) -> Callable[[Config], Needs]:
    def needs(config: Config) -> Needs:
        settings: OptimizationConfig = config.train if section == "train" else config.train_global
        groups = config.train.num_worker_groups if grouped else 1
        number, most = settings.fewest_workers * groups, settings.num_workers * groups
        each = {"CPU": settings.cpus_per_worker, "GPU": float(settings.use_gpu)}
        size = f"{section}.{'num_workers' if number == most else 'min_workers'}"
        names = [size, f"{section}.cpus_per_worker"]
        names += [f"{section}.num_worker_groups"] if grouped else []
        off = f", or set {section}.use_gpu to false" if settings.use_gpu else ""
        what = _count(most, "training worker") + (f", at least {number}" if number < most else "")
        return Needs(what, (each,) * number, (each,) * most, f"lower {' or '.join(names)}{off}")

    return needs


def _policies(section: str, *kinds: Kind) -> Callable[[Config], Needs]:
    def needs(config: Config) -> Needs:
        settings = config.sft if section == "sft" else config.ppo
        numbers = {kind: getattr(settings, f"num_{kind}s") for kind in kinds}
        names = " or ".join(f"{section}.num_{kind}s" for kind in kinds)
        bundles = tuple(layout(settings, kinds).bundles)
        return Needs(
            ", ".join(_count(number, kind) for kind, number in numbers.items()),
            bundles,
            bundles,
            f"lower {names} or their cpus_per_... and gpus_per_...",
        )

    return needs


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


_NEEDS: dict[str, Callable[[Config], Needs]] = {
    "train_global": _workers("train_global", grouped=False),
    "score": _scorers,
    "train": _workers("train", grouped=True),
    "tune": _workers("train", grouped=True),
    "evaluate": _scorers,
    "sft": _policies("sft", "learner"),
    "ppo": _policies("ppo", "engine", "scorer", "learner"),
    "best_of_n": _policies("ppo", "engine", "scorer"),
}
