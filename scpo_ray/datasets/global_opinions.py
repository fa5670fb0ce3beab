"""GlobalOpinionQA (Durmus et al. 2023): how the people of each country share out over the answers of survey questions.

A question is the context, its answers are the responses, and of two answers the one with the larger share is chosen by
that country. There are no annotators.

Shares are of those with an opinion: refusals and what is no answer at all (a printed total) are dropped and the rest
is renormalised to 1, so that a country with many refusals is comparable with the others. Volunteered answers and bare
numbers of a scale stay in that total, but make no pairs: nobody was offered the former, and the latter mean nothing
without their scale. Several samples of one country (national, old, non-national) are averaged with equal weights,
since the source has no sample sizes.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from scpo_ray.config import GlobalOpinionsConfig
from scpo_ray.datasets.base import Dataset, DatasetBuilder, RowLedger
from scpo_ray.datasets.files import MalformedRow, SourceRow, number_value, parsed_rows, read_rows, required, text_value
from scpo_ray.records import ContextIds, content_id

PRINTED_DEFAULTDICT = re.compile(r"defaultdict\(<class 'list'>, *(\{.*\})\)", re.DOTALL)
NO_OPINION = re.compile(
    r"(dk\b|don.?t know|no answer|refused|missing\b|other missing|not (asked|available|applicable)|inap\b|total +n ?="
    r"|never heard of|haven.t heard)",
    re.IGNORECASE,
)
NOT_OFFERED = re.compile(r"\(vol\.?\)|volunteered|do not read|\(spontaneous\)", re.IGNORECASE)
CATCH_ALL = re.compile(r"others?( answers?)?", re.IGNORECASE)
BARE_NUMBER = re.compile(r"\d+([.,]\d+)?[+%]?")
SAMPLE = re.compile(r"\s*\([^()]*\bsample\)$", re.IGNORECASE)
COUNTRY_NAMES = {
    "Britain": "United Kingdom",
    "Great Britain": "United Kingdom",
    "Czech Rep.": "Czechia",
    "S. Africa": "South Africa",
    "S. Korea": "South Korea",
    "Taiwan ROC": "Taiwan",
}
"""Countries that the two surveys behind the data name differently, under the name that PRISM uses."""
DOMESTIC_SUBJECTS = {"India": re.compile(r"Indian National Con|Bharatiya Janata|Lok Sabha|Rajya Sabha")}
"""Parties and houses that surveys ask about in their own country only."""
SUM_TOLERANCE = 0.01
SHARE_DECIMALS = 9  # 0.4 - 0.3 is a gap of 0.1


@dataclass(frozen=True)
class _Question:
    text: str
    options: list[str]
    samples: dict[str, list[list[float]]]
    """Each country's distributions over the options, one per sample."""
    faults: list[tuple[str, str]] = field(default_factory=list)
    """(reason, country) of distributions that were left out."""
    doubts: list[tuple[str, str]] = field(default_factory=list)
    """(reason, country) of distributions that are used, but look wrong."""

    @property
    def offered(self) -> list[str]:
        """The options that can be chosen or rejected."""
        return [option for option in self.options if not _is_no_opinion(option) and _is_offered(option)]

    @property
    def num_samples(self) -> int:
        """Distributions over all countries."""
        return sum(map(len, self.samples.values()))


def read(config: GlobalOpinionsConfig, *, min_score_gap: float) -> Dataset:
    """Every two answers of a question whose shares in a country differ by `min_share_gap` or more, and by more than
    `min_score_gap`; `score_*` are the shares. Rows are questions.

    Raises:
        DataError: the file is missing or unreadable.
    """
    builder = DatasetBuilder("global_opinions")
    first_lines: dict[str, int] = {}
    for row, question in parsed_rows(read_rows(config.path), parse=_parse, ledger=builder.ledger):
        builder.ledger.rows_used += 1
        _note(builder.ledger, row, question, first_lines)
        _add_question(builder, question, config.min_share_gap, min_score_gap)
    return builder.build()


def _note(ledger: RowLedger, row: SourceRow, question: _Question, first_lines: dict[str, int]) -> None:
    """Enter what was left out and what looks wrong."""
    first_line = first_lines.setdefault(question.text, row.line)
    doubts = list(question.doubts)
    if first_line != row.line:
        doubts.append((f"the question repeats that of line {first_line}", question.text))
    for reason, value in (*question.faults, *doubts):
        ledger.suspect(file=row.file, line=row.line, reason=reason, value=value)
    num_opinions = sum(not _is_no_opinion(option) for option in question.options)
    _exclude(ledger, "distributions that do not fit the options", len(question.faults))
    _exclude(ledger, "samples averaged into another of their country", question.num_samples - len(question.samples))
    _exclude(ledger, "options that are no opinion", len(question.options) - num_opinions)
    _exclude(ledger, "options that were not offered, or bare numbers", num_opinions - len(question.offered))


def _exclude(ledger: RowLedger, reason: str, count: int) -> None:
    if count:
        ledger.excluded[reason] += count


def _add_question(builder: DatasetBuilder, question: _Question, min_share_gap: float, min_score_gap: float) -> None:
    """The offered options as responses, then every country's pairs."""
    if len(question.offered) < 2:
        builder.ledger.excluded["questions with fewer than two answers"] += 1
        return
    context = ContextIds([{"role": "user", "content": question.text}])
    prompt_id = context.context_id()
    interaction_ids = {country: content_id("global_opinions", question.text, country) for country in question.samples}
    first_interaction = next(iter(interaction_ids.values()))
    options = list(question.offered)
    found = builder.add_responses(
        context=context, responses=options, interaction_id=first_interaction, prompt_id=prompt_id
    )
    response_ids = dict(zip(options, found, strict=True))
    for country, samples in question.samples.items():
        shares = _shares(question.options, samples)
        builder.add_option_shares(
            community=country,
            prompt_id=prompt_id,
            shares={response_ids[option]: shares[option] for option in question.offered} if shares else {},
        )
        for chosen, rejected in _preferences(question.offered, shares, min_share_gap, min_score_gap, builder.ledger):
            builder.add_pair(
                interaction_id=interaction_ids[country],
                community=country,
                annotator_id=None,
                prompt_id=prompt_id,
                chosen_id=response_ids[chosen],
                rejected_id=response_ids[rejected],
                score_chosen=shares[chosen],
                score_rejected=shares[rejected],
            )


def _preferences(
    offered: Sequence[str],
    shares: Mapping[str, float],
    min_share_gap: float,
    min_score_gap: float,
    ledger: RowLedger,
) -> Iterator[tuple[str, str]]:
    """(chosen, rejected) options of one country; those too close make no pair and are counted as excluded."""
    if not shares:
        ledger.excluded["distributions without an opinion"] += 1
        return
    for first, second in combinations(offered, 2):
        chosen, rejected = (first, second) if shares[first] >= shares[second] else (second, first)
        share_gap = round(shares[chosen] - shares[rejected], SHARE_DECIMALS)
        if share_gap <= min_score_gap:
            ledger.excluded["tied pairs"] += 1
        elif share_gap < min_share_gap:
            ledger.excluded["pairs below min_share_gap"] += 1
        else:
            yield chosen, rejected


def _shares(options: Sequence[str], samples: Sequence[Sequence[float]]) -> dict[str, float]:
    """The samples' mean share of each option with an opinion, of all with an opinion; empty where nobody had one."""
    means = {
        option: sum(sample[index] for sample in samples) / len(samples)
        for index, option in enumerate(options)
        if not _is_no_opinion(option)
    }
    total = sum(means.values())
    return {option: mean / total for option, mean in means.items()} if total > 0 else {}


def _is_no_opinion(option: str) -> bool:
    return NO_OPINION.match(option) is not None


def _is_offered(option: str) -> bool:
    return not (NOT_OFFERED.search(option) or CATCH_ALL.fullmatch(option) or BARE_NUMBER.fullmatch(option))


def _country(name: str) -> str:
    plain = SAMPLE.sub("", name).strip()
    return COUNTRY_NAMES.get(plain, plain)


def _parse(row: SourceRow) -> _Question:
    text = text_value(required(row.fields, "question"), "question").strip()
    printed = _literal(required(row.fields, "options"), "options")
    if not isinstance(printed, list) or not printed:
        raise MalformedRow("options is not a list", row.fields["options"])
    selections = _literal(required(row.fields, "selections"), "selections")
    if not isinstance(selections, dict) or not selections:
        raise MalformedRow("selections names no country", row.fields["selections"])
    options = [text_value(_as_text(option), "an option").strip() for option in printed]
    question = _Question(text, list(dict.fromkeys(options)), {})
    _read_samples(question, options, selections)
    if not question.samples:
        raise MalformedRow(f"no distribution fits the options: {question.faults[0][0]}", question.faults[0][1])
    return question


def _as_text(option: object) -> object:
    return str(option) if isinstance(option, (int, float)) else option


def _literal(printed: object, name: str) -> object:
    """What was printed, read as Python literals only."""
    text = text_value(printed, name).strip()
    wrapped = PRINTED_DEFAULTDICT.fullmatch(text)
    try:
        return ast.literal_eval(wrapped[1] if wrapped else text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise MalformedRow(f"{name} cannot be read", text) from None


def _read_samples(question: _Question, options: Sequence[str], selections: Mapping[object, object]) -> None:
    """Fill the question's samples, faults and doubts. Shares of options with equal texts add up."""
    for name, printed in selections.items():
        try:
            country = _country(text_value(name, "a country"))
            shares = _distribution(printed, len(options))
        except MalformedRow as malformed:
            question.faults.append((malformed.reason, str(name)))
            continue
        merged = dict.fromkeys(question.options, 0.0)
        for option, share in zip(options, shares, strict=True):
            merged[option] += share
        question.samples.setdefault(country, []).append(list(merged.values()))
        if abs(sum(shares) - 1) > SUM_TOLERANCE:
            question.doubts.append((f"the shares sum to {sum(shares):.3f}", str(name)))
        for home, subject in DOMESTIC_SUBJECTS.items():
            if country != home and subject.search(question.text):
                question.doubts.append((f"a question about {home} only, attributed to another country", str(name)))


def _distribution(printed: object, num_options: int) -> list[float]:
    if not isinstance(printed, list) or len(printed) != num_options:
        num_shares = len(printed) if isinstance(printed, list) else 0
        raise MalformedRow(f"{num_shares} shares for {num_options} options", printed)
    shares = [number_value(share, "a share") for share in printed]
    if any(not 0 <= share <= 1 for share in shares):
        raise MalformedRow("a share is outside 0-1", printed)
    return shares
