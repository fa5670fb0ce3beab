"""Rewards of a question's options as a distribution, beside the one of the community that was asked.

The similarity is 1 minus the Jensen-Shannon distance (base 2), as for language models on GlobalOpinionQA (Durmus et al.
2023). A reward is no log-probability, so each model's temperature is fitted on the community's validation questions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from scpo_ray.config import EvaluateConfig
from scpo_ray.core.bootstrap import cluster_bootstrap_mean
from scpo_ray.core.distributions import (
    TEMPERATURE_BOUNDS,
    fit_option_temperature,
    jensen_shannon_distance,
    option_probabilities,
)
from scpo_ray.errors import DataError

OPINIONS = pa.schema(
    [
        ("arm", pa.string()),  # an arm, or a baseline: global, uniform, majority
        ("community", pa.string()),
        ("value", pa.float64()),  # mean similarity over test questions (and replicates)
        ("low", pa.float64()),  # 95%, by groups of near-duplicate questions
        ("high", pa.float64()),
        ("gain", pa.float64()),  # mean difference from the global model on the same questions; null for itself
        ("gain_low", pa.float64()),
        ("gain_high", pa.float64()),
        ("num_questions", pa.int64()),
        ("num_clusters", pa.int64()),
        ("temperature", pa.float64()),  # reward units, median over replicates; null for baselines without a model
        ("num_at_bound", pa.int64()),  # replicates that no temperature makes an opinion: 100, options practically alike
        ("num_replicates", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Question:
    """One question as one community answered it."""

    prompt_id: str
    group: str
    options: tuple[str, ...]
    shares: np.ndarray


def questions(shares: pa.Table, *, community: str, split: str) -> list[Question]:
    """The community's questions of a split, with two options or more."""
    found: dict[str, list[dict]] = {}
    for row in shares.to_pylist():
        if row["community"] == community and row["split"] == split:
            found.setdefault(row["prompt_id"], []).append(row)
    return [
        Question(
            prompt_id,
            rows[0]["prompt_group"],
            tuple(row["response_id"] for row in rows),
            np.array([row["share"] for row in rows]),
        )
        for prompt_id, rows in found.items()
        if len(rows) > 1
    ]


def opinion_rows(
    community: str,
    shares: pa.Table,
    arms: Mapping[str, Sequence[pa.Table]],
    majority: Sequence[str],
    config: EvaluateConfig,
    *,
    seed: int,
) -> list[dict]:
    """Rows of OPINIONS for one community; none where it has no test questions, or no validation questions to fit on.

    Args:
        shares: the OPTION_SHARES of all communities.
        arms: rewards (SCORES) of each arm's replicates; `global` is one of them.
        majority: communities whose mean distribution is a baseline, on the questions that they answered.
    """
    test = questions(shares, community=community, split="test")
    validation = questions(shares, community=community, split="validation")
    if not test or not validation:
        return []
    by_arm, temperatures = {}, {}
    for arm, replicates in arms.items():
        found = [_similarities(test, validation, _by_option(scores), name=arm) for scores in replicates]
        by_arm[arm] = np.mean([similarities for similarities, _ in found], axis=0)
        temperatures[arm] = [temperature for _, temperature in found]
    by_arm["uniform"] = np.array([_similarity(np.full(len(q.shares), 1 / len(q.shares)), q) for q in test])
    by_arm["majority"] = _majority_baseline(test, shares, [name for name in majority if name != community])
    return [
        _row(arm, community, test, values, None if arm == "global" else by_arm["global"], config, seed)
        | _fits(temperatures.get(arm, []))
        for arm, values in by_arm.items()
        if not np.isnan(values).all()
    ]


def _similarities(
    test: Sequence[Question], validation: Sequence[Question], reward_of: Mapping[str, float], *, name: str
) -> tuple[np.ndarray, float]:
    """(similarity per test question, temperature fitted on the validation questions)."""

    def rewards(question: Question) -> np.ndarray:
        try:
            return np.array([reward_of[option] for option in question.options], dtype=np.float64)
        except KeyError as missing:
            raise DataError(f"{name}: option {missing} of question {question.prompt_id} has no reward") from None

    temperature = fit_option_temperature([rewards(q) for q in validation], [q.shares for q in validation])
    values = [_similarity(option_probabilities(rewards(q), temperature=temperature), q) for q in test]
    return np.array(values), temperature


def _similarity(probabilities: np.ndarray, question: Question) -> float:
    return 1.0 - jensen_shannon_distance(probabilities, question.shares)


def _fits(temperatures: Sequence[float]) -> dict:
    """What is said of the temperatures of an arm's replicates."""
    at_bound = [
        not TEMPERATURE_BOUNDS[0] * 1.01 < temperature < TEMPERATURE_BOUNDS[1] / 1.01 for temperature in temperatures
    ]
    middle = float(np.median(temperatures)) if len(temperatures) else None
    return {"temperature": middle, "num_at_bound": sum(at_bound), "num_replicates": len(at_bound)}


def _majority_baseline(test: Sequence[Question], shares: pa.Table, majority: Sequence[str]) -> np.ndarray:
    """How alike the majority's mean distribution is, per question; NaN for those that it was not asked."""
    of_majority: dict[str, list[Question]] = {}
    for name in majority:
        for question in questions(shares, community=name, split="test"):
            of_majority.setdefault(question.prompt_id, []).append(question)
    similar = np.full(len(test), np.nan)
    for row, question in enumerate(test):
        answers = [dict(zip(q.options, q.shares, strict=True)) for q in of_majority.get(question.prompt_id, ())]
        if answers:
            mean = np.array([np.mean([answer[option] for answer in answers]) for option in question.options])
            similar[row] = _similarity(mean / mean.sum(), question)
    return similar


def _row(
    arm: str,
    community: str,
    test: Sequence[Question],
    values: np.ndarray,
    of_global: np.ndarray | None,
    config: EvaluateConfig,
    seed: int,
) -> dict:
    """One row, over the questions for which there is a value."""
    asked = ~np.isnan(values)
    clusters = [question.group for question, is_asked in zip(test, asked, strict=True) if is_asked]

    def bootstrap(of_questions: np.ndarray) -> dict:
        return asdict(
            cluster_bootstrap_mean(
                of_questions[asked], clusters=clusters, num_resamples=config.num_resamples, seed=seed
            )
        )

    estimate = bootstrap(values)
    estimate["num_questions"] = estimate.pop("num_pairs")
    gain = {} if of_global is None else bootstrap(values - of_global)
    gains = {"gain": gain.get("value"), "gain_low": gain.get("low"), "gain_high": gain.get("high")}
    return {"arm": arm, "community": community, **estimate, **gains}


def _by_option(scores: pa.Table) -> dict[str, float]:
    return dict(zip(scores["response_id"].to_pylist(), scores["reward"].to_pylist(), strict=True))


def option_ids(shares: pa.Table, communities: Sequence[str]) -> Iterator[str]:
    """Every option of the communities' validation and test questions: what a model must score."""
    for row in shares.to_pylist():
        if row["community"] in communities and row["split"] != "train":
            yield row["response_id"]
