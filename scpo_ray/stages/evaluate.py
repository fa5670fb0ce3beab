"""What was gained and what was lost: every trained model on its community's, the majority's and the others' test pairs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scpo_ray.artifacts import Draft, Manifest, RunDirectory
from scpo_ray.config import Config
from scpo_ray.errors import ArtifactError, DataError
from scpo_ray.evaluation.comparisons import COMPARISONS, comparison_rows
from scpo_ray.evaluation.distances import DISTANCES, distance_rows
from scpo_ray.evaluation.matrices import TRANSFER, community_structure, transfer_rows
from scpo_ray.evaluation.measures import DIAGNOSTICS, METRICS, Measurer, diagnostics, longer_wins
from scpo_ray.evaluation.opinions import OPINIONS, opinion_rows, option_ids
from scpo_ray.evaluation.pairs import PairSet, pooled, response_lengths
from scpo_ray.evaluation.scales import SCALES, scale_row
from scpo_ray.records import ALL_COMMUNITIES, EVALUATION, OPTION_SHARES, ModelName
from scpo_ray.stages import recipes
from scpo_ray.stages.scoring_job import ModelToScore, score_with_progress
from scpo_ray.stages.train import load_trained
from scpo_ray.stages.turns import turn

_TEMPERATURE_RESAMPLES = 200
_PAIR_COLUMNS = ["pair_id", "community", "annotator_id", "prompt_group", "chosen_id", "rejected_id"]


@dataclass(frozen=True)
class Inputs:
    """The pairs that an evaluation is about, and the ruler's rewards of all of their responses."""

    test: Mapping[str, PairSet]
    """By community, also those without test pairs."""
    validation: Mapping[str, PairSet]
    majority: PairSet
    global_scores: pa.Table
    option_shares: pa.Table
    """Answers of communities as distributions; empty where the data has none."""


def run(config: Config) -> Manifest:
    """Score, measure, compare; write `evaluation`. Returns its manifest, from disk when it is already made. Another job in it is
    waited for.

    Raises:
        ArtifactError: no trained model is there.
        DataError: the majority, or every community, has no test pairs.
    """
    directory = RunDirectory(config.run_dir)
    with turn(directory, "evaluate", config.train.checkpoint_dir):
        return _make(config, directory)


def _make(config: Config, directory: RunDirectory) -> Manifest:
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
    inputs = load_inputs(config, directory)
    counts = {community: len(pairs) for community, pairs in inputs.test.items()}
    check_test_pairs(counts, {name.community for name in trained}, of_majority=len(inputs.majority))
    wanted = [
        ModelToScore(
            str(name),
            directory.shared_address(manifest.name),
            responses_to_score(config, inputs, name),
            dropout=config.evaluate.dropout,
        )
        for name, manifest in trained.items()
    ]
    with recipe.making(directory) as draft:
        scores, cost = score_with_progress("evaluate", wanted, config)
        by_name = {name: scores[str(name)] for name in trained}
        write_tables(draft, config, inputs, by_name)
        _write_structure(draft, config, directory, list(inputs.test))
        draft.statistics |= asdict(cost) | {"padding_share": round(cost.padding_share, 6)}
    return directory.require(recipe.name, job="evaluate")


def load_inputs(config: Config, directory: RunDirectory) -> Inputs:
    """Test and validation pairs by community, and the majority's test pairs together."""
    statistics = recipes.checked(directory, recipes.prepared(config)).statistics
    majority, known = statistics["majority"], statistics["communities"]
    assert isinstance(majority, list) and isinstance(known, dict)
    pairs = directory.read_table(
        "prepared/pairs.parquet",
        columns=[*_PAIR_COLUMNS, "split"],
        filters=pc.field("split").isin(["validation", "test"]),
    )
    scores = directory.read_table("scores/scores.parquet", columns=["response_id", "reward", "num_tokens", "truncated"])
    shares = OPTION_SHARES.empty_table()
    if "option_shares.parquet" in directory.names(recipes.PREPARED):
        shares = directory.read_table("prepared/option_shares.parquet", filters=pc.field("split") != "train")
    needed = {*pairs["chosen_id"].to_pylist(), *pairs["rejected_id"].to_pylist(), *shares["response_id"].to_pylist()}
    scores = scores.filter(pc.is_in(scores["response_id"], pa.array(sorted(needed), pa.string())))
    responses = directory.read_table("prepared/responses.parquet", columns=["response_id", "response"])
    lengths = response_lengths(responses.filter(pc.is_in(responses["response_id"], scores["response_id"])))
    by_split = {
        split: {
            community: PairSet(community, part, scores, lengths)
            for community, part in _by_community(pairs.filter(pc.equal(pairs["split"], split)))
        }
        for split in ("validation", "test")
    }
    for community in known:  # one without test pairs has NaN for every figure, and the others are measured
        by_split["test"].setdefault(community, PairSet(community, pairs.slice(0, 0), scores, lengths))
    of_majority = pairs.filter(
        pc.and_(pc.equal(pairs["split"], "test"), pc.is_in(pairs["community"], pa.array(majority)))
    )
    return Inputs(
        by_split["test"], by_split["validation"], PairSet("the majority", of_majority, scores, lengths), scores, shares
    )


def check_test_pairs(counts: Mapping[str, int], communities: Iterable[str], *, of_majority: int) -> None:
    """Refuse to measure nothing. A single community without test pairs has NaN for its figures.

    Args:
        counts: test pairs by community.
        communities: those that are evaluated.
        of_majority: test pairs of the majority, together.

    Raises:
        DataError: the majority has no test pairs, or none of the communities has.
    """
    if not of_majority:
        raise DataError(
            "the majority has no test pairs, so what was forgotten cannot be measured; raise prepare.test_fraction"
        )
    if not any(counts.get(community, 0) for community in communities):
        raise DataError(
            f"{', '.join(sorted(communities))}: no test pairs, nothing to measure; raise prepare.test_fraction"
        )


def write_tables(draft: Draft, config: Config, inputs: Inputs, scores: Mapping[ModelName, pa.Table]) -> None:
    """Everything that follows from rewards, once all of them are there."""
    results = _Results(config, inputs)
    for community in dict.fromkeys(name.community for name in scores):
        results.add(community, {"global": [inputs.global_scores], **_replicates(scores, community)})
    results.add_pooled()
    references = list(dict.fromkeys(("global", "none", "random", config.select.strategy)))
    comparisons = comparison_rows(results.correct, results.about, references, config.evaluate, seed=config.seed)
    main = {name.community: table for name, table in scores.items() if _is_main(config, name)}
    transfer = transfer_rows({"global": inputs.global_scores, **main}, inputs.test, config.evaluate, seed=config.seed)
    distances = distance_rows(inputs.test, inputs.majority, config.evaluate, seed=config.seed)
    for name, rows, schema in (
        ("metrics", results.metrics, METRICS),
        ("diagnostics", results.diagnostics, DIAGNOSTICS),
        ("opinions", results.opinions, OPINIONS),
        ("comparisons", comparisons, COMPARISONS),
        ("transfer", transfer, TRANSFER),
        ("distances", distances, DISTANCES),
        ("scales", _scale_rows(config, inputs, main), SCALES),
    ):
        draft.write_table(f"{name}.parquet", pa.Table.from_pylist(rows, schema=schema))
    draft.write_table("rewards.parquet", pa.concat_tables(_reward_tables(config, inputs, scores)))


def _scale_rows(config: Config, inputs: Inputs, models: Mapping[str, pa.Table]) -> list[dict]:
    """What a service compares communities by: every main model, and the global model for the majority."""
    majority = sorted(pc.unique(inputs.majority.table["community"]).to_pylist())
    wanted = [("global", community, inputs.global_scores) for community in majority if community not in models]
    wanted += [(config.select.strategy, community, scores) for community, scores in models.items()]
    return [
        scale_row(arm, inputs.validation[community], scores, num_resamples=_TEMPERATURE_RESAMPLES, seed=config.seed)
        for arm, community, scores in wanted
        if community in inputs.validation
    ]


class _Results:
    """Rows of the result tables, gathered community by community."""

    def __init__(self, config: Config, inputs: Inputs) -> None:
        self._config, self._inputs = config, inputs
        self._majority = sorted(pc.unique(inputs.majority.table["community"]).to_pylist())
        self.metrics: list[dict] = []
        self.diagnostics: list[dict] = []
        self.opinions: list[dict] = []
        self.about: dict[tuple[str, str], PairSet] = {}
        """(community, metric) -> the pairs."""
        self.correct: dict[tuple[str, str], dict[str, list[np.ndarray]]] = {}
        """(community, metric) -> arm -> correctness per pair, one array per replicate; without the points of curves."""
        self._by_replicate: dict[str, dict[str, dict[str, list[np.ndarray]]]] = {"overall": {}, "majority": {}}
        """metric -> community -> arm -> correctness per pair, one array per replicate."""

    def add(self, community: str, arms: Mapping[str, Sequence[pa.Table]]) -> None:
        """One community: rewards (SCORES) of the replicates of every arm, `global` among them."""
        config, seed = self._config.evaluate, self._config.seed
        own, majority = self._inputs.test[community], self._inputs.majority
        for arm, replicates in arms.items():
            for pairs, metric in ((own, "overall"), (majority, "majority")):
                values = [pairs.correct(scores) for scores in replicates]
                self._by_replicate[metric].setdefault(community, {})[arm] = values
            for replicate, scores in enumerate(replicates):
                found = diagnostics(own, self._inputs.validation.get(community), scores)
                self._diagnose(arm, community, replicate, found)
        self._diagnose("global", community, 0, {"longer_wins": longer_wins(own)})
        self._measure(own, {metric: self._by_replicate[metric][community] for metric in self._by_replicate})
        self.opinions += opinion_rows(community, self._inputs.option_shares, arms, self._majority, config, seed=seed)

    def add_pooled(self) -> None:
        """All communities as one: their own pairs together, the majority's as the mean over the communities' models."""
        communities = list(self._by_replicate["overall"])
        by_arm: dict[str, dict[str, list[np.ndarray]]] = {"overall": {}, "majority": {}}
        for arm in self._by_replicate["overall"][communities[0]]:
            number = {len(self._by_replicate["overall"][name].get(arm, ())) for name in communities}
            if len(number) != 1 or 0 in number:
                continue  # a community lacks this arm, or a replicate of it: no fair mean
            for metric, join in (("overall", np.concatenate), ("majority", lambda arrays: np.mean(arrays, axis=0))):
                replicates = zip(*(self._by_replicate[metric][name][arm] for name in communities), strict=True)
                by_arm[metric][arm] = [join(list(arrays)) for arrays in replicates]
        if len(communities) > 1:
            self._measure(pooled(ALL_COMMUNITIES, [self._inputs.test[name] for name in communities]), by_arm)

    def _measure(self, own: PairSet, by_arm: Mapping[str, Mapping[str, list[np.ndarray]]]) -> None:
        measurer = Measurer(own, self._inputs.majority, self._config.evaluate, seed=self._config.seed)
        for arm, replicates in by_arm["overall"].items():
            full = None if arm in ("global", "none") else by_arm["overall"].get("none")
            self.metrics += measurer.rows(arm, own=replicates, majority=by_arm["majority"][arm], full=full)
        for metric, pairs in (("overall", own), ("majority", self._inputs.majority)):
            self.about[own.name, metric] = pairs
            self.correct[own.name, metric] = {
                arm: replicates
                for arm, replicates in by_arm[metric].items()
                if arm in ("global", *self._config.select.strategies)
            }

    def _diagnose(self, arm: str, community: str, replicate: int, values: Mapping[str, float]) -> None:
        self.diagnostics += [
            {"arm": arm, "community": community, "replicate": replicate, "measure": measure, "value": value}
            for measure, value in values.items()
        ]


def _write_structure(draft: Draft, config: Config, directory: RunDirectory, communities: Sequence[str]) -> None:
    """How far communities agree in the data itself; no model has a part in it."""
    pairs = directory.read_table(
        "prepared/pairs.parquet",
        columns=["community", "annotator_id", "chosen_id", "rejected_id"],
        filters=pc.field("community").isin(list(communities)),
    )
    structure, variance = community_structure(pairs, communities, config.evaluate, seed=config.seed)
    variance_row = {
        key: None if isinstance(value, float) and np.isnan(value) else value for key, value in asdict(variance).items()
    }
    draft.write_json("communities.json", structure | {"variance": variance_row})


def _replicates(scores: Mapping[ModelName, pa.Table], community: str) -> dict[str, list[pa.Table]]:
    """Arm -> rewards of its replicates, in their order."""
    found: dict[str, list[pa.Table]] = {}
    for name in sorted((name for name in scores if name.community == community), key=lambda name: name.replicate):
        found.setdefault(name.arm, []).append(scores[name])
    return found


def _is_main(config: Config, name: ModelName) -> bool:
    return name.arm == config.select.strategy and name.replicate == 0


def responses_to_score(config: Config, inputs: Inputs, name: ModelName) -> pa.Array:
    """What a model must score: its community's and the majority's pairs; all test pairs for the matrix of transfer."""
    sets = [inputs.test[name.community], inputs.majority]
    if name.community in inputs.validation:
        sets.append(inputs.validation[name.community])
    if _is_main(config, name):
        sets += inputs.test.values()
    identifiers = {value for pairs in sets for value in pairs.response_ids.to_pylist()}
    identifiers.update(option_ids(inputs.option_shares, [name.community]))
    return pa.array(sorted(identifiers), pa.string())


def _by_community(pairs: pa.Table) -> Iterable[tuple[str, pa.Table]]:
    for community in sorted(pc.unique(pairs["community"]).to_pylist()):
        yield community, pairs.filter(pc.equal(pairs["community"], community))


def _reward_tables(config: Config, inputs: Inputs, scores: Mapping[ModelName, pa.Table]) -> list[pa.Table]:
    """Rewards of every model on the test pairs that it scored, in the EVALUATION columns."""
    tables = [_rewards("global", pairs, inputs.global_scores) for pairs in inputs.test.values()]
    majority = sorted(pc.unique(inputs.majority.table["community"]).to_pylist())
    for name, table in scores.items():
        communities = list(inputs.test) if _is_main(config, name) else list(dict.fromkeys((name.community, *majority)))
        tables += [_rewards(str(name), inputs.test[community], table) for community in communities]
    return tables


def _rewards(model: str, pairs: PairSet, scores: pa.Table) -> pa.Table:
    chosen, rejected = pairs.rewards(scores)
    return pa.table(
        {
            "pair_id": pairs.table["pair_id"],
            "community": pairs.table["community"],
            "model": pa.array([model] * len(pairs), pa.string()),
            "reward_chosen": chosen,
            "reward_rejected": rejected,
        },
        schema=EVALUATION,
    )
