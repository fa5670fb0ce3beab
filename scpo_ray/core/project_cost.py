"""What reward models for many communities take, on paper: before there is any data, from its numbers alone.

A job's plan (`stages.estimate`) counts the data that is prepared; this is for those who ask whether to begin.
"""

from dataclasses import dataclass

from scpo_ray.core.model_size import TransformerShape, forward_flops, training_flops


@dataclass(frozen=True)
class World:
    """Preference data of many communities; the defaults are PRISM's proportions."""

    num_communities: int
    pairs_per_community: float = 2000
    pairs_per_interaction: float = 6
    """K (K - 1) / 2 of K = 4 responses."""
    responses_per_interaction: float = 4
    tokens_per_response: float = 450
    """With its context."""
    train_share: float = 0.7
    test_share: float = 0.2
    """The rest is for validation."""

    @property
    def num_tokens(self) -> float:
        """Of all responses, each once."""
        interactions = self.num_communities * self.pairs_per_community / self.pairs_per_interaction
        return interactions * self.responses_per_interaction * self.tokens_per_response


@dataclass(frozen=True)
class ProjectCost:
    """Device hours, whichever number of devices shares them."""

    scoring_hours: float
    """By the global model, every response once."""
    training_hours: float
    """One epoch for every community, all pairs kept."""
    evaluation_hours: float
    """Every community's model reads all communities' test responses, for the matrix of transfer, and its own of validation."""
    adapter_bytes: float
    """What is stored of all models apart from their base; of full models everything."""

    @property
    def hours(self) -> float:
        """Of all stages."""
        return self.scoring_hours + self.training_hours + self.evaluation_hours

    def price(self, per_hour: float) -> float:
        """In the currency of `per_hour`, of one device's hour."""
        return self.hours * per_hour


def project_cost(
    shape: TransformerShape,
    world: World,
    *,
    scoring_flops_per_s: float,
    training_flops_per_s: float,
    lora_rank: int | None = None,
) -> ProjectCost:
    """N communities x M parameters x P pairs.

        score      F(t) / f          t tokens of all responses, F forward FLOPs, f FLOP/s that scoring reaches on a device
        train      B(r t) / g        r share of training pairs, B forward and backward FLOPs with checkpointing, g as f
        evaluate   F((N q + 1 - r - q) t) / f    N communities, q share of test pairs: it grows with N squared

    Args:
        scoring_flops_per_s: what scoring reaches, not the data sheet's.
        training_flops_per_s: as that, in training.
        lora_rank: None trains every weight.
    """
    tokens, length = world.num_tokens, world.tokens_per_response
    forward = forward_flops(shape, num_tokens=tokens, mean_length=length)
    backward = training_flops(
        shape, num_tokens=tokens * world.train_share, mean_length=length, lora_rank=lora_rank, checkpointing=True
    )
    held_out = world.num_communities * world.test_share + (1 - world.train_share - world.test_share)
    stored = shape.num_parameters if lora_rank is None else shape.num_adapter_parameters(lora_rank)
    return ProjectCost(
        forward / scoring_flops_per_s / 3600,
        backward / training_flops_per_s / 3600,
        held_out * forward / scoring_flops_per_s / 3600,
        4.0 * stored * world.num_communities,
    )
