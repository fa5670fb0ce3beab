"""The `README.md` beside every reward model: what it is, what it was made of, what it must not be used for."""

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scpo_ray.training.task import TrainingSummary


MEASURED, LIMITS = "## Measured on test pairs", "## Intended use and limits"


def with_measurements(card: str, table: str) -> str:
    """The card with a table of results in its place; itself where the place is not there."""
    head, found, rest = card.partition(MEASURED)
    _, limits, tail = rest.partition(LIMITS)
    return f"{head}{MEASURED}\n\n{table}\n{LIMITS}{tail}" if found and limits else card


def model_card(card: dict[str, object], description: dict[str, object], summary: "TrainingSummary") -> str:
    """Markdown with the hub's metadata block. `card` holds name, communities, base model, data and selection."""
    rows = "\n".join(f"| {key.replace('_', ' ')} | {_cell(value)} |" for key, value in {**card, **description}.items())
    return f"""---
library_name: transformers
pipeline_tag: text-classification
license: other
license_name: that-of-the-training-data
tags: [reward-model, preference, scpo]
metrics: [accuracy]
---

# {card.get("name", "reward model")}

A reward model: one logit for a response in its context, higher where the annotators of the community would rather have
it. Differences of rewards are log-odds of a preference; a reward by itself has no unit.

| | |
| --- | --- |
{rows}
| optimiser steps | {summary.num_steps} (kept: {summary.kept_step}) |
| training pairs | {summary.num_pairs} |
| training tokens | {summary.num_tokens} |
| loss, first and last step | {_first_and_last(summary.losses)} |

Made by scpo_ray; `manifest.json` has every setting and the hashes of the inputs, `metrics.json` the loss curve.

{MEASURED}

Not evaluated yet: `jobs/evaluate.py` and `jobs/report.py` fill this in.

{LIMITS}

For research on how communities' preferences differ, and as the reward of a policy that is evaluated with the members of
that community. Not for deciding what a person of that community wants, and not for judging people.

It stands for the annotators in its data, not for a country or a people. Its accuracy on held-out pairs, and what it
lost on those of others, is above and in the run's `report.html`: read that before using it. The licence of the data that
it learned from binds it as well.
"""


def _cell(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _first_and_last(losses: list[float]) -> str:
    return f"{losses[0]:.4f}, {losses[-1]:.4f}" if losses else "no step"
