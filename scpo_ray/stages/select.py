"""Which pairs a community's reward model learns from, and how strongly: the decision ledger."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scpo_ray.artifacts import Manifest, RunDirectory, content_hash_of
from scpo_ray.config import Config, SelectConfig
from scpo_ray.core.accuracy import effective_sample_size
from scpo_ray.core.agreement import agreement
from scpo_ray.records import DECISIONS
from scpo_ray.stages import recipes
from scpo_ray.strategies.selection import STRATEGIES, PairView


def run(config: Config) -> list[Manifest]:
    """Write `decisions/STRATEGY` for the strategy and its controls; return the manifests, the main one first."""
    directory = RunDirectory(config.run_dir)
    manifests = []
    for strategy in config.select.strategies:
        recipe = recipes.decisions(config, directory, strategy)
        made = recipe.is_made(directory, rebuild=config.rebuild)
        if made is None:
            with recipe.making(directory) as draft:
                pairs, scores = _inputs(directory)
                ledger = decide(pairs, scores, config.select, strategy)
                draft.write_table("decisions.parquet", ledger)
                draft.statistics |= _statistics(ledger)
            made = directory.require(recipe.name, job="select")
        manifests.append(made)
    return manifests


def decide(pairs: pa.Table, scores: pa.Table, config: SelectConfig, strategy: str) -> pa.Table:
    """One strategy's decision for every pair, as a table of the DECISIONS columns in the order of `pairs`."""
    position = scores["response_id"].combine_chunks()
    chosen = scores["reward"].take(pc.index_in(pairs["chosen_id"], position)).to_numpy()
    rejected = scores["reward"].take(pc.index_in(pairs["rejected_id"], position)).to_numpy()
    probability = agreement(chosen_rewards=chosen, rejected_rewards=rejected, form=config.agreement_form)
    decision = STRATEGIES[strategy](PairView(chosen, rejected, probability), config)
    return pa.table(
        {
            "pair_id": pairs["pair_id"],
            "community": pairs["community"],
            "split": pairs["split"],
            "global_reward_chosen": chosen,
            "global_reward_rejected": rejected,
            "agreement": probability,
            "kept": decision.kept,
            "weight": decision.weight,
            "reason": decision.reason,
        },
        schema=DECISIONS,
    )


def _inputs(directory: RunDirectory) -> tuple[pa.Table, pa.Table]:
    pairs = directory.read_table(
        "prepared/pairs.parquet", columns=["pair_id", "community", "split", "chosen_id", "rejected_id"]
    )
    return pairs, directory.read_table("scores/scores.parquet", columns=["response_id", "reward"])


def _statistics(ledger: pa.Table) -> dict[str, object]:
    """Per community: kept share by split, effective sample size, and a hash of what training would read."""
    names = ledger["community"].to_numpy(zero_copy_only=False)
    splits = ledger["split"].to_numpy(zero_copy_only=False)
    kept = ledger["kept"].to_numpy(zero_copy_only=False)
    weights = ledger["weight"].to_numpy()
    identifiers = ledger["pair_id"].to_numpy(zero_copy_only=False)
    communities: dict[str, dict] = {}
    hashes: dict[str, str] = {}
    for community in sorted(set(names)):
        of_community = names == community
        train = of_community & (splits == "train") & kept
        communities[community] = {
            "num_kept": int(train.sum()),
            "kept_share": {split: _share(kept[of_community & (splits == split)]) for split in ("train", "test")},
            "effective_sample_size": round(effective_sample_size(weights[train]), 1),
        }
        order = np.argsort(identifiers[train])
        hashes[community] = content_hash_of(identifiers[train][order].tolist(), weights[train][order].tolist())
    return {"communities": communities, "content_hashes": hashes}


def _share(values: Sequence[bool] | np.ndarray) -> float | None:
    return round(float(np.mean(values)), 4) if len(values) else None
