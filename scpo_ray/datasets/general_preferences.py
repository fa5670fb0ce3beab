"""General preferences, for the global model: HH-RLHF transcripts, and DSP's `text`/`score` lists of them.

Two forms of transcript are known: "\\n\\nHuman: ...\\n\\nAssistant: ..." (HH-RLHF) and "## Human:\\n...\\n\\n##
Assistant:\\n..." (DSP's WebGPT comparisons).
"""

import re
from dataclasses import dataclass
from itertools import chain
from typing import Any

from scpo_ray.config import GeneralPreferencesConfig
from scpo_ray.datasets.base import Dataset, DatasetBuilder
from scpo_ray.datasets.files import MalformedRow, SourceRow, number_value, parsed_rows, read_rows, required, text_value
from scpo_ray.errors import ConfigError
from scpo_ray.records import ContextIds, Message, content_id

ROLES = {"Human": "user", "Assistant": "assistant"}
DIALOGUE = re.compile(r"\n\n(Human|Assistant):")
HEADED = re.compile(r"(?:^|\n)## (Human|Assistant):[ \t]*\n")


@dataclass(frozen=True)
class _Comparison:
    context: list[Message]
    chosen: str
    rejected: str
    scores: tuple[float, float] | None


def read(config: GeneralPreferencesConfig, *, min_score_gap: float) -> Dataset:
    """Every comparison as one pair of `config.community`, without annotators.

    Raises:
        ConfigError: no path is given.
        DataError: a file is missing or unreadable.
    """
    if not config.paths:
        raise ConfigError("prepare.general_preferences.paths: no path given; name at least one file or hub data set")
    builder = DatasetBuilder("general_preferences")
    rows = chain.from_iterable([read_rows(path) for path in config.paths])
    for _, comparison in parsed_rows(rows, parse=_parse, ledger=builder.ledger):
        builder.ledger.rows_used += 1
        if comparison.scores is not None and comparison.scores[0] - comparison.scores[1] <= min_score_gap:
            builder.ledger.excluded["tied pairs"] += 1
        else:
            _add(builder, comparison, config.community)
    return builder.build()


def _add(builder: DatasetBuilder, comparison: _Comparison, community: str) -> None:
    context = ContextIds(comparison.context)
    prompt_id = context.context_id()
    interaction_id = content_id("general_preferences", prompt_id, community)
    chosen_id, rejected_id = builder.add_responses(
        context=context,
        responses=(comparison.chosen, comparison.rejected),
        interaction_id=interaction_id,
        prompt_id=prompt_id,
    )
    score_chosen, score_rejected = comparison.scores or (None, None)
    builder.add_pair(
        interaction_id=interaction_id,
        community=community,
        annotator_id=None,
        prompt_id=prompt_id,
        chosen_id=chosen_id,
        rejected_id=rejected_id,
        score_chosen=score_chosen,
        score_rejected=score_rejected,
    )


def _parse(row: SourceRow) -> _Comparison:
    transcripts, scores = _transcripts(row.fields)
    context, chosen = _split(transcripts[0])
    other_context, rejected = _split(transcripts[1])
    if context != other_context:
        raise MalformedRow("the two transcripts differ before the last answer", transcripts[1][-100:])
    if chosen == rejected:
        raise MalformedRow("both answers are the same", chosen)
    return _Comparison(context, chosen, rejected, scores)


def _transcripts(fields: dict[str, Any]) -> tuple[tuple[str, str], tuple[float, float] | None]:
    """Chosen and rejected transcript, with their scores where there are any."""
    if fields.get("text") is None:
        chosen, rejected = required(fields, "chosen"), required(fields, "rejected")
        return (text_value(chosen, "chosen"), text_value(rejected, "rejected")), None
    texts, scores = required(fields, "text"), required(fields, "score")
    if not isinstance(texts, list) or len(texts) != 2:
        raise MalformedRow("text is not a list of two", texts)
    if not isinstance(scores, list) or len(scores) != 2:
        raise MalformedRow("score is not a list of two", scores)
    first, second = (text_value(text, "text") for text in texts)
    score_first, score_second = (number_value(score, "score") for score in scores)
    if score_second > score_first:
        return (second, first), (score_second, score_first)
    return (first, second), (score_first, score_second)


def _split(transcript: str) -> tuple[list[Message], str]:
    """Context and last answer. Two context messages in a row by one speaker are one; blanks around messages go."""
    turns = HEADED if transcript.lstrip().startswith("## ") else DIALOGUE
    lead, *parts = turns.split("\n\n" + transcript.strip())
    if lead.strip() or not parts:
        raise MalformedRow("the transcript does not begin with a speaker", transcript[:100])
    messages: list[Message] = []
    *said, (last_speaker, answer) = zip(parts[::2], parts[1::2], strict=True)
    for speaker, text in said:
        content = text_value(text, "a message").strip()
        if messages and messages[-1]["role"] == ROLES[speaker]:
            messages[-1]["content"] += "\n\n" + content
        else:
            messages.append({"role": ROLES[speaker], "content": content})
    if last_speaker != "Assistant":
        raise MalformedRow("the transcript does not end with an answer", transcript[-100:])
    if not messages or messages[-1]["role"] != "user":
        raise MalformedRow("the last answer follows no question", transcript[-100:])
    return messages, text_value(answer, "the last answer").strip()
