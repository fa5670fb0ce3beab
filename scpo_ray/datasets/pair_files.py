"""Preference pairs from files: JSONL, JSON, Parquet or the hub, in the columns that preference tuners know.

An interaction is everything that one annotator of one community said about one context.
"""

import difflib
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import Any

from scpo_ray.config import PairFilesConfig
from scpo_ray.datasets.base import Dataset, DatasetBuilder
from scpo_ray.datasets.files import (
    MalformedRow,
    SourceRow,
    messages_value,
    number_value,
    parsed_rows,
    read_rows,
    required,
    text_value,
)
from scpo_ray.errors import ConfigError, DataError
from scpo_ray.records import ContextIds, Message, content_id, context_id

COLUMNS = (
    "prompt",
    "messages",
    "chosen",
    "rejected",
    "community",
    "annotator_id",
    "prompt_id",
    "score_chosen",
    "score_rejected",
)
IGNORED_COLUMNS = ("chosen_id", "rejected_id")  # the source's own names; ours are hashes of the content


@dataclass(frozen=True)
class _Vote:
    context: list[Message]
    chosen: str
    rejected: str
    community: str
    annotator_id: str | None
    prompt_id: str
    score_chosen: float | None
    score_rejected: float | None

    @property
    def score_gap(self) -> float | None:
        """The scores' difference, where the source has scores."""
        if self.score_chosen is None or self.score_rejected is None:
            return None
        return self.score_chosen - self.score_rejected


def read(config: PairFilesConfig, *, min_score_gap: float) -> Dataset:
    """Every row as one pair.

    A repeated vote of the same annotator counts once; rows without an annotator are counted each, since they may be
    the votes of several people.

    Raises:
        ConfigError: no path is given.
        DataError: a file is missing or unreadable, or has an unknown column.
    """
    if not config.paths:
        raise ConfigError("prepare.pair_files.paths: no path given; name at least one file or hub data set")
    builder = DatasetBuilder("pair_files")
    rows = chain.from_iterable([read_rows(path) for path in config.paths])
    repeats: Counter[tuple[str, str, str]] = Counter()
    for _, vote in parsed_rows(rows, parse=_parse, ledger=builder.ledger):
        builder.ledger.rows_used += 1
        if vote.score_gap is not None and vote.score_gap <= min_score_gap:
            builder.ledger.excluded["tied pairs"] += 1
        else:
            _add(builder, vote, repeats)
    return builder.build()


def _add(builder: DatasetBuilder, vote: _Vote, repeats: Counter[tuple[str, str, str]]) -> None:
    context = ContextIds(vote.context)
    interaction_id = content_id("pair_files", context.context_id(), vote.community, vote.annotator_id)
    chosen_id, rejected_id = builder.add_responses(
        context=context,
        responses=(vote.chosen, vote.rejected),
        interaction_id=interaction_id,
        prompt_id=vote.prompt_id,
    )
    occurrence = 0
    if vote.annotator_id is None:
        occurrence = repeats[interaction_id, chosen_id, rejected_id]
        repeats[interaction_id, chosen_id, rejected_id] += 1
    builder.add_pair(
        interaction_id=interaction_id,
        community=vote.community,
        annotator_id=vote.annotator_id,
        prompt_id=vote.prompt_id,
        chosen_id=chosen_id,
        rejected_id=rejected_id,
        score_chosen=vote.score_chosen,
        score_rejected=vote.score_rejected,
        occurrence=occurrence,
    )


def _parse(row: SourceRow) -> _Vote:
    _check_columns(row)
    fields = row.fields
    context, chosen, rejected = _texts(fields)
    if chosen == rejected:
        raise MalformedRow("chosen and rejected are the same", chosen)
    score_chosen, score_rejected = _scores(fields)
    return _Vote(
        context=context,
        chosen=chosen,
        rejected=rejected,
        community=text_value(required(fields, "community"), "community").strip(),
        annotator_id=_identifier(fields, "annotator_id"),
        prompt_id=_identifier(fields, "prompt_id") or context_id(context),
        score_chosen=score_chosen,
        score_rejected=score_rejected,
    )


def _check_columns(row: SourceRow) -> None:
    for column in row.fields:
        if column not in COLUMNS and column not in IGNORED_COLUMNS:
            nearest = difflib.get_close_matches(str(column), COLUMNS, n=1)
            hint = f"did you mean {nearest[0]!r}? " if nearest else ""
            raise DataError(
                f"{row.file}:{row.line}: unknown column {column!r}; {hint}known are {', '.join(COLUMNS)}; "
                "rename or drop it"
            )


def _texts(fields: dict[str, Any]) -> tuple[list[Message], str, str]:
    """Context, chosen and rejected; a message list may carry its context before the answer."""
    context = _context(fields)
    chosen_context, chosen = _answer(required(fields, "chosen"), "chosen")
    rejected_context, rejected = _answer(required(fields, "rejected"), "rejected")
    contexts = [given for given in (context, chosen_context, rejected_context) if given]
    if not contexts:
        raise MalformedRow("no prompt and no messages", sorted(fields))
    if any(given != contexts[0] for given in contexts):
        raise MalformedRow("the contexts of prompt, chosen and rejected differ", [given[-1] for given in contexts])
    if contexts[0][-1]["role"] == "assistant":
        raise MalformedRow("the context ends with the assistant's message", contexts[0][-1]["content"])
    return contexts[0], chosen, rejected


def _context(fields: dict[str, Any]) -> list[Message] | None:
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if prompt is not None and messages is not None:
        raise MalformedRow("both prompt and messages are given", prompt)
    if messages is not None:
        return messages_value(messages, "messages")
    if isinstance(prompt, str):
        return [{"role": "user", "content": text_value(prompt, "prompt")}]
    return None if prompt is None else messages_value(prompt, "prompt")


def _answer(value: object, name: str) -> tuple[list[Message], str]:
    if isinstance(value, str):
        return [], text_value(value, name)
    *context, answer = messages_value(value, name)
    if answer["role"] != "assistant":
        raise MalformedRow(f"{name} does not end with the assistant's message", answer)
    return context, answer["content"]


def _identifier(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None if value is None else text_value(value, name)


def _scores(fields: dict[str, Any]) -> tuple[float | None, float | None]:
    values = fields.get("score_chosen"), fields.get("score_rejected")
    if values == (None, None):
        return None, None
    if None in values:
        raise MalformedRow("only one of score_chosen and score_rejected is given", values)
    score_chosen, score_rejected = number_value(values[0], "score_chosen"), number_value(values[1], "score_rejected")
    if score_chosen < score_rejected:
        raise MalformedRow("score_chosen is below score_rejected", values)
    return score_chosen, score_rejected
