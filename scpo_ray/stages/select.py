"""Which pairs a community's reward model learns from, and how strongly: the decision ledger."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scpo_ray import telemetry
from scpo_ray.artifacts import Manifest, RunDirectory, content_hash_of
from scpo_ray.config import Arm, Config, SelectConfig
from scpo_ray.core.agreement import agreement, check_rewards
from scpo_ray.core.bootstrap import effective_sample_size
from scpo_ray.records import DECISIONS, content_id
from scpo_ray.stages import recipes
from scpo_ray.stages.turns import turn
from scpo_ray.strategies.selection import STRATEGIES, PairView
from scpo_ray.strategies.selection.constants import Constants, constants, global_temperature


def run(config: Config) -> list[Manifest]:
    """Write `decisions/ARM` for the strategy, its controls and curves; return the manifests, the main one first.

    Raises:
        DataError: τ or β is to be found from the data, and the data cannot tell.
    """
    directory = RunDirectory(config.run_dir)
    with turn(directory, "select", config.train.checkpoint_dir):
        return _make(config, directory)


def _make(config: Config, directory: RunDirectory) -> list[Manifest]:
    manifests = []
    for arm in config.select.arms:
        recipe = recipes.decisions(config, directory, arm)
        made = recipe.is_made(directory, rebuild=config.rebuild)
        if made is None:
            with telemetry.stage(directory.absolute_address, "select") as told, recipe.making(directory) as draft:
                pairs, scores = load_inputs(directory, arm)
                ledger, found = decide(pairs, scores, config, arm, majority=majority_of(directory))
                draft.write_table("decisions.parquet", ledger)
                of_arm = statistics(ledger, pairs, arm, found)
                draft.statistics |= of_arm
                _tell(told, arm, of_arm["communities"])
            made = directory.require(recipe.name, job="select")
        manifests.append(made)
    return manifests


def _tell(told: telemetry.Stage, arm: Arm, communities: Mapping[str, dict]) -> None:
    for community, decided in communities.items():
        told.measure(
            {
                "kept_share": decided["kept_share"]["train"] or 0.0,
                "effective_sample_size": decided["effective_sample_size"],
            },
            name=arm.name,
            community=community,
        )


def decide(
    pairs: pa.Table, scores: pa.Table, config: Config, arm: Arm, *, majority: Sequence[str]
) -> tuple[pa.Table, dict[str, Constants]]:
    """One arm's decision for every pair, as a table of the DECISIONS columns in the order of `pairs`; and each
    community's τ and β.

    Each community and split is decided by itself, so a drawn control has the filter's size in each.

    Raises:
        DataError: τ or β is `auto`, or margins are to be calibrated, and the majority's validation pairs cannot tell.
    """
    position = scores["response_id"].combine_chunks()
    chosen = scores["reward"].take(pc.index_in(pairs["chosen_id"], position)).to_numpy()
    rejected = scores["reward"].take(pc.index_in(pairs["rejected_id"], position)).to_numpy()
    check_rewards(chosen, rejected)
    settings = {name: _settings(config, arm, name) for name in pc.unique(pairs["community"]).to_pylist()}
    found = _constants(pairs, chosen - rejected, settings, arm, majority)
    lot = lots(pairs["pair_id"].to_pylist(), config.seed)
    probability, weight = np.zeros(len(pairs)), np.zeros(len(pairs))
    kept, reason = np.zeros(len(pairs), dtype=bool), np.full(len(pairs), "", dtype=object)
    for community, _, rows in _community_splits(pairs):
        of_community = found[community]
        scale = of_community.margin_temperature
        rewards = (chosen[rows], rejected[rows]) if scale == 1 else (chosen[rows] / scale, rejected[rows] / scale)
        probability[rows] = agreement(
            chosen_rewards=rewards[0], rejected_rewards=rewards[1], form=settings[community].agreement_form
        )
        decision = STRATEGIES[arm.strategy](
            PairView(*rewards, probability[rows], lot[rows]),
            settings[community].model_copy(
                update={
                    "agreement_threshold": of_community.agreement_threshold,
                    "weight_temperature": of_community.weight_temperature,
                }
            ),
        )
        kept[rows], weight[rows], reason[rows] = decision.kept, decision.weight, decision.reason
    if arm.training_share < 1:
        is_train = pc.equal(pairs["split"], "train").to_numpy(zero_copy_only=False)
        left_out = is_train & (lots(pairs["interaction_id"].to_pylist(), config.seed) >= arm.training_share)
        kept[left_out], weight[left_out] = False, 0.0
        reason[left_out] = _NOT_IN_SHARE
    ledger = {
        "pair_id": pairs["pair_id"],
        "community": pairs["community"],
        "split": pairs["split"],
        "global_reward_chosen": chosen,
        "global_reward_rejected": rejected,
        "agreement": probability,
        "kept": kept,
        "weight": weight,
        "reason": reason.tolist(),
    }
    return pa.table(ledger, schema=DECISIONS), found


def majority_of(directory: RunDirectory) -> list[str]:
    """The communities that a run's data calls the majority."""
    majority = directory.require(recipes.PREPARED, job="prepare").statistics["majority"]
    assert isinstance(majority, list)
    return majority


def _settings(config: Config, arm: Arm, community: str) -> SelectConfig:
    """What the arm applies to one community: its own settings, and on a curve the point's threshold."""
    own = config.for_community(community).select
    if arm.agreement_threshold == config.select.agreement_threshold:
        return own
    return own.model_copy(update={"agreement_threshold": arm.agreement_threshold})


def _constants(
    pairs: pa.Table, margins: np.ndarray, settings: Mapping[str, SelectConfig], arm: Arm, majority: Sequence[str]
) -> dict[str, Constants]:
    """τ and β of every community, from the margins of its training pairs and the majority's labels for validation."""
    splits = {(community, split): rows for community, split, rows in _community_splits(pairs)}
    validation = [margins[splits[name, "validation"]] for name in majority if (name, "validation") in splits]
    temperature = global_temperature(np.concatenate(validation)) if validation else float("nan")
    nothing = np.array([], dtype=int)
    return {
        community: constants(
            of_community, arm.strategy, margins[splits.get((community, "train"), nothing)], temperature=temperature
        )
        for community, of_community in settings.items()
    }


_NOT_IN_SHARE = "dropped: not in this arm's share of the training data"


def lots(identifiers: Sequence[str], seed: int) -> np.ndarray:
    """A number in [0, 1) for each identifier, from its hash: chance that every run and every curve draws alike."""
    return np.array([int(content_id("lot", seed, identifier)[:13], 16) / 16**13 for identifier in identifiers])


def _community_splits(pairs: pa.Table) -> list[tuple[str, str, np.ndarray]]:
    """(community, split, row numbers) of each community and split that has pairs."""
    encoded = [pairs[name].combine_chunks().dictionary_encode() for name in ("community", "split")]
    codes = [column.indices.to_numpy() for column in encoded]
    group = codes[0].astype(np.int64) * len(encoded[1].dictionary) + codes[1]
    order = np.argsort(group, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(order) else []
    names = [column.dictionary.to_pylist() for column in encoded]
    return [(names[0][codes[0][rows[0]]], names[1][codes[1][rows[0]]], rows) for rows in parts]


def load_inputs(directory: RunDirectory, arm: Arm) -> tuple[pa.Table, pa.Table]:
    """What `decide` reads: all pairs, and the rewards of the arm's ruler."""
    ruler = recipes.OTHER_SCORES if arm.strategy == "other_ruler" else recipes.SCORES
    pairs = directory.read_table("prepared/pairs.parquet", columns=[*_TRAINING_COLUMNS, "community", "split"])
    return pairs, directory.read_table(f"{ruler}/scores.parquet", columns=["response_id", "reward"])


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


def statistics(ledger: pa.Table, pairs: pa.Table, arm: Arm, found: Mapping[str, Constants]) -> dict[str, object]:
    """Per community: τ and β, kept share by split, effective sample size, and a hash of what training would read."""
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
            "constants": found[community].used_by(arm.strategy, training_share=arm.training_share),
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
