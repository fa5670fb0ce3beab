"""Slow, obvious versions of the core functions: plain Python, no vectors, no tricks."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value)) if value >= 0 else value - math.log1p(math.exp(value))


def bradley_terry(
    chosen: Sequence[float],
    rejected: Sequence[float],
    weights: Sequence[float],
    margins: Sequence[float] | None = None,
    normalizer: float | None = None,
) -> float:
    """-(1/N) Σ w log σ(r⁺ - r⁻ - m)."""
    total = 0.0
    for index in range(len(chosen)):
        margin = margins[index] if margins is not None else 0.0
        total -= weights[index] * log_sigmoid(chosen[index] - rejected[index] - margin)
    return total / (len(chosen) if normalizer is None else normalizer)


def centering(chosen: Sequence[float], rejected: Sequence[float]) -> float:
    """Mean of (r⁺ + r⁻)²."""
    return sum((plus + minus) ** 2 for plus, minus in zip(chosen, rejected, strict=True)) / len(chosen)


def agreement(chosen: Sequence[float], rejected: Sequence[float]) -> list[float]:
    return [sigmoid(plus - minus) for plus, minus in zip(chosen, rejected, strict=True)]


def preference_weights(chosen: Sequence[float], rejected: Sequence[float], temperature: float) -> list[float]:
    """min(exp((r⁺ - r⁻) / β), 1)."""
    return [
        1.0 if plus >= minus else math.exp((plus - minus) / temperature)
        for plus, minus in zip(chosen, rejected, strict=True)
    ]


def decisions(
    strategy: str,
    chosen: Sequence[float],
    rejected: Sequence[float],
    *,
    threshold: float,
    temperature: float,
    lots: Sequence[float] = (),
    band: float = 0.2,
    fraction: float = 0.25,
) -> list[tuple[bool, float]]:
    """(kept, weight) of every pair."""
    found = []
    lots = lots or [0.0] * len(chosen)
    num_disagreeing = sum(sigmoid(plus - minus) < threshold for plus, minus in zip(chosen, rejected, strict=True))
    drawn = set(sorted(range(len(chosen)), key=lambda index: lots[index])[:num_disagreeing])
    for index, (plus, minus) in enumerate(zip(chosen, rejected, strict=True)):
        disagrees = sigmoid(plus - minus) < threshold
        is_unsure = abs(sigmoid(plus - minus) - 0.5) <= band
        is_spared = not disagrees and lots[index] < fraction
        light_where_disagreeing = preference_weights([plus], [minus], temperature)[0]
        light_where_agreeing = preference_weights([minus], [plus], temperature)[0]
        found.append(
            {
                "filter_weight": (disagrees, light_where_disagreeing if disagrees else 0.0),
                "filter": (disagrees, 1.0 if disagrees else 0.0),
                "weight": (True, light_where_disagreeing),
                "inverse_weight": (True, light_where_agreeing),
                "none": (True, 1.0),
                "random": (index in drawn, float(index in drawn)),
                "uncertainty": (is_unsure, float(is_unsure)),
                "keep_fraction": (
                    disagrees or is_spared,
                    light_where_disagreeing if disagrees else float(is_spared),
                ),
            }[strategy]
        )
    return found


def published(
    rows: Sequence[tuple[float, float, float, float]], *, threshold: float, temperature: float
) -> tuple[list[tuple[int, float, float]], list[float]]:
    """Rows of (r_glo+, r_glo-, r+, r-) -> ((index, weight, loss term) of the kept pairs, every agreement), as printed."""
    kept, agreements = [], []
    for index, (global_plus, global_minus, plus, minus) in enumerate(rows):
        agreements.append(math.exp(global_plus) / (math.exp(global_plus) + math.exp(global_minus)))
        if agreements[-1] < threshold:
            weight = min(math.exp((global_plus - global_minus) / temperature), 1.0)
            kept.append((index, weight, -weight * log_sigmoid(plus - minus)))
    return kept, agreements


def correctness(chosen: Sequence[float], rejected: Sequence[float]) -> list[float]:
    return [0.5 if plus == minus else float(plus > minus) for plus, minus in zip(chosen, rejected, strict=True)]


def effective_sample_size(weights: Sequence[float]) -> float:
    """(Σw)² / Σw², in exact arithmetic."""
    exact = [Fraction(weight) for weight in weights]
    squares = sum(weight * weight for weight in exact)
    return float(sum(exact) ** 2 / squares) if squares else 0.0


def near_duplicate_groups(texts: Sequence[str], similarity: float) -> list[int]:
    """Every pair compared, then every chain followed."""
    counts = [_ngrams(text) for text in texts]
    group: list[int | None] = [None] * len(texts)
    number = 0
    for start in range(len(texts)):
        if group[start] is not None:
            continue
        reached = [start]
        group[start] = number
        while reached:
            here = reached.pop()
            for other in range(len(texts)):
                if group[other] is None and cosine(counts[here], counts[other]) >= similarity - 1e-9:
                    group[other] = number
                    reached.append(other)
        number += 1
    return [label for label in group if label is not None]


def _ngrams(text: str) -> Counter[str]:
    words = re.findall(r"\w+", text.lower())
    return Counter([*words, *(f"{first} {second}" for first, second in itertools.pairwise(words))])


def cosine(first: Counter[str], second: Counter[str]) -> float:
    dot = sum(number * second[gram] for gram, number in first.items())
    norms = math.sqrt(sum(n * n for n in first.values())) * math.sqrt(sum(n * n for n in second.values()))
    return dot / norms if norms else 0.0


def shaped_rewards(
    score: float, log_probs: Sequence[float], reference_log_probs: Sequence[float], coefficient: float
) -> list[float]:
    """One response's: -c (log π - log π_ref) at every token, the score at the last."""
    rewards = [-coefficient * (own - other) for own, other in zip(log_probs, reference_log_probs, strict=True)]
    rewards[-1] += score
    return rewards


def generalized_advantages(
    rewards: Sequence[float], values: Sequence[float], discount: float, trace_decay: float
) -> list[float]:
    """One response's, by the definition: Σ_k (γλ)^k δ_{t+k}."""
    errors = [
        rewards[t] + (discount * values[t + 1] if t + 1 < len(values) else 0.0) - values[t] for t in range(len(values))
    ]
    return [
        sum((discount * trace_decay) ** k * errors[t + k] for k in range(len(values) - t)) for t in range(len(values))
    ]


def clipped_surrogate(
    ratio: float, advantage: float, clip_low: float, clip_high: float, dual_clip: float | None
) -> float:
    """One token's."""
    surrogate = min(ratio * advantage, min(max(ratio, 1 - clip_low), 1 + clip_high) * advantage)
    return max(surrogate, dual_clip * advantage) if dual_clip is not None and advantage < 0 else surrogate


def clipped_value_error(value: float, old: float, target: float, clip: float) -> float:
    """One token's, before the half."""
    near = min(max(value, old - clip), old + clip)
    return max((value - target) ** 2, (near - target) ** 2)
