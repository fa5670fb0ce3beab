"""What was to be reached, beside what the kept figures say: the first table of docs/performance.md."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

WORKLOADS = {
    "minilm_prism": "MiniLM, PRISM-shaped",
    "minilm_opinions": "MiniLM, GlobalOpinionQA",
    "minilm_votes": "MiniLM, votes",
    "deberta_prism": "DeBERTa, PRISM-shaped",
    "deberta_opinions": "DeBERTa, GlobalOpinionQA",
    "llama_prism": "a decoder, PRISM-shaped",
}
OURS, NARROW, PUBLISHED = "scpo_ray", "scpo_ray, bfloat16", "as published"

Rounds = Mapping[str, list[float]]
"""Way -> work per second in each round."""


@dataclass(frozen=True)
class Aim:
    """A ratio to something else, in every workload of a part."""

    part: str
    least: float
    name: str
    others: tuple[str, ...]
    """What it is a ratio to, in float32: the fastest of them."""
    others_narrow: tuple[str, ...]
    """And in bfloat16."""


AIMS = (
    Aim(
        "scoring",
        0.85,
        "0.85 of the bare forward pass",
        ("ceiling", "ceiling, two passes"),
        ("ceiling, bfloat16", "ceiling, two passes, bfloat16"),
    ),
    Aim("scoring", 6, "6 times the published way", (PUBLISHED,), (PUBLISHED,)),
    Aim(
        "training",
        0.80,
        "0.80 of the bare forward and backward pass",
        ("ceiling",),
        ("ceiling, bfloat16", "ceiling, bfloat16 by autocast"),
    ),
    Aim("training", 2, "twice TRL", ("TRL",), ("TRL, bfloat16",)),
    Aim("training", 12, "12 times the published way", (PUBLISHED,), (PUBLISHED,)),
    Aim("pipeline", 10, "10 times the published way", (), (PUBLISHED,)),
)


def table(kept: Mapping[str, Rounds]) -> str:
    """Markdown: a row for each aim and workload.

    Args:
        kept: name of a comparison's file, without its ending -> its rounds.
    """
    lines = ["| aim | workload | rounds | float32 | bfloat16 |", "|---|---|---|---|---|"]
    for aim in AIMS:
        found = {name: rounds for name, rounds in kept.items() if name.partition("_")[0] == aim.part}
        for workload, about in WORKLOADS.items() if aim.part != "pipeline" else [("", "MiniLM, PRISM-shaped")]:
            rounds = found.get(f"{aim.part}_{workload}".rstrip("_"))
            if rounds is None:
                continue
            narrow = OURS if aim.part == "pipeline" else NARROW
            cells = [
                _cell(rounds, OURS, aim.others, aim.least),
                _cell(rounds, narrow, aim.others_narrow, aim.least),
            ]
            if any(cells):
                number = len(next(iter(rounds.values())))
                lines.append(f"| {aim.part}: {aim.name} | {about} | {number} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rounds: Rounds, ours: str, others: tuple[str, ...], least: float) -> str:
    """The median of the rounds' ratios to the fastest of the others, the smallest and the largest, whether some of the others
    were not measured beside it (†), and whether it is enough."""
    known = [rounds[name] for name in others if name in rounds]
    if not known:
        return ""
    fastest = max(known, key=statistics.median)
    ratios = [own / other for own, other in zip(rounds[ours], fastest, strict=True)]
    median = statistics.median(ratios)
    digits = 2 if least < 3 else 1
    part = " †" if len(known) < len(others) else ""
    missed = "" if median >= least else ", **missed**"
    return f"{median:.{digits}f} ({min(ratios):.{digits}f} to {max(ratios):.{digits}f}){part}{missed}"
