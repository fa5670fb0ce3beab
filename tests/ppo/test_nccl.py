"""The ends of vLLM's NCCL transfer that need no GPU: what the sender announces is what it sends."""

import contextlib

import torch

from scpo_ray import policies
from scpo_ray.ppo import nccl, sync


def test_what_is_announced_is_what_is_sent_in_every_pass(tiny_policy):
    """vLLM sizes its buffers by the metadata: a difference splits the stream otherwise on each side."""
    model = policies.load(tiny_policy).model
    passes = []

    def weights():
        passes.append(1)
        return sync.named_weights(model, lambda parameters: contextlib.nullcontext(), dtype=torch.bfloat16)

    source = nccl.source_of(weights)
    announced = [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()]
    assert announced[-1][0] == "lm_head.weight"
    for _ in range(2):
        assert [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in source] == announced
    assert [meta.name for meta in source.metadata()] == [name for name, _, _ in announced]
    assert len(passes) == 3  # the shapes are learned once
