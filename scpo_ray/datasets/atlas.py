"""`atlas`: a synthetic world whose preferences are known.

Every response answers a small question in a manner: direct or not, formal or not, short or long, ... A manner shows in
marker phrases, so that a tiny model can read and write it, and the true utility of any text can be computed:

    u_c(y) = Σ_a θ_{c,a} φ_a(y),   φ_a(y) in {-1, 0, +1}: which of attribute a's markers the text holds

All communities share the majority's θ but for the attributes planted as different, where the sign is turned. Ratings
are the community's utility, the annotator's own taste, and noise, on PRISM's scale of 1-100. Every pair is labelled:

    agreement   chosen is better for the own community and for the majority
    culture     better for the own community, worse for the majority
    outlier     planted: an annotator who reverses what both agree on, where they agree most
    noise       worse for the own community, by taste, accident or a swapped rating
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from scpo_ray.config import AtlasConfig
from scpo_ray.datasets.base import Dataset, DatasetBuilder
from scpo_ray.records import ATLAS_PAIR_TRUTH, ContextIds, content_id, table

MAJORITY = "Atlas"
MINORITIES = ("Brevia", "Calder Isles", "Dorvia", "Østmark", "Fenland", "Garúa")

MARKERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "directness": (("do this at once", "the answer is clear", "just start now"), ("one might look around first", "there are many ways", "it rather depends")),
    "formality": (("dear sir or madam", "yours faithfully", "i remain at your service"), ("hey there", "cheers mate", "no worries")),
    "hedging": (("perhaps i am wrong", "as far as i can tell", "this may not hold"), ("i am certain", "without any doubt", "this always works")),
    "warmth": (("i feel with you", "you are doing well", "i am glad you asked"), ("keep to the facts", "feelings do not matter", "that is your problem")),
    "tradition": (("ask your elders", "as it was always done", "honour the custom"), ("forget the old ways", "try something new", "break the habit")),
    "solidarity": (("talk it over with your family", "decide it together", "think of the others"), ("decide for yourself", "put yourself first", "go your own way")),
}  # fmt: skip
"""Attribute -> phrases that show it, phrases that show its opposite."""

ATTRIBUTES = tuple(MARKERS)
_MAJORITY_PREFERENCES = np.array([1.0, -0.6, -0.8, 0.9, -0.7, -0.6])
_TASTE = 0.15
_RATING_NOISE = 0.25
_SCORE_PER_UTILITY = 12.0

_VERBS = (
    "fix",
    "sell",
    "paint",
    "clean",
    "move",
    "choose",
    "plan",
    "repair",
    "share",
    "store",
    "build",
    "borrow",
    "change",
    "keep",
    "return",
)
_OBJECTS = ("boat", "garden", "roof", "letter", "horse", "kitchen", "bridge", "market stall", "wedding", "harvest", "school bag", "old radio", "stone wall", "bicycle", "winter coat", "well", "fishing net", "tea house", "orchard", "map")  # fmt: skip
_QUESTIONS = ("how should i {verb} the {object} ?", "what is a good way to {verb} the {object} ?", "my neighbour wants me to {verb} the {object} , what now ?")  # fmt: skip
_ADVICE = (
    "take the {object} and {verb} it in the morning",
    "{verb} the {object} with care",
    "to {verb} the {object} you need a day",
)


@dataclass(frozen=True)
class World:
    """The planted truth: communities and their preferences over attributes, utility units."""

    preferences: dict[str, np.ndarray]
    """Community -> θ, in the order of ATTRIBUTES; the majority first."""

    @property
    def minorities(self) -> list[str]:
        """All communities but the majority."""
        return [community for community in self.preferences if community != MAJORITY]

    def turned_attributes(self, community: str) -> list[str]:
        """Where a community's preference is the opposite of the majority's."""
        differs = np.sign(self.preferences[community]) != np.sign(self.preferences[MAJORITY])
        return [attribute for attribute, turned in zip(ATTRIBUTES, differs, strict=True) if turned]

    def utility(self, text: str, community: str) -> float:
        """True utility of a response for a community."""
        return float(self.preferences[community] @ attributes(text))


def world(config: AtlasConfig, *, seed: int) -> World:
    """The communities of a seed: each minority turns the majority's preference on some attributes of its own."""
    random = np.random.default_rng([seed, 0])
    preferences = {MAJORITY: _MAJORITY_PREFERENCES}
    free = np.arange(len(ATTRIBUTES))
    for index, community in enumerate(MINORITIES[: config.num_minorities]):
        _, turned = config.of_minority(index)
        theta = _MAJORITY_PREFERENCES.copy()
        chosen = random.choice(free, size=turned, replace=False)
        theta[chosen] *= -1
        if config.disjoint_turns:
            free = np.setdiff1d(free, chosen)
        preferences[community] = theta
    return World(preferences)


def attributes(text: str) -> np.ndarray:
    """φ(y), shape (attributes,): +1, 0 or -1 by the markers that the text holds more of."""
    lower = text.lower()
    counts = [
        [sum(phrase in lower for phrase in phrases) for phrases in MARKERS[attribute]] for attribute in ATTRIBUTES
    ]
    return np.array([np.sign(shown - opposite) for shown, opposite in counts], dtype=np.float64)


def read(config: AtlasConfig, *, seed: int, min_score_gap: float) -> Dataset:
    """Draw the world of this seed: its raters, their ratings, and the truth about every pair and response."""
    atlas = world(config, seed=seed)
    builder = DatasetBuilder("atlas")
    prompts = _prompts(config.num_prompts, np.random.default_rng([seed, 1]))
    truth: dict[str, dict] = {}
    for index, community in enumerate(atlas.preferences):
        size = config.majority_annotators if community == MAJORITY else config.of_minority(index - 1)[0]
        for annotator in range(size):
            random = np.random.default_rng([seed, 2, index, annotator])
            _rate(config, atlas, community, f"{community}-{annotator}", prompts, random, builder, truth, min_score_gap)
    dataset = builder.build(pair_truth=table(truth.values(), ATLAS_PAIR_TRUTH))
    return dataset


def _rate(
    config: AtlasConfig,
    atlas: World,
    community: str,
    annotator_id: str,
    prompts: Sequence[tuple[str, str, str]],
    random: np.random.Generator,
    builder: DatasetBuilder,
    truth: dict[str, dict],
    min_score_gap: float,
) -> None:
    """One annotator's interactions: draw, rate, pair, label."""
    taste = atlas.preferences[community] + random.normal(0, _TASTE, len(ATTRIBUTES))
    for number, prompt in enumerate(random.choice(len(prompts), size=config.interactions_per_annotator, replace=False)):
        question, verb, thing = prompts[prompt]
        is_outlier = community != MAJORITY and random.random() < config.outlier_rate
        responses = _responses(config.responses_per_interaction, verb, thing, random)
        own = np.array([atlas.utility(response, community) for response in responses])
        majority = np.array([atlas.utility(response, MAJORITY) for response in responses])
        if is_outlier:
            rated = -2 * (own + majority)
        else:
            rated = np.array([taste @ attributes(response) for response in responses])
            rated = rated + random.normal(0, _RATING_NOISE, len(responses))
            if random.random() < config.noise_rate:
                rated = random.permutation(rated)
        scores = np.clip(np.rint(50 + _SCORE_PER_UTILITY * rated), 1, 100)
        context = ContextIds([{"role": "user", "content": question}])
        prompt_id = content_id(question)
        interaction_id = content_id("atlas", annotator_id, number)
        builder.ledger.rows_read += len(responses)
        builder.ledger.rows_used += len(responses)
        ids = builder.add_responses(
            context=context, responses=responses, interaction_id=interaction_id, prompt_id=prompt_id
        )
        for chosen, rejected in _ordered_pairs(scores, min_score_gap, builder):
            pair_id = builder.add_pair(
                interaction_id=interaction_id,
                community=community,
                annotator_id=annotator_id,
                prompt_id=prompt_id,
                chosen_id=ids[chosen],
                rejected_id=ids[rejected],
                score_chosen=float(scores[chosen]),
                score_rejected=float(scores[rejected]),
            )
            gap, majority_gap = own[chosen] - own[rejected], majority[chosen] - majority[rejected]
            truth[pair_id] = {
                "pair_id": pair_id,
                "kind": _kind(gap, majority_gap, is_outlier=is_outlier),
                "utility_gap": float(gap),
                "majority_utility_gap": float(majority_gap),
            }


def _kind(gap: float, majority_gap: float, *, is_outlier: bool) -> str:
    if gap > 0:
        return "agreement" if majority_gap > 0 else "culture"
    return "outlier" if is_outlier and majority_gap <= 0 else "noise"


def _ordered_pairs(scores: np.ndarray, min_gap: float, builder: DatasetBuilder) -> Iterator[tuple[int, int]]:
    """(chosen, rejected) positions of all pairs whose scores differ by more than `min_gap`; ties are counted."""
    for first in range(len(scores)):
        for second in range(first + 1, len(scores)):
            if abs(scores[first] - scores[second]) <= min_gap:
                builder.ledger.excluded["ties (pairs)"] += 1
            else:
                yield (first, second) if scores[first] > scores[second] else (second, first)


def _responses(number: int, verb: str, thing: str, random: np.random.Generator) -> list[str]:
    """Distinct responses: an advice and, per attribute, nothing or one of its markers."""
    found: dict[str, None] = {}
    while len(found) < number:
        sentences = [random.choice(_ADVICE).format(verb=verb, object=thing)]
        for attribute in ATTRIBUTES:
            side = random.choice([-1, 0, 1], p=[0.4, 0.2, 0.4])
            if side:
                sentences.append(str(random.choice(MARKERS[attribute][0 if side > 0 else 1])))
        found[" . ".join(random.permutation(sentences)) + " ."] = None
    return list(found)


def _prompts(number: int, random: np.random.Generator) -> list[tuple[str, str, str]]:
    """(question, verb, object), distinct while the grammar lasts (900)."""
    every = [(question, verb, thing) for question in _QUESTIONS for verb in _VERBS for thing in _OBJECTS]
    chosen = random.permutation(len(every))[:number]
    return [
        (every[index][0].format(verb=every[index][1], object=every[index][2]), every[index][1], every[index][2])
        for index in chosen
    ]
