"""Which pairs a community's reward model learns from, and how strongly: the decision ledger."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scpo_ray.artifacts import Manifest, RunDirectory, content_hash_of
from scpo_ray.config import Arm, Config, SelectConfig
from scpo_ray.core.agreement import agreement
from scpo_ray.core.bootstrap import effective_sample_size
from scpo_ray.records import DECISIONS, content_id
from scpo_ray.stages import recipes
from scpo_ray.strategies.selection import STRATEGIES, PairView


def run(config: Config) -> list[Manifest]:
    """Write `decisions/ARM` for the strategy, its controls and curves; return the manifests, the main one first."""
    directory = RunDirectory(config.run_dir)
    manifests = []
    for arm in config.select.arms:
        recipe = recipes.decisions(config, directory, arm)
        made = recipe.is_made(directory, rebuild=config.rebuild)
        if made is None:
            with recipe.making(directory) as draft:
                pairs, scores = _inputs(
                    directory, recipes.OTHER_SCORES if arm.strategy == "other_ruler" else recipes.SCORES
                )
                ledger = decide(pairs, scores, config.select, arm, seed=config.seed)
                draft.write_table("decisions.parquet", ledger)
                draft.statistics |= _statistics(ledger, pairs)
            made = directory.require(recipe.name, job="select")
        manifests.append(made)
    return manifests


def decide(pairs: pa.Table, scores: pa.Table, config: SelectConfig, arm: Arm, *, seed: int) -> pa.Table:
    """One arm's decision for every pair, as a table of the DECISIONS columns in the order of `pairs`.

    Each community and split is decided by itself, so a drawn control has the filter's size in each.
    """
    position = scores["response_id"].combine_chunks()
    chosen = scores["reward"].take(pc.index_in(pairs["chosen_id"], position)).to_numpy()
    rejected = scores["reward"].take(pc.index_in(pairs["rejected_id"], position)).to_numpy()
    probability = agreement(chosen_rewards=chosen, rejected_rewards=rejected, form=config.agreement_form)
    lot = lots(pairs["pair_id"].to_pylist(), seed)
    settings = config.model_copy(update={"agreement_threshold": arm.agreement_threshold})
    kept, weight = np.zeros(len(pairs), dtype=bool), np.zeros(len(pairs))
    reason = np.full(len(pairs), "", dtype=object)
    for rows in _community_splits(pairs):
        view = PairView(chosen[rows], rejected[rows], probability[rows], lot[rows])
        decision = STRATEGIES[arm.strategy](view, settings)
        kept[rows], weight[rows], reason[rows] = decision.kept, decision.weight, decision.reason
    if arm.training_share < 1:
        is_train = pc.equal(pairs["split"], "train").to_numpy(zero_copy_only=False)
        left_out = is_train & (lots(pairs["interaction_id"].to_pylist(), seed) >= arm.training_share)
        kept[left_out], weight[left_out] = False, 0.0
        reason[left_out] = _NOT_IN_SHARE
    return pa.table(
        {
            "pair_id": pairs["pair_id"],
            "community": pairs["community"],
            "split": pairs["split"],
            "global_reward_chosen": chosen,
            "global_reward_rejected": rejected,
            "agreement": probability,
            "kept": kept,
            "weight": weight,
            "reason": reason.tolist(),
        },
        schema=DECISIONS,
    )


_NOT_IN_SHARE = "dropped: not in this arm's share of the training data"


def lots(identifiers: Sequence[str], seed: int) -> np.ndarray:
    """A number in [0, 1) for each identifier, from its hash: chance that every run and every curve draws alike."""
    return np.array([int(content_id("lot", seed, identifier)[:13], 16) / 16**13 for identifier in identifiers])


def _community_splits(pairs: pa.Table) -> list[np.ndarray]:
    """Row numbers of each (community, split)."""
    codes = [pairs[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in ("community", "split")]
    group = codes[0].astype(np.int64) * 3 + codes[1]
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(order) else []


def _inputs(directory: RunDirectory, scores: str) -> tuple[pa.Table, pa.Table]:
    pairs = directory.read_table(
        "prepared/pairs.parquet",
        columns=[*_TRAINING_COLUMNS, "community", "split"],
    )
    return pairs, directory.read_table(f"{scores}/scores.parquet", columns=["response_id", "reward"])


_TRAINING_COLUMNS = (
    "pair_id",
    "interaction_id",
    "prompt_id",
    "chosen_id",
    "rejected_id",
    "score_chosen",
    "score_rejected",
)
"""What a training reads of a pair beside its weight; response ids are hashes of the texts."""


def _statistics(ledger: pa.Table, pairs: pa.Table) -> dict[str, object]:
    """Per community: kept share by split, effective sample size, and a hash of what training would read."""
    columns = [pairs[name].to_pylist() for name in _TRAINING_COLUMNS]
    names = ledger["community"].to_numpy(zero_copy_only=False)
    splits = ledger["split"].to_numpy(zero_copy_only=False)
    kept = ledger["kept"].to_numpy(zero_copy_only=False)
    weights = ledger["weight"].to_numpy()
    identifiers = ledger["pair_id"].to_numpy(zero_copy_only=False)
    offered = (splits == "train") & (ledger["reason"].to_numpy(zero_copy_only=False) != _NOT_IN_SHARE)
    communities: dict[str, dict] = {}
    hashes: dict[str, str] = {}
    for community in sorted(set(names)):
        of_community = names == community
        train = of_community & (splits == "train") & kept
        communities[community] = {
            "num_kept": int(train.sum()),
            "kept_share": {split: _share(kept[of_community & (splits == split)]) for split in ("train", "test")},
            "effective_sample_size": round(effective_sample_size(weights[train]), 1),
            "offered": _num_items(pairs.filter(pa.array(of_community & offered))),
        }
        rows = np.flatnonzero(train | (of_community & (splits == "validation")))
        rows = rows[np.argsort(identifiers[rows])]
        hashes[community] = content_hash_of(
            splits[rows].tolist(), weights[rows].tolist(), [[column[row] for row in rows] for column in columns]
        )
    return {"communities": communities, "content_hashes": hashes}


def _num_items(pairs: pa.Table) -> dict[str, int]:
    """How many items `train.batching` would make of all these pairs, kept or not."""
    named = {"interactions": "interaction_id", "prompts": "prompt_id", "pairs": "pair_id"}
    return {batching: pc.count_distinct(pairs[column]).as_py() for batching, column in named.items()}


def _share(values: Sequence[bool] | np.ndarray) -> float | None:
    return round(float(np.mean(values)), 4) if len(values) else None
