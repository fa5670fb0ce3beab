"""Which pairs a reader should see, and what planted pairs became of."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

_LONGEST_TEXT = 900


@dataclass(frozen=True)
class Example:
    """A pair with its texts and what was decided about it."""

    why: str
    context: tuple[tuple[str, str], ...]
    """(role, text) of every turn."""
    chosen: str
    rejected: str
    decision: Mapping
    """The row of the decisions table."""
    pair: Mapping
    """The row of the pairs table."""
    kind: str | None = None
    """What was planted, where that is known."""


@dataclass(frozen=True)
class PlantedRow:
    """What one strategy made of the training pairs of one planted kind."""

    kind: str
    strategy: str
    num_pairs: int
    kept_share: float
    mean_weight: float | None
    """Over the kept ones."""
    weight_share: float | None
    """Of all weight that the strategy gave out."""


KINDS = ("agreement", "culture", "noise", "outlier")

_REASONS: tuple[tuple[str, Callable[[Mapping], bool], Callable[[Mapping], float]], ...] = (
    (
        "Kept; the global model disagrees most",
        lambda row: row["kept"] and row["agreement"] < 0.5,
        lambda row: row["agreement"],
    ),
    (
        "Kept, but the lightest of those on which the global model agrees",
        lambda row: row["kept"] and row["agreement"] >= 0.5 and row["weight"] < 1,
        lambda row: row["weight"],
    ),
    ("Kept; the global model agrees most", lambda row: row["kept"], lambda row: -row["agreement"]),
    ("Dropped, just above the threshold", lambda row: not row["kept"], lambda row: row["agreement"]),
)


def choose_examples(
    decisions: Sequence[Mapping], *, number: int, interaction_of: Mapping[str, str]
) -> list[tuple[str, Mapping]]:
    """(why, decision) of up to `number` pairs: the reasons in turn, one pair per interaction, in a fixed order.

    Under SCPO the pairs on which the global model disagrees most are also the most down-weighted ones.
    """
    used: set[str] = set()
    queues = [
        [(why, row) for row in sorted(filter(fits, decisions), key=lambda row: (order(row), row["pair_id"]))]
        for why, fits, order in _REASONS
    ]
    picked = []
    for why, row in _in_turn(queues, used, interaction_of):
        if len(picked) == number:
            break
        picked.append((why, row))
    rank = {why: position for position, (why, _, _) in enumerate(_REASONS)}
    return sorted(picked, key=lambda item: rank[item[0]])


def _in_turn(
    queues: Sequence[list], used: set[str], interaction_of: Mapping[str, str]
) -> Iterator[tuple[str, Mapping]]:
    """One from each queue, again and again, skipping interactions that were shown."""

    def fresh(queue: list) -> Iterator[tuple[str, Mapping]]:
        for why, row in queue:
            interaction = interaction_of[row["pair_id"]]
            if interaction not in used:
                used.add(interaction)
                yield why, row

    for turn in zip_longest(*(fresh(queue) for queue in queues)):
        yield from (item for item in turn if item is not None)


def shortened(text: str) -> str:
    """The text, cut where it would fill the page."""
    return (
        text
        if len(text) <= _LONGEST_TEXT
        else f"{text[:_LONGEST_TEXT]} … [{len(text) - _LONGEST_TEXT:,} more characters]"
    )


def planted_rows(kind_of: Mapping[str, str], decisions: Sequence[Mapping], *, strategy: str) -> list[PlantedRow]:
    """Kept share, mean weight and share of all weight per planted kind; kinds without pairs are left out."""
    total = sum(row["weight"] for row in decisions)
    found = []
    for kind in KINDS:
        rows = [row for row in decisions if kind_of.get(row["pair_id"]) == kind]
        if rows:
            weights = [row["weight"] for row in rows if row["kept"]]
            found.append(
                PlantedRow(
                    kind,
                    strategy,
                    len(rows),
                    len(weights) / len(rows),
                    sum(weights) / len(weights) if weights else None,
                    sum(weights) / total if total else None,
                )
            )
    return found
