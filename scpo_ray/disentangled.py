"""DeBERTa's attention (v2, v3) over sequences that lie end to end in one row.

A token's score for another is content to content, content to position and position to content; positions are distances,
the far ones in logarithmic buckets. transformers multiplies every token by all the buckets and gathers, for each pair of
tokens, the one of its distance. Here tokens are multiplied by the distances of their run in order, so that a row's scores
are a diagonal's shift away from those of the next: a view, which gathers nothing forwards and scatters nothing backwards;
and a batch of short texts multiplies by the few distances that it has.

Source: He et al. (2021), DeBERTa: Decoding-enhanced BERT with Disentangled Attention, section 3.1.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Runs = Callable[[], Sequence[tuple[int, int]]]
"""(sequences, tokens of each) of the neighbours of equal length, in the pass that runs."""


def attend_in_runs(model: nn.Module, runs: Runs) -> None:
    """Replace the attention of a DeBERTa v2 or v3. Gradients flow; nothing is dropped out.

    Args:
        model: a sequence classifier, bare: adapters may come around its maps later. It has no convolution.
        runs: of the pass that runs; they fill its row.
    """
    encoder = model.base_model.encoder
    distances_within = encoder.get_rel_pos

    def distances(_: Tensor, *__: object) -> Int[Tensor, " distances"] | None:
        longest = max(length for _, length in runs())
        found = distances_within(torch.empty(1, longest, 1))  # [1, query, key], or None without distances
        return None if found is None else torch.cat([found[0, 0].flip(0), found[0, 1:, 0]])

    encoder.get_rel_pos = distances  # what it gives is handed to every layer
    encoder.get_attention_mask = lambda mask: mask  # handed to every layer too; nothing is masked
    for layer in encoder.layer:
        attention = layer.attention.self
        attention.forward = partial(_attend, attention, runs)


def _attend(
    module: nn.Module,
    runs: Runs,
    states: Float[Tensor, "1 tokens hidden"],
    *_: object,
    relative_pos: Int[Tensor, " distances"] | None,
    rel_embeddings: Float[Tensor, "buckets hidden"] | None,
    **__: object,
) -> tuple[Float[Tensor, "1 tokens hidden"], None]:
    """In place of the module's own, by its signature.

    Args:
        relative_pos: the bucket of every distance, query's place less key's, of the longest sequence, in order; negative
            where the key comes later.
        rel_embeddings: of the buckets, from the most negative.
    """
    query, key, value = (
        _by_head(module, project(states[0])) for project in (module.query_proj, module.key_proj, module.value_proj)
    )
    scale = math.sqrt(query.shape[-1] * (1 + len({"c2p", "p2c"} & set(module.pos_att_type))))
    query = query / scale
    of_keys, of_queries = _positions(module, relative_pos, rel_embeddings, scale)
    found, parts = [], runs()
    split = (each.split([number * length for number, length in parts], dim=1) for each in (query, key, value))
    for run, run_query, run_key, run_value in zip(parts, *split, strict=True):
        by_position = []  # each [heads, sequences, query, key]
        if of_keys is not None:
            near = _middle(of_keys, run[1]).flip(1)
            by_position.append(shifted((run_query @ near.transpose(-1, -2)).unflatten(1, run)))
        if of_queries is not None:
            near = _middle(of_queries, run[1])
            by_position.append(shifted((run_key @ near.transpose(-1, -2)).unflatten(1, run)).transpose(-1, -2))
        by_sequence = [each.unflatten(1, run) for each in (run_query, run_key, run_value)]
        scores = by_sequence[0] @ by_sequence[1].transpose(-1, -2)
        if by_position:
            scores = scores + reduce(torch.add, by_position)  # small ones first: they round to less
        found.append((scores.softmax(-1) @ by_sequence[2]).flatten(1, 2))
    return torch.cat(found, dim=1).transpose(0, 1).flatten(1).unsqueeze(0), None


def _positions(
    module: nn.Module,
    buckets: Int[Tensor, " distances"] | None,
    embeddings: Float[Tensor, "buckets hidden"] | None,
    scale: float,
) -> tuple[Float[Tensor, "heads distances size"] | None, Float[Tensor, "heads distances size"] | None]:
    """What content meets in the places of keys and of queries, for every distance; None for what the model leaves out.

    Args:
        scale: that queries are divided by.
    """
    if buckets is None or embeddings is None:
        return None, None
    span = module.pos_ebd_size
    places = torch.clamp(buckets.long() + span, 0, 2 * span - 1)
    first, last = int(places.min()), int(places.max())
    embeddings = embeddings[first : last + 1]  # the others belong to distances that no sequence has
    is_every_distance = bool((places.diff() == 1).all())

    def projected(project: nn.Module) -> Float[Tensor, "heads distances size"]:
        of_buckets = _by_head(module, project(embeddings))
        return of_buckets if is_every_distance else of_buckets[:, places - first]

    found: list[Tensor | None] = [None, None]
    if "c2p" in module.pos_att_type:
        found[0] = projected(module.key_proj if module.share_att_key else module.pos_key_proj)
    if "p2c" in module.pos_att_type:
        found[1] = projected(module.query_proj if module.share_att_key else module.pos_query_proj) / scale
    return found[0], found[1]


def _by_head(module: nn.Module, states: Float[Tensor, "rows hidden"]) -> Float[Tensor, "heads rows size"]:
    return states.unflatten(-1, (module.num_attention_heads, -1)).transpose(0, 1)


def _middle(
    of_distances: Float[Tensor, "heads distances size"], length: int
) -> Float[Tensor, "heads own_distances size"]:
    """Those of the distances that sequences of this length have."""
    return of_distances.narrow(1, (of_distances.shape[1] + 1) // 2 - length, 2 * length - 1)


def shifted(by_distance: Float[Tensor, "*batch row distances"]) -> Float[Tensor, "*batch row column"]:
    """[r, length - 1 - r + c] at [r, c]: by distance becomes by place.

    Args:
        by_distance: 2 * length - 1 columns.
    """
    length = by_distance.shape[-2]
    if length == 1:
        return by_distance
    rows = by_distance.flatten(-2)[..., length - 1 : length - 1 + length * (2 * length - 2)]
    return rows.unflatten(-1, (length, 2 * length - 2))[..., :length]
