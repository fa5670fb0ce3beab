"""What was gained and what was lost: every trained model on its community's and the majority's test pairs."""

from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scpo_ray.artifacts import Manifest, RunDirectory
from scpo_ray.config import Config, EvaluateConfig
from scpo_ray.core.accuracy import Estimate, cluster_bootstrap_mean, pair_correctness
from scpo_ray.core.agreement import agreement
from scpo_ray.errors import ArtifactError
from scpo_ray.records import EVALUATION
from scpo_ray.runtime import connect, progress_bar
from scpo_ray.stages import recipes
from scpo_ray.stages.scoring_job import ModelToScore, rewards_by_id, score_models
from scpo_ray.stages.train import load_trained

METRICS = pa.schema(
    [
        ("community", pa.string()),
        ("model", pa.string()),  # global, or STRATEGY/COMMUNITY
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),  # 95% interval, bootstrap clustered by annotator, else by prompt group
        ("high", pa.float64()),
        ("num_pairs", pa.int64()),
        ("num_clusters", pa.int64()),
    ]
)


@dataclass(frozen=True)
class TestPairs:
    """Test pairs of one or more communities with the global model's rewards."""

    table: pa.Table
    global_chosen: np.ndarray
    global_rejected: np.ndarray

    @property
    def clusters(self) -> np.ndarray:
        """Annotators, or prompt groups where there are none."""
        return pc.coalesce(self.table["annotator_id"], self.table["prompt_group"]).to_numpy(zero_copy_only=False)

    @property
    def response_ids(self) -> pa.Array:
        """Every response that occurs, once."""
        both = [*self.table["chosen_id"].combine_chunks().to_pylist(), *self.table["rejected_id"].to_pylist()]
        return pa.array(sorted(set(both)), pa.string())


def run(config: Config) -> Manifest:
    """Score, measure; write `evaluation`. Returns its manifest, from disk when it is already made.

    Raises:
        ArtifactError: no trained model is there.
    """
    directory = RunDirectory(config.run_dir)
    trained = load_trained(config, directory)
    if not trained:
        raise ArtifactError(f"{directory.path('reward_models')}: no trained model; run jobs/train.py first")
    recipe = recipes.evaluation(config, directory, trained)
    # What is evaluated follows from what is trained: a set that grew or was remade makes the old evaluation stale.
    found = directory.find(recipe.name)
    if found is not None and recipe.difference(found) is None:
        return found
    if found is not None and dict(found.identity) != recipe.identity:
        recipe.is_made(directory, rebuild=config.rebuild)
    connect()
    majority = recipes.checked(directory, recipes.prepared(config)).statistics["majority"]
    assert isinstance(majority, list)
    own = {community: _test_pairs(directory, [community]) for community in {name.split("/", 1)[1] for name in trained}}
    of_majority = _test_pairs(directory, majority)
    wanted = [
        ModelToScore(
            name,
            str(directory.fetch(manifest.name)),
            _union(own[name.split("/", 1)[1]].response_ids, of_majority.response_ids),
            dropout=config.evaluate.dropout,
        )
        for name, manifest in trained.items()
    ]
    with recipe.making(directory) as draft:
        with progress_bar("evaluate", unit="responses") as bar:
            scores, cost = score_models(wanted, config, on_progress=lambda done, total, _: bar.update(done, total))
        rows: list[dict] = []
        rewards: list[pa.Table] = []
        for name in trained:
            community = name.split("/", 1)[1]
            rows += measure(name, community, own[community], of_majority, scores[name], config.evaluate, config.seed)
            apart = [of_majority] if community in majority else [own[community], of_majority]
            rewards += [_rewards(name, pairs, scores[name]) for pairs in apart]
        rows += global_rows(own, of_majority, config.evaluate, config.seed)
        apart = [pairs for community, pairs in own.items() if community not in majority]
        rewards += [_global_rewards(pairs) for pairs in (*apart, of_majority)]
        draft.write_table("metrics.parquet", pa.Table.from_pylist(rows, schema=METRICS))
        draft.write_table("rewards.parquet", pa.concat_tables(rewards))
        draft.statistics |= asdict(cost) | {"padding_share": round(cost.padding_share, 6)}
    return directory.require(recipe.name, job="evaluate")


def measure(
    model: str,
    community: str,
    own: TestPairs,
    majority: TestPairs,
    scores: pa.Table,
    config: EvaluateConfig,
    seed: int,
) -> list[dict]:
    """Rows of METRICS for one trained model; `_gain` rows are paired differences from the global model."""
    correct, before = _correct(own, scores), _global_correct(own)
    is_wrong = _global_is_wrong(own, config)
    majority_correct, majority_before = _correct(majority, scores), _global_correct(majority)
    everything = np.ones(len(correct), dtype=bool)
    parts = (
        ("overall", own, correct, everything),
        ("overall_gain", own, correct - before, everything),
        ("acquisition", own, correct, is_wrong),
        ("retention", own, correct, ~is_wrong),
        ("majority", majority, majority_correct, np.ones(len(majority_correct), dtype=bool)),
        ("majority_gain", majority, majority_correct - majority_before, np.ones(len(majority_correct), dtype=bool)),
    )
    return [
        _row(community, model, metric, _estimate(pairs, values, mask, config, seed))
        for metric, pairs, values, mask in parts
    ]


def global_rows(own: dict[str, TestPairs], majority: TestPairs, config: EvaluateConfig, seed: int) -> list[dict]:
    """The global model's own rows: the baseline, and how many pairs acquisition and retention stand on."""
    rows = []
    for community, pairs in own.items():
        correct, is_wrong = _global_correct(pairs), _global_is_wrong(pairs, config)
        everything = np.ones(len(correct), dtype=bool)
        for metric, mask in (("overall", everything), ("acquisition", is_wrong), ("retention", ~is_wrong)):
            rows.append(_row(community, "global", metric, _estimate(pairs, correct, mask, config, seed)))
        majority_correct = _global_correct(majority)
        mask = np.ones(len(majority_correct), dtype=bool)
        rows.append(_row(community, "global", "majority", _estimate(majority, majority_correct, mask, config, seed)))
    return rows


def _test_pairs(directory: RunDirectory, communities: list[str]) -> TestPairs:
    pairs = directory.read_table(
        "prepared/pairs.parquet",
        columns=["pair_id", "community", "annotator_id", "prompt_group", "chosen_id", "rejected_id"],
        filters=pc.field("community").isin(communities) & (pc.field("split") == "test"),
    )
    needed = pa.array(sorted({*pairs["chosen_id"].to_pylist(), *pairs["rejected_id"].to_pylist()}), pa.string())
    scores = directory.read_table(
        "scores/scores.parquet", columns=["response_id", "reward"], filters=pc.field("response_id").isin(needed)
    )
    return TestPairs(pairs, rewards_by_id(scores, pairs["chosen_id"]), rewards_by_id(scores, pairs["rejected_id"]))


def _correct(pairs: TestPairs, scores: pa.Table) -> np.ndarray:
    return pair_correctness(
        chosen_rewards=rewards_by_id(scores, pairs.table["chosen_id"]),
        rejected_rewards=rewards_by_id(scores, pairs.table["rejected_id"]),
    )


def _global_correct(pairs: TestPairs) -> np.ndarray:
    return pair_correctness(chosen_rewards=pairs.global_chosen, rejected_rewards=pairs.global_rejected)


def _global_is_wrong(pairs: TestPairs, config: EvaluateConfig) -> np.ndarray:
    """True where agreement is below the threshold; at 0.5, where the global model prefers the rejected response."""
    return agreement(chosen_rewards=pairs.global_chosen, rejected_rewards=pairs.global_rejected) < config.test_threshold


def _estimate(pairs: TestPairs, values: np.ndarray, mask: np.ndarray, config: EvaluateConfig, seed: int) -> Estimate:
    return cluster_bootstrap_mean(
        values, clusters=pairs.clusters, num_resamples=config.num_resamples, seed=seed, mask=mask
    )


def _row(community: str, model: str, metric: str, estimate: Estimate) -> dict:
    return {"community": community, "model": model, "metric": metric, **asdict(estimate)}


def _rewards(model: str, pairs: TestPairs, scores: pa.Table) -> pa.Table:
    return pa.table(
        {
            "pair_id": pairs.table["pair_id"],
            "community": pairs.table["community"],
            "model": pa.array([model] * len(pairs.table), pa.string()),
            "reward_chosen": rewards_by_id(scores, pairs.table["chosen_id"]),
            "reward_rejected": rewards_by_id(scores, pairs.table["rejected_id"]),
        },
        schema=EVALUATION,
    )


def _global_rewards(pairs: TestPairs) -> pa.Table:
    return pa.table(
        {
            "pair_id": pairs.table["pair_id"],
            "community": pairs.table["community"],
            "model": pa.array(["global"] * len(pairs.table), pa.string()),
            "reward_chosen": pairs.global_chosen,
            "reward_rejected": pairs.global_rejected,
        },
        schema=EVALUATION,
    )


def _union(*arrays: pa.Array) -> pa.Array:
    return pa.array(sorted({value for array in arrays for value in array.to_pylist()}), pa.string())
