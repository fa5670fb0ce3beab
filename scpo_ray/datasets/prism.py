"""PRISM (Kirk et al. 2024): conversations with language models, rated 1-100 by participants of a survey.

One interaction is one turn: a prompt with K responses that one participant scored. Its context is the conversation so
far (the earlier prompts with the responses that the conversation went on with) and the prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from scpo_ray.config import CommunityField, PrismConfig
from scpo_ray.datasets.base import Dataset, DatasetBuilder, RowLedger
from scpo_ray.datasets.files import (
    MalformedRow,
    SourceRow,
    looks_local,
    number_value,
    parsed_rows,
    read_rows,
    required,
    text_value,
)
from scpo_ray.errors import DataError
from scpo_ray.records import ContextIds, Message, content_id

EMPTY_RESPONSE = "EMPTY STRING"
UNSTATED = "prefer not to say"
SURVEY_PATHS: dict[CommunityField, tuple[tuple[str, ...], ...]] = {
    "reside_country": (("location", "reside_country"),),
    "birth_country": (("location", "birth_country"),),
    "reside_subregion": (("location", "reside_subregion"),),
    "religion": (("religion", "simplified"),),
    "ethnicity": (("ethnicity", "simplified"),),
    "gender": (("gender",),),
    "age": (("age",),),
    "education": (("education",),),
    "employment": (("employment_status",), ("employment",)),
}
"""Where the survey keeps each community field; the first path that exists counts."""


@dataclass(slots=True)
class _Utterance:
    file: str
    line: int
    user_id: str
    conversation_id: str
    interaction_id: str
    turn: int
    prompt: str
    response: str
    score: float
    is_chosen: bool
    is_balanced: bool
    model: str
    """Empty where the source does not say."""

    @property
    def turn_key(self) -> tuple[str, str, str]:
        """What all responses of a turn have in common."""
        return self.user_id, self.interaction_id, self.prompt


Conversation = dict[int, list[_Utterance]]


def read(config: PrismConfig, *, min_score_gap: float) -> Dataset:
    """Every usable utterance as a response, and the pairs of every turn.

    Rows are utterances; a survey row is counted only when it is malformed. Responses of annotators who did not state
    their community and, with `balanced_subset`, those outside the subset are excluded by design.

    Raises:
        DataError: the folder or one of its files is missing or unreadable.
    """
    try:
        return _read(config, min_score_gap, in_order=True)
    except _Scattered:
        return _read(config, min_score_gap, in_order=False)


class _Scattered(Exception):
    """A conversation goes on after others: all have to be held until the end. Never seen by callers."""


def _read(config: PrismConfig, min_score_gap: float, *, in_order: bool) -> Dataset:
    survey_rows, utterance_rows = _sources(config.path)
    builder = DatasetBuilder("prism")
    communities = _communities(survey_rows, config.community_field, builder.ledger)
    for turns in _conversations(utterance_rows, config, communities, builder.ledger, in_order=in_order):
        _add_conversation(builder, turns, communities, config, min_score_gap)
    return builder.build()


def _sources(path: str) -> tuple[Iterator[SourceRow], Iterator[SourceRow]]:
    """Survey rows and utterance rows."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return read_rows(str(folder / "survey.jsonl")), read_rows(str(folder / "utterances.jsonl"))
    if folder.is_file():
        raise DataError(f"{path}: is a file; name the folder that holds survey.jsonl and utterances.jsonl")
    if looks_local(path):
        raise DataError(
            f"{path}: no such folder; name one that holds survey.jsonl and utterances.jsonl, or a hub data set "
            "such as HannahRoseKirk/prism-alignment"
        )
    return read_rows(path, subset="survey"), read_rows(path, subset="utterances")


def _communities(rows: Iterator[SourceRow], field: CommunityField, ledger: RowLedger) -> dict[str, str | None]:
    """Each participant's community; None where it was not stated. Malformed survey rows count as read and rejected."""
    survey = RowLedger(ledger.source)
    communities: dict[str, str | None] = {}

    def parse(row: SourceRow) -> tuple[str, str | None]:
        user_id = text_value(required(row.fields, "user_id"), "user_id")
        if user_id in communities:
            raise MalformedRow("user_id repeats", user_id)
        return user_id, _community(row.fields, field)

    for _, (user_id, community) in parsed_rows(rows, parse=parse, ledger=survey):
        communities[user_id] = community
    ledger.rejected.extend(survey.rejected)
    ledger.rows_read += len(survey.rejected)
    return communities


def _community(fields: dict[str, Any], field: CommunityField) -> str | None:
    for path in SURVEY_PATHS[field]:
        value: Any = fields
        for name in path:
            if not isinstance(value, dict) or name not in value:
                break
            value = value[name]
        else:
            if value is None or value == "":
                return None
            name = text_value(value, field).strip()
            return None if name.lower() == UNSTATED else name
    raise MalformedRow(f"no {'.'.join(SURVEY_PATHS[field][0])}", sorted(fields))


def _conversations(
    rows: Iterator[SourceRow],
    config: PrismConfig,
    communities: dict[str, str | None],
    ledger: RowLedger,
    *,
    in_order: bool,
) -> Iterator[Conversation]:
    """Utterances by turn, a conversation at a time. Those kept are not counted as used yet: their history may be broken.

    Args:
        in_order: each conversation's rows stand together, as in PRISM's file, so that only one is held.

    Raises:
        _Scattered: they do not.
    """
    conversations: dict[str, Conversation] = {}
    ended: set[str] = set()

    def parse(row: SourceRow) -> _Utterance:
        utterance = _utterance(row, config)
        if utterance.user_id not in communities:
            raise MalformedRow("user_id has no usable row in the survey", utterance.user_id)
        turn = conversations.get(utterance.conversation_id, {}).get(utterance.turn)
        if turn and turn[0].turn_key != utterance.turn_key:
            raise MalformedRow(
                f"user_id, interaction_id or user_prompt differs from line {turn[0].line} of the same turn",
                utterance.turn_key,
            )
        return utterance

    for _, utterance in parsed_rows(rows, parse=parse, ledger=ledger):
        if config.balanced_subset and not utterance.is_balanced:
            ledger.rows_used += 1
            ledger.excluded["responses outside the balanced subset"] += 1
            continue
        if communities[utterance.user_id] is None:
            ledger.rows_used += 1
            ledger.excluded[f"responses of annotators who did not state their {config.community_field}"] += 1
            continue
        name = utterance.conversation_id
        if in_order and name not in conversations:
            if name in ended:
                raise _Scattered
            yield from conversations.values()
            conversations.clear()
            ended.add(name)
        conversations.setdefault(name, {}).setdefault(utterance.turn, []).append(utterance)
    yield from conversations.values()


def _utterance(row: SourceRow, config: PrismConfig) -> _Utterance:
    fields = row.fields
    user_id, conversation_id, interaction_id, prompt, response = (
        text_value(required(fields, name), name)
        for name in ("user_id", "conversation_id", "interaction_id", "user_prompt", "model_response")
    )
    if response.strip() == EMPTY_RESPONSE:
        raise MalformedRow(f"model_response is {EMPTY_RESPONSE}", response)
    turn = required(fields, "turn")
    if isinstance(turn, bool) or not isinstance(turn, int) or turn < 0:
        raise MalformedRow("turn is not a whole number from 0", turn)
    score = number_value(required(fields, "score"), "score")
    if not 1 <= score <= 100:
        raise MalformedRow("score is outside 1-100", score)
    return _Utterance(
        file=row.file,
        line=row.line,
        user_id=user_id,
        conversation_id=conversation_id,
        interaction_id=interaction_id,
        turn=turn,
        prompt=prompt,
        response=response,
        score=score,
        is_chosen=_flag(fields, "if_chosen"),
        is_balanced=config.balanced_subset and _flag(fields, "included_in_balanced_subset"),
        model=str(fields.get("model_name") or ""),
    )


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = required(fields, name)
    if not isinstance(value, bool):
        raise MalformedRow(f"{name} is not true or false", value)
    return value


def _add_conversation(
    builder: DatasetBuilder,
    turns: Conversation,
    communities: dict[str, str | None],
    config: PrismConfig,
    min_score_gap: float,
) -> None:
    history: list[Message] = []
    num_known = 0  # turns whose prompt and continued response are in the history
    for turn in sorted(turns):
        utterances = turns[turn]
        if config.history == "full" and turn != num_known:
            _reject(
                builder.ledger, utterances, f"the history is broken: turn {num_known} has no usable chosen response"
            )
            continue
        question: Message = {"role": "user", "content": utterances[0].prompt}
        chosen = _continued(utterances, turns.get(turn + 1, []), builder.ledger)
        community = communities[utterances[0].user_id]
        assert community is not None  # unstated ones were excluded on reading
        context = [*history, question] if config.history == "full" else [question]
        _add_turn(
            builder,
            utterances,
            context=context,
            community=community,
            chosen=chosen,
            config=config,
            min_score_gap=min_score_gap,
        )
        if chosen is not None:
            history += [question, {"role": "assistant", "content": chosen.response}]
            num_known += 1


def _reject(ledger: RowLedger, utterances: Sequence[_Utterance], reason: str) -> None:
    for utterance in utterances:
        ledger.reject(file=utterance.file, line=utterance.line, reason=reason, value=utterance.conversation_id)


def _continued(
    utterances: Sequence[_Utterance], following: Sequence[_Utterance], ledger: RowLedger
) -> _Utterance | None:
    """The response that the conversation went on with.

    PRISM marks several in some turns; then it is the one of the next turn's model, then the higher score, then the
    earlier row.
    """
    marked = [utterance for utterance in utterances if utterance.is_chosen]
    if len(marked) > 1:
        ledger.suspect(
            file=marked[1].file,
            line=marked[1].line,
            reason=f"{len(marked)} chosen responses in one turn",
            value=marked[1].interaction_id,
        )
    next_models = {utterance.model for utterance in following} - {""}
    return max(marked, key=lambda utterance: (utterance.model in next_models, utterance.score), default=None)


def _add_turn(
    builder: DatasetBuilder,
    utterances: Sequence[_Utterance],
    *,
    context: list[Message],
    community: str,
    chosen: _Utterance | None,
    config: PrismConfig,
    min_score_gap: float,
) -> None:
    """The turn's responses, and its pairs by `config.pairing`."""
    interaction_id = content_id("prism", utterances[0].interaction_id)
    ids_of_context = ContextIds(context)
    prompt_id = ids_of_context.context_id()
    builder.ledger.rows_used += len(utterances)
    found = builder.add_responses(
        context=ids_of_context,
        responses=[utterance.response for utterance in utterances],
        interaction_id=interaction_id,
        prompt_id=prompt_id,
    )
    ids = {utterance.line: identifier for utterance, identifier in zip(utterances, found, strict=True)}
    for better, worse in _preferences(utterances, chosen, config, min_score_gap, builder.ledger):
        if ids[better.line] == ids[worse.line]:
            builder.ledger.excluded["pairs of equal responses"] += 1
            continue
        builder.add_pair(
            interaction_id=interaction_id,
            community=community,
            annotator_id=better.user_id,
            prompt_id=prompt_id,
            chosen_id=ids[better.line],
            rejected_id=ids[worse.line],
            score_chosen=better.score,
            score_rejected=worse.score,
        )


def _preferences(
    utterances: Sequence[_Utterance],
    chosen: _Utterance | None,
    config: PrismConfig,
    min_score_gap: float,
    ledger: RowLedger,
) -> Iterator[tuple[_Utterance, _Utterance]]:
    """(better, worse) of a turn; what makes no pair is counted as excluded."""
    if len(utterances) == 1:
        ledger.excluded["interactions with one usable response"] += 1
    elif config.pairing == "chosen_vs_rest" and chosen is None:
        ledger.excluded["interactions without a chosen response"] += 1
    elif config.pairing == "chosen_vs_rest":
        yield from ((chosen, other) for other in utterances if chosen is not None and other is not chosen)
    else:
        for first, second in combinations(utterances, 2):
            if abs(first.score - second.score) <= min_score_gap:
                ledger.excluded["tied pairs"] += 1
            else:
                yield (first, second) if first.score > second.score else (second, first)
