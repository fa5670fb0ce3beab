"""Attention of sequences of one length, on CPUs; where it learns from short texts, as batched products.

torch's fused kernel for CPUs is made of small products. Backwards in bfloat16, with texts of some hundred tokens, these take
longer than a few large ones (docs/performance.md). Products keep a token's scores for the backward pass, which the fused kernel
computes again; scores are rounded to the products' precision.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

LONGEST_BY_PRODUCTS = {"bfloat16": 400}
"""Columns up to which products are taken, by precision; in float32 a step takes as long with them."""
_MOST_SCORES = 4 * 2**20
"""Bytes of scores that are written at a time, of one sequence and one head at least: they stay in the caches."""


def attend(
    query: Float[Tensor, "sequences heads rows size"],
    key: Float[Tensor, "sequences kv_heads columns size"],
    value: Float[Tensor, "sequences kv_heads columns size"],
    *,
    scale: float | None = None,
    is_causal: bool = False,
    sees: Bool[Tensor, "rows columns"] | None = None,
) -> Float[Tensor, "sequences heads rows size"]:
    """softmax(query key^T scale) value, in the precision of autocast where that is on. Gradients flow.

    Args:
        query: neighbours among its heads share one of the keys', where those are fewer.
        scale: 1 / sqrt(size) when unset.
        is_causal: a row looks at no later column; there are as many of both.
        sees: what a row may look at; unset: everything.
    """
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    learns = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    if not learns or key.shape[2] > LONGEST_BY_PRODUCTS.get(str(dtype).removeprefix("torch."), 0):
        grouped = key.shape[1] != query.shape[1]
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=sees, is_causal=is_causal, scale=scale, enable_gqa=grouped
        )
    if is_causal:
        sees = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    with torch.autocast(device, enabled=False):
        return _by_products(query.to(dtype), key.to(dtype), value.to(dtype), scale or query.shape[-1] ** -0.5, sees)


def _by_products(
    query: Float[Tensor, "sequences heads rows size"],
    key: Float[Tensor, "sequences kv_heads columns size"],
    value: Float[Tensor, "sequences kv_heads columns size"],
    scale: float,
    sees: Bool[Tensor, "rows columns"] | None,
) -> Float[Tensor, "sequences heads rows size"]:
    (number, kv_heads, columns, _), rows = key.shape, query.shape[2]
    group = query.shape[1] // kv_heads
    queries = query.unflatten(1, (kv_heads, group)).flatten(2, 3).flatten(0, 1)  # [number kv_heads, group rows, size]
    unseen, beta = query.new_zeros(1), 0
    if sees is not None:
        unseen, beta = query.new_zeros(rows, columns).masked_fill(~sees, -torch.inf).repeat(group, 1), 1
    together = max(1, _MOST_SCORES // (group * rows * columns * query.element_size()))
    split = (each.split(together) for each in (queries, key.flatten(0, 1), value.flatten(0, 1)))
    found = []
    for part, keys, values in zip(*split, strict=True):
        scores = torch.baddbmm(unseen, part, keys.transpose(1, 2), beta=beta, alpha=scale)
        found.append(torch.bmm(scores.softmax(-1), values))
    return torch.cat(found).unflatten(1, (group, rows)).unflatten(0, (number, kv_heads)).flatten(1, 2)
