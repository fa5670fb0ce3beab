"""Which prompts a policy is trained on, in which order, and which it never sees."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scpo_ray.artifacts import RunDirectory
from scpo_ray.errors import DataError
from scpo_ray.formatting import Formatter
from scpo_ray.ppo.records import Prompt
from scpo_ray.records import Message, content_id, context_id


@dataclass(frozen=True)
class PromptSet:
    """Prompts of a run by use."""

    train: list[Prompt]
    test: list[Prompt]
    num_too_long: int
    """Left out, since prompt and response would not fit the context."""

    def of(self, communities: Collection[str] | None) -> list[Prompt]:
        """Training prompts of some communities; of all when unset. The same context counts once, unless routed by community.

        Raises:
            DataError: there are none.
        """
        chosen = [prompt for prompt in self.train if communities is None or prompt.community in communities]
        if not chosen:
            names = "any community" if communities is None else ", ".join(communities)
            raise DataError(
                f"{names}: no training prompt that leaves room for a response ({self.num_too_long} are too long); lower "
                "ppo.max_response_tokens, raise format.max_tokens, or set ppo.prompts to all"
            )
        return chosen


def conversation_groups(directory: RunDirectory) -> dict[str, str]:
    """Chosen response's id -> the group of its conversation's first prompt, over all prepared pairs.

    A conversation is on one side as a whole: a later turn's context holds the earlier prompts and their answers.
    """
    pairs = directory.read_table("prepared/pairs.parquet", columns=["prompt_group", "chosen_id"])
    contexts = contexts_of(directory, pairs["chosen_id"])
    first_prompt = {identifier: _first_prompt(context) for identifier, context in contexts.items()}
    group_of: dict[str, str] = {}
    for group, identifier in zip(pairs["prompt_group"].to_pylist(), pairs["chosen_id"].to_pylist(), strict=True):
        if len(contexts[identifier]) == 1:  # near-duplicates of opening prompts share their group
            group_of[first_prompt[identifier]] = group
    return {identifier: group_of.get(text, content_id("group", text)) for identifier, text in first_prompt.items()}


def _first_prompt(context: Sequence[Message]) -> str:
    return next((message["content"] for message in context if message["role"] == "user"), context[0]["content"])


def is_test_group(prompt_group: str, *, salt: str, fraction: float) -> bool:
    """Whether policies are measured on a group of prompts and never trained on it; depends on its name alone."""
    return int(content_id("policy", salt, prompt_group), 16) / 2**128 < fraction


def load(
    directory: RunDirectory,
    formatter: Formatter,
    *,
    max_prompt_tokens: int,
    salt: str,
    test_fraction: float,
) -> PromptSet:
    """Every distinct (community, context) of the prepared pairs. Training prompts come from training pairs alone.

    Raises:
        DataError: no prompt is left to be measured on.
    """
    pairs = directory.read_table("prepared/pairs.parquet", columns=["community", "chosen_id", "split"]).sort_by(
        [("community", "ascending"), ("chosen_id", "ascending")]
    )
    contexts, groups = contexts_of(directory, pairs["chosen_id"]), conversation_groups(directory)
    found: dict[tuple[str, str], tuple[dict, bool]] = {}
    for row in pairs.to_pylist():
        is_test = is_test_group(groups[row["chosen_id"]], salt=salt, fraction=test_fraction)
        if is_test or row["split"] == "train":
            found.setdefault((row["community"], context_id(contexts[row["chosen_id"]])), (row, is_test))
    rows = [row for row, _ in found.values()]
    token_ids = formatter.prompts([contexts[row["chosen_id"]] for row in rows])
    prompts: dict[bool, list[Prompt]] = {False: [], True: []}
    for (row, is_test), ids in zip(found.values(), token_ids, strict=True):
        if len(ids) <= max_prompt_tokens:
            context = contexts[row["chosen_id"]]
            prompt = Prompt(context_id(context), groups[row["chosen_id"]], row["community"], context, tuple(ids))
            prompts[is_test].append(prompt)
    if not prompts[True]:
        raise DataError(
            "ppo.test_prompt_fraction: no prompt is left to measure policies on; raise it, or give data with more prompts"
        )
    return PromptSet(prompts[False], prompts[True], len(rows) - len(prompts[False]) - len(prompts[True]))


def contexts_of(directory: RunDirectory, response_ids: pa.ChunkedArray) -> dict[str, list]:
    """Response id -> context."""
    table = directory.read_table(
        "prepared/responses.parquet",
        columns=["response_id", "context"],
        filters=pc.field("response_id").isin(pc.unique(response_ids)),
    )
    return dict(zip(table["response_id"].to_pylist(), table["context"].to_pylist(), strict=True))


def distinct_contexts(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The first prompt of each context, whatever its community."""
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        found.setdefault(context_id(prompt.context), prompt)
    return list(found.values())


def prompts_of_step(prompts: Sequence[Prompt], *, step: int, number: int, seed: int) -> list[Prompt]:
    """The prompts of a step: consecutive pieces of one endless stream of permutations, a function of (seed, step) alone."""
    found = []
    orders: dict[int, np.ndarray] = {}
    for place in range(step * number, (step + 1) * number):
        epoch, position = divmod(place, len(prompts))
        if epoch not in orders:
            orders[epoch] = np.random.default_rng([seed, 11, epoch]).permutation(len(prompts))
        found.append(prompts[orders[epoch][position]])
    return found


def request_seeds(*, seed: int, step: int, number: int) -> list[int]:
    """One sampling seed per response of a step."""
    return np.random.default_rng([seed, 13, step]).integers(2**31 - 1, size=number).tolist()


def canaries(prompts: Sequence[Prompt], *, number: int, max_tokens: int, vocab_size: int) -> list[list[int]]:
    """Fixed sequences: prompts, and tokens from all over the vocabulary, so that no row of the embedding goes unseen for long."""
    random = np.random.default_rng(17)
    found = []
    for index in range(number):
        prompt = list(prompts[index % len(prompts)].token_ids)
        drawn = random.integers(vocab_size, size=min(32, max(1, max_tokens - 1 - len(prompt)))).tolist()
        found.append([*prompt, *drawn][: max_tokens - 1])
    return found
