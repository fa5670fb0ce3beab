"""What scoring computed. Apart from the scorer, so that counting needs no model library."""

from dataclasses import dataclass

from scpo_ray.core.batching import padding_share


@dataclass
class ScoringCost:
    """What was computed: adds up over calls and actors."""

    num_responses: int = 0
    num_forward_passes: int = 0
    num_tokens: int = 0
    num_padded_tokens: int = 0

    @property
    def measures(self) -> dict[str, float]:
        """As `telemetry.METRICS`."""
        return {
            "responses_total": self.num_responses,
            "tokens_total": self.num_tokens,
            "padded_tokens_total": self.num_padded_tokens,
        }

    @property
    def padding_share(self) -> float:
        """Share of the computed tokens that were padding."""
        return padding_share(num_tokens=self.num_tokens, num_padded_tokens=self.num_padded_tokens)
