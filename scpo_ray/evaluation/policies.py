"""What policies gained: judgements of their responses against those of the start policy, paired by prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from scpo_ray.core.bootstrap import Estimate, cluster_bootstrap_mean


@dataclass(frozen=True)
class Judgements:
    """One judge's values of one policy's responses to the test prompts.

    Args:
        values: [prompts, samples], the same prompts in the same order for every policy.
    """

    kind: str
    """proxy, held out or truth."""
    community: str
    values: Float[np.ndarray, "prompts samples"]


def gain(policy: Judgements, start: Judgements, *, groups: Sequence[str], num_resamples: int, seed: int) -> Estimate:
    """Mean over responses of the policy's value less the start policy's mean on the same prompt; clustered by prompt group.

    Raises:
        ValueError: another judge, or other prompts.
    """
    if (policy.kind, policy.community) != (start.kind, start.community) or len(policy.values) != len(start.values):
        raise ValueError(f"{policy.kind} of {policy.community} is compared with {start.kind} of {start.community}")
    differences = policy.values - start.values.mean(axis=1, keepdims=True)
    clusters = np.repeat(np.asarray(groups, dtype=object), policy.values.shape[1])
    return cluster_bootstrap_mean(differences.ravel(), clusters=clusters, num_resamples=num_resamples, seed=seed)


def best_of(
    values: Float[np.ndarray, "prompts samples"], chosen_by: Float[np.ndarray, "prompts samples"], n: int
) -> Float[np.ndarray, "prompts groups"]:
    """The value of each group's best response: samples are cut into groups of n, and `chosen_by` says which is best.

    The first of equals is taken. Samples that do not fill a group are left out.

    Raises:
        ValueError: there are fewer than n samples.
    """
    prompts, samples = values.shape
    if not 1 <= n <= samples:
        raise ValueError(f"best of {n} from {samples} samples")
    groups = samples // n
    cut = (prompts, groups, n)
    best = chosen_by[:, : groups * n].reshape(cut).argmax(axis=2, keepdims=True)
    return np.take_along_axis(values[:, : groups * n].reshape(cut), best, axis=2).squeeze(2)


def best_of_kl_bound(n: int) -> float:
    """How far best-of-n is at most from the policy that it picks from: log n - (n - 1) / n, nats per response.

    Source: Beirami et al. (2024), "Theoretical guarantees on the best-of-n alignment policy".
    """
    return float(np.log(n) - (n - 1) / n)


def worst_off(means: Mapping[str, float]) -> str:
    """The community with the lowest mean; the first of equals."""
    return min(means, key=means.__getitem__)
