"""A PPO step in numbers: what goes to the trackers, the progress bar and the page."""

from collections.abc import Mapping, Sequence

import torch

from scpo_ray.ppo.experience import Evaluated
from scpo_ray.ppo.objective import Scale, Scores
from scpo_ray.ppo.records import Experience, Rewards, Rollout

PHASES = ("generation", "scoring", "training", "synchronising")
NUM_SAMPLES = 8
"""Responses in a table of samples."""


def metrics(
    rollouts: Sequence[Rollout], scores: Scores, evaluated: Evaluated, experience: Experience
) -> dict[str, float]:
    """Rewards, divergence (nats per response), lengths, what was counted, and how far engine and learner are apart."""
    mask = evaluated.mask
    apart = torch.where(mask, evaluated.log_probs - evaluated.engine_log_probs, 0.0).abs()
    row = {
        "reward": float(scores.final.mean()),
        "reward_deviation": float(scores.final.std()) if len(rollouts) > 1 else 0.0,
        "kl": evaluated.divergence,
        "length": int(mask.sum()) / len(rollouts),
        "unfinished_share": scores.num_unfinished / len(rollouts),
        "empty_share": scores.num_empty / len(rollouts),
        "truncated_share": scores.num_truncated / max(1, len(rollouts) * len(scores.normalised)),
        "engine_difference": float(apart.max()),
        "importance_mean": float(experience.importance[mask].mean()),
        "importance_max": float(experience.importance[mask].max()),
    }
    row |= {f"reward of {community}": float(values.nanmean()) for community, values in scores.normalised.items()}
    if evaluated.values is not None and experience.returns is not None:
        error, spread = (experience.returns - evaluated.values)[mask], experience.returns[mask]
        row["explained_variance"] = float(1 - error.var() / spread.var().clamp(min=1e-12))
    return row


def measures(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The last step, as `telemetry.METRICS`.

    Args:
        history: steps since the policy's training began or was resumed.
    """
    row = history[-1]
    same = ("reward", "kl", "kl_coefficient", "entropy", "canary_difference")
    return {
        **{name: row[name] for name in same if name in row},
        "response_tokens": row["length"],
        "tokens_total": sum(past["tokens_per_second"] * past["seconds"] for past in history),
        **{f"{phase}_seconds": row[f"{phase}_share"] * row["seconds"] for phase in PHASES},
    }


def normalised_mean(rewards: Rewards, scale: Scale, *, num_empty: int, empty_reward: float) -> float:
    """Mean over answers and empty responses, validation standard deviations."""
    total = sum((reward - scale.mean) / scale.deviation for reward in rewards.values)
    return (total + num_empty * empty_reward) / (len(rewards.values) + num_empty)


def samples(rollouts: Sequence[Rollout], scores: Scores) -> list[dict[str, str]]:
    """The first responses as a table."""
    return [
        {
            "prompt": rollout.prompt.context[-1]["content"],
            "response": rollout.text,
            "reward": f"{float(scores.final[place]):+.2f}",
        }
        for place, rollout in enumerate(rollouts[:NUM_SAMPLES])
    ]


def progress_note(row: Mapping[str, float]) -> str:
    """Reward, KL, length, speed and where the time goes, for the progress bar."""
    shares = " ".join(f"{phase[:3]} {100 * row[f'{phase}_share']:.0f}%" for phase in PHASES)
    return (
        f"reward {row['reward']:+.2f} kl {row['kl']:.2f} length {row['length']:.0f} "
        f"{row['tokens_per_second']:,.0f} tok/s {shares}"
    )
