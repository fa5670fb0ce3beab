"""From the evaluation's artifact to what the report shows beside the headline."""

from collections.abc import Collection, Mapping

import numpy as np

from scpo_ray.artifacts import Manifest, RunDirectory
from scpo_ray.config import Arm, Config
from scpo_ray.core.calibration import calibration_curve
from scpo_ray.datasets import atlas
from scpo_ray.records import ModelName
from scpo_ray.reporting.evidence import CurvePoint, Evidence
from scpo_ray.reporting.results import strategy_label
from scpo_ray.stages import recipes


def load_evidence(config: Config, directory: RunDirectory, trained: Mapping[ModelName, Manifest]) -> Evidence:
    """Everything in `evaluation/` that is not a reward."""
    tables = {
        name: directory.read_table(f"evaluation/{name}.parquet").to_pylist()
        for name in ("metrics", "comparisons", "diagnostics", "transfer", "opinions", "distances")
    }
    evidence = Evidence(
        **tables,
        calibration=_calibration(config, directory, trained),
        structure=directory.read_json("evaluation/communities.json"),
        planted_distances=_planted_distances(directory),
    )
    return Evidence(**{**evidence.__dict__, "curve": _curve(config, directory, evidence, trained)})


def _planted_distances(directory: RunDirectory) -> dict[str, float]:
    """Where the data knows its truth: how much less often than in the majority's test pairs the majority would choose alike."""
    if "pair_truth.parquet" not in directory.names(recipes.PREPARED):
        return {}
    truth = directory.read_table("prepared/pair_truth.parquet", columns=["pair_id", "majority_utility_gap"])
    gaps = dict(zip(truth["pair_id"].to_pylist(), truth["majority_utility_gap"].to_pylist(), strict=True))
    pairs = directory.read_table(
        "prepared/pairs.parquet", columns=["pair_id", "community"], filters=[("split", "=", "test")]
    )
    agrees: dict[str, list[float]] = {}
    for pair_id, community in zip(pairs["pair_id"].to_pylist(), pairs["community"].to_pylist(), strict=True):
        if pair_id in gaps:
            agrees.setdefault(community, []).append(0.5 + 0.5 * float(np.sign(gaps[pair_id])))
    majority = agrees.pop(atlas.MAJORITY, [])
    return {community: float(np.mean(majority) - np.mean(values)) for community, values in agrees.items() if majority}


def _calibration(config: Config, directory: RunDirectory, trained: Mapping[ModelName, Manifest]) -> list[dict]:
    """Reliability of the global and the main model on each community's test pairs, bins of equal mass."""
    main = {str(name): name for name in trained if name.arm == config.select.strategy and not name.replicate}
    rewards = directory.read_table(
        "evaluation/rewards.parquet", filters=[("model", "in", ["global", *main])]
    ).to_pandas()
    label = strategy_label(config.select.strategy)
    rows = []
    for name in main.values():
        of_community = rewards[rewards.community == name.community]
        for model, shown in (("global", "global model"), (str(name), label)):
            of_model = of_community[of_community.model == model]
            margins = (of_model.reward_chosen.astype(np.float64) - of_model.reward_rejected).to_numpy()
            rows += [
                {"community": name.community, "model": shown}
                | {"confidence": confidence, "accuracy": accuracy, "num_pairs": size}
                for confidence, accuracy, size in calibration_curve(
                    margins, num_bins=_num_bins(len(margins)), bins="mass"
                )
            ]
    return rows


def _num_bins(num_pairs: int) -> int:
    """Twenty pairs a bin or more, and eight bins at most."""
    return min(8, max(2, num_pairs // 20))


def _curve(
    config: Config, directory: RunDirectory, evidence: Evidence, trained: Mapping[ModelName, Manifest]
) -> list[CurvePoint]:
    """Every arm that all communities have, with what its trainings cost."""
    points = []
    for arm in config.select.arms:
        estimates = evidence.pooled(arm.name)
        manifests = [manifest for name, manifest in trained.items() if name.arm == arm.name and not name.replicate]
        if not manifests or "overall" not in estimates:
            continue
        points.append(
            CurvePoint(
                arm=arm.name,
                line=strategy_label(arm.strategy),
                threshold=_threshold(config, directory, arm, {name.community for name in trained}),
                training_share=arm.training_share,
                num_pairs=round(float(np.mean([_number(manifest, "num_pairs") for manifest in manifests]))),
                training_flops=sum(
                    6.0 * _number(manifest, "num_non_embedding_parameters") * _number(manifest, "num_tokens")
                    for manifest in manifests
                ),
                estimates=estimates,
                num_seeds=len({name.replicate for name in trained if name.arm == arm.name}),
            )
        )
    mains = (config.select.strategy, "none")
    return [point for point in points if point.arm in mains or "-tau-" in point.arm or "-share-" in point.arm]


def _threshold(config: Config, directory: RunDirectory, arm: Arm, communities: Collection[str]) -> float:
    """τ as applied, mean over the communities: they differ where it is found from the data. NaN for a strategy without."""
    decided = recipes.checked(directory, recipes.decisions(config, directory, arm)).statistics["communities"]
    assert isinstance(decided, dict)
    found = [decided[community]["constants"]["agreement_threshold"] for community in communities]
    return float("nan") if None in found else round(float(np.mean(found)), 12)


def _number(manifest: Manifest, key: str) -> float:
    value = manifest.statistics[key]
    assert isinstance(value, int | float)
    return float(value)
