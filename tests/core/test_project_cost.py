"""Hours and price, by hand."""

import pytest

from scpo_ray.core.model_size import TransformerShape, training_flops
from scpo_ray.core.project_cost import World, project_cost

TINY = TransformerShape(2, 8, 20, 2, 1, 4, 50)  # 1,344 matrix parameters


def test_a_world_of_two_communities_by_hand():
    # 2 x 60 pairs / 6 x 4 responses x 10 tokens
    world = World(2, pairs_per_community=60, tokens_per_response=10, train_share=0.75, test_share=0.2)
    assert world.num_tokens == 800
    # a token: 2 x 1,344 for the matrices, 4 x 2 layers x 8 wide x 10 long for attention
    forward = 800 * (2688 + 640)
    cost = project_cost(TINY, world, scoring_flops_per_s=1000, training_flops_per_s=500)
    assert cost.scoring_hours == pytest.approx(forward / 1000 / 3600)
    assert cost.training_hours == pytest.approx(4 * 0.75 * forward / 500 / 3600)  # forward, again, and backward twice
    # both models read both communities' test responses, 2 x 0.2 of all, and each its own validation responses, together 0.05
    assert cost.evaluation_hours == pytest.approx(0.45 * forward / 1000 / 3600)
    assert cost.hours == pytest.approx(forward * (1.45 / 1000 + 3 / 500) / 3600)
    assert cost.price(3.0) == pytest.approx(3 * cost.hours)
    assert cost.adapter_bytes == 2 * 4 * (50 * 8 + 2 * 672 + 2 * 2 * 8 + 8)


def test_adapters_save_the_weights_gradients():
    world = World(3)
    full, lora = (
        project_cost(TINY, world, scoring_flops_per_s=1e6, training_flops_per_s=1e6, lora_rank=rank)
        for rank in (None, 2)
    )
    assert lora.scoring_hours == full.scoring_hours
    trained = training_flops(TINY, num_tokens=0.7 * world.num_tokens, mean_length=450, lora_rank=2, checkpointing=True)
    assert lora.training_hours == pytest.approx(trained / 1e6 / 3600)
    assert lora.adapter_bytes == 3 * 4 * TINY.num_adapter_parameters(2)


@pytest.mark.parametrize("factor", [2, 10])
def test_it_grows_with_pairs_and_faster_with_communities(factor):
    """All but the matrix of transfer grows alike with both."""
    sizes = {"scoring_flops_per_s": 1e6, "training_flops_per_s": 1e6}
    one, pairs, communities = (
        project_cost(TINY, World(number, pairs_per_community=each), **sizes)
        for number, each in ((1, 100), (1, 100 * factor), (factor, 100))
    )
    assert pairs.hours == pytest.approx(factor * one.hours)
    assert communities.scoring_hours == pytest.approx(factor * one.scoring_hours)
    assert communities.training_hours == pytest.approx(factor * one.training_hours)
    matrix, validation = 0.2 * one.scoring_hours, 0.1 * one.scoring_hours
    assert one.evaluation_hours == pytest.approx(matrix + validation)
    assert communities.evaluation_hours == pytest.approx(factor**2 * matrix + factor * validation)
