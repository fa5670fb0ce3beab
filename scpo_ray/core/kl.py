"""How far a policy has moved from its reference: estimators on sampled tokens, and controllers of the price of moving."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(
    *,
    log_probs: Float[Tensor, "*tokens"],
    reference_log_probs: Float[Tensor, "*tokens"],
    estimator: KLEstimator = "k1",
) -> Float[Tensor, "*tokens"]:
    """An estimate of KL(π ‖ π_ref) from each token sampled from π, nats.

        d = log π - log π_ref        k1 = d        k2 = d² / 2        k3 = exp(-d) - 1 + d

    k1 is unbiased and may be negative; k2 is never negative, with a bias of third order; k3 is unbiased and never negative,
    with a heavy tail where π_ref is far more likely than π.

    Args:
        log_probs: log π of the sampled tokens.
        reference_log_probs: log π_ref of the same tokens.

    Raises:
        ValueError: shapes differ.

    Source: Schulman (2020), "Approximating KL Divergence".
    """
    if log_probs.shape != reference_log_probs.shape:
        raise ValueError(
            f"expected equal shapes, got {tuple(log_probs.shape)} and, of the reference, {tuple(reference_log_probs.shape)}"
        )
    difference = log_probs - reference_log_probs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    return (-difference).expm1() + difference


@dataclass(frozen=True)
class FixedKL:
    """A coefficient that stays."""

    coefficient: float

    def after(self, *, kl: float, num_sequences: int) -> "FixedKL":
        """Itself, whatever was measured."""
        return self


@dataclass(frozen=True)
class AdaptiveKL:
    """A coefficient that grows while the policy is farther than `target` from its reference, and shrinks while it is nearer.

        coefficient ← coefficient · (1 + clip(kl / target - 1, -0.2, 0.2) · sequences / horizon)

    Source: Ziegler et al. (2019), "Fine-Tuning Language Models from Human Preferences", section 2.2.
    """

    coefficient: float
    target: float
    """Nats per sequence: a budget."""
    horizon: float
    """Sequences in which an error beyond the clip changes the coefficient by about 20%."""

    def __post_init__(self) -> None:
        for name in ("coefficient", "target", "horizon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def after(self, *, kl: float, num_sequences: int) -> "AdaptiveKL":
        """The controller after a batch.

        Args:
            kl: mean over the batch's sequences of KL(π ‖ π_ref), nats per sequence.
        """
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return AdaptiveKL(self.coefficient * (1 + error * num_sequences / self.horizon), self.target, self.horizon)
