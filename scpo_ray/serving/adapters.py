"""Many communities on one base in memory: every row of a batch goes through its own low-rank adapters and reward head.

A batch that mixes communities is one forward pass: per adapted layer y = W x + B_c A_c x, with c the row's community.

- Padded batches: two small batched products, the second of which adds to the base's output in place.
- Packed batches are sorted by community. One with many tokens in the batch gets its own W + B_c A_c for the moment, which
  costs by the layer's size and not by the tokens; the others share the product with W, and each adds its update.
"""

import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from scpo_ray.config import FormatConfig
from scpo_ray.errors import ModelError
from scpo_ray.formatting import TokenSequence
from scpo_ray.scoring import BatchScorer

_PREFIX = "base_model.model."
_NOT_PLAIN = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "alora_invocation_tokens",
    "fan_in_fan_out",
)


class Segment(NamedTuple):
    """Neighbouring rows of one community."""

    community: int
    start: int
    end: int


class Selection(threading.local):
    """Which adapter each row of the batch in progress takes; all layers of a bank look here, in the thread that computes."""

    rows: Tensor | None = None
    """Of every sequence."""
    segments: Mapping[int, Sequence[Segment]] | None = None
    """Of a packed batch, the longest first: by the number of rows that a layer sees, which is that of the tokens or, where
    only what a reward reads is computed, of the sequences."""


@dataclass(frozen=True)
class Adapter:
    """What LoRA learned: low-rank updates by layer, scaling folded in, and layers that were trained whole."""

    updates: dict[str, tuple[Tensor, Tensor]] = field(repr=False)
    """Layer -> (A [rank, inputs], B [outputs, rank])."""
    replaced: dict[str, dict[str, Tensor]] = field(repr=False)
    """Layer -> weight [outputs, inputs] and, where it has one, bias [outputs]."""


def is_plain(config: Mapping[str, object]) -> bool:
    """Whether PEFT's configuration is of a kind that `Adapter` can hold: LoRA without any of its variants."""
    return config.get("peft_type") == "LORA" and not any(config.get(name) for name in _NOT_PLAIN)


def read_adapter(folder: Path) -> Adapter:
    """An adapter in PEFT's format.

    Raises:
        ModelError: it is not there or damaged, or of a kind that cannot share a batch (DoRA and the like).
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            tensors = {name.removeprefix(_PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{folder}: not a readable adapter ({str(error).splitlines()[0][:160]})") from error
    if not is_plain(config):
        raise ModelError(f"{folder}: only plain LoRA adapters can share a base; serve the merged model instead")
    rank = config["r"]
    scaling = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    updates: dict[str, tuple[Tensor, Tensor]] = {}
    replaced: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if layer.endswith(".lora_A"):
            layer = layer.removesuffix(".lora_A")
            updates[layer] = (tensor, tensors[f"{layer}.lora_B.weight"] * scaling)
        elif not layer.endswith(".lora_B"):
            replaced.setdefault(layer, {})[part] = tensor
    return Adapter(updates, replaced)


class BankedUpdate(nn.Module):
    """A linear layer with one low-rank update per community.

    Args:
        base: the shared layer.
        downs: A of every community, [communities, rank, inputs].
        ups: B of every community, [communities, outputs, rank].
    """

    downs: Tensor
    ups: Tensor

    def __init__(
        self,
        base: nn.Linear,
        downs: Float[Tensor, "communities rank inputs"],
        ups: Float[Tensor, "communities outputs rank"],
        selection: Selection,
    ) -> None:
        super().__init__()
        self.base = base
        self._selection = selection
        self.register_buffer("downs", downs, persistent=False)
        self.register_buffer("ups", ups, persistent=False)

    def forward(self, inputs: Float[Tensor, "rows *length inputs"]) -> Float[Tensor, "rows *length outputs"]:
        """The base's output and each row's own update."""
        return self._padded(inputs) if self._selection.segments is None else self._packed(inputs)

    def _padded(self, inputs: Float[Tensor, "rows *length inputs"]) -> Float[Tensor, "rows *length outputs"]:
        rows = self._selection.rows
        assert rows is not None
        outputs = self.base(inputs)
        kind = outputs.dtype  # bfloat16 under autocast, which does not see products in place
        downs, ups = self.downs[rows].to(kind), self.ups[rows].to(kind)
        states = (inputs if inputs.dim() == 3 else inputs.unsqueeze(1)).to(kind)
        changed = outputs if outputs.dim() == 3 else outputs.unsqueeze(1)
        changed.baddbmm_(torch.bmm(states, downs.mT), ups.mT)
        return outputs

    def _packed(self, inputs: Float[Tensor, "*one rows inputs"]) -> Float[Tensor, "*one rows outputs"]:
        kind = computing_dtype(inputs)
        num_outputs, num_inputs = self.base.weight.shape
        states = inputs.reshape(-1, num_inputs).to(kind)
        assert self._selection.segments is not None
        segments = self._selection.segments[len(states)]
        outputs = states.new_empty(len(states), num_outputs)
        bias = None if self.base.bias is None else self.base.bias.to(kind)
        with torch.autocast(inputs.device.type, enabled=False):
            alone = list(takewhile(lambda one: worth_merging(one.end - one.start, num_inputs, num_outputs), segments))
            for community, start, end in alone:
                weight = torch.addmm(self.base.weight, self.ups[community], self.downs[community])
                _linear(states[start:end], weight.to(kind), bias, into=outputs[start:end])
            shared = alone[-1].end if alone else 0
            if shared < len(states):
                _linear(states[shared:], self.base.weight.to(kind), bias, into=outputs[shared:])
            for community, start, end in segments[len(alone) :]:
                down, up = self.downs[community].to(kind), self.ups[community].to(kind)
                outputs[start:end].addmm_(states[start:end] @ down.mT, up.mT)
        return outputs.view(*inputs.shape[:-1], num_outputs)


def _linear(
    states: Float[Tensor, "rows inputs"],
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None,
    *,
    into: Float[Tensor, "rows outputs"],
) -> None:
    """A linear layer that writes where it is told: a copy would cost a twentieth of the product."""
    if bias is None:
        torch.mm(states, weight.mT, out=into)
    else:
        torch.addmm(bias, states, weight.mT, out=into)


def worth_merging(num_rows: int, num_inputs: int, num_outputs: int) -> bool:
    """Whether W + B A costs less than adding B A x for so many rows.

    In arithmetic it does from inputs x outputs / (inputs + outputs) rows on, whatever the rank. Twice as many are asked for,
    since W + B A must be written as well: an estimate, which benchmarks/serve/passes.py is there to check.
    """
    return num_rows * (num_inputs + num_outputs) >= 2 * num_inputs * num_outputs


def computing_dtype(inputs: Tensor) -> torch.dtype:
    """What a linear layer would compute these in: autocast's type, or their own."""
    device = inputs.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype


class BankedLinear(nn.Module):
    """A linear layer that every community has its own of, as a reward head; in float32."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        weight: Float[Tensor, "communities outputs inputs"],
        bias: Float[Tensor, "communities outputs"],
        selection: Selection,
    ) -> None:
        super().__init__()
        self._selection = selection
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, inputs: Float[Tensor, "rows *length inputs"]) -> Float[Tensor, "rows *length outputs"]:
        """Each row under its own weights."""
        rows, segments = self._selection.rows, self._selection.segments
        assert rows is not None
        with torch.autocast(inputs.device.type, enabled=False):
            if segments is not None:
                states = inputs.reshape(-1, inputs.shape[-1]).float()
                found = torch.cat(
                    [
                        functional.linear(states[start:end], self.weight[community], self.bias[community])
                        for community, start, end in segments[len(states)]
                    ]
                )
            else:
                states = (inputs if inputs.dim() == 3 else inputs.unsqueeze(1)).float()
                found = states @ self.weight[rows].mT + self.bias[rows].unsqueeze(1)
        return found.view(*inputs.shape[:-1], -1)


class AdapterScorer(BatchScorer):
    """One base with the adapters of many communities.

    Args:
        folder: the base, transformers format.
        adapters: community -> folder of its adapter; None: the base as it is.

    Raises:
        ModelError: an adapter cannot be read, or does not fit the base.
    """

    def __init__(
        self,
        folder: Path,
        adapters: Mapping[str, Path | None],
        *,
        format_config: FormatConfig,
        precision: str,
        device: str | None = None,
    ) -> None:
        super().__init__(
            folder,
            format_config=format_config,
            precision=precision,
            device=device,
            safetensors_only=True,
        )
        self.shares = self.sorts = False  # a token's row has one community, and communities their places
        self._index = {community: index for index, community in enumerate(adapters)}
        self._selection = Selection()
        self._fit(folder, [Adapter({}, {}) if path is None else read_adapter(path) for path in adapters.values()])

    def forward_for(
        self, sequences: Sequence[TokenSequence], communities: Sequence[str]
    ) -> Float32[np.ndarray, " sequences"]:
        """Rewards of one batch, each sequence under its own community."""
        rows = [self._index[community] for community in communities]
        if not self.packs:
            self._selection.rows = torch.tensor(rows, device=self._device)
            return self._forward(sequences)
        num_tokens = Counter[int]()
        for row, sequence in zip(rows, sequences, strict=True):
            num_tokens[row] += len(sequence.input_ids)
        order = sorted(
            range(len(rows)),
            key=lambda place: (-num_tokens[rows[place]], rows[place], len(sequences[place].input_ids), place),
        )
        communities_in_order = list(dict.fromkeys(rows[place] for place in order))
        self._selection.rows = torch.tensor([rows[place] for place in order])
        self._selection.segments = {
            sum(sizes.values()): _segments(communities_in_order, sizes) for sizes in (num_tokens, Counter(rows))
        }
        rewards = np.empty(len(rows), np.float32)
        rewards[order] = self._forward([sequences[place] for place in order])
        return rewards

    def _fit(self, folder: Path, adapters: Sequence[Adapter]) -> None:
        layers = dict(self._model.named_modules())
        for name in sorted({name for adapter in adapters for name in (*adapter.updates, *adapter.replaced)}):
            if not isinstance(layers.get(name), nn.Linear):
                raise ModelError(f"{folder}: has no linear layer {name!r}, which an adapter changes; another base?")
            layer = layers[name]
            if any(name in adapter.replaced for adapter in adapters):
                if any(name in adapter.updates for adapter in adapters):
                    raise ModelError(
                        f"{folder}: {name} was trained whole for one community and by LoRA for another; serve the merged models"
                    )
                banked: nn.Module = _whole(layer, name, adapters, self._selection)
            else:
                banked = _updates(layer, name, adapters, self._selection)
            parent, _, child = name.rpartition(".")
            setattr(layers[parent], child, banked.to(self._device))


def _segments(communities: Sequence[int], sizes: Mapping[int, int]) -> list[Segment]:
    ends = list(accumulate(sizes[community] for community in communities))
    return [Segment(community, end - sizes[community], end) for community, end in zip(communities, ends, strict=True)]


def _updates(layer: nn.Linear, name: str, adapters: Sequence[Adapter], selection: Selection) -> BankedUpdate:
    """All communities' updates of a layer; smaller ranks are filled up with zeros, a layer left alone has nothing else."""
    rank = max(adapter.updates[name][0].shape[0] for adapter in adapters if name in adapter.updates)
    downs = torch.zeros(len(adapters), rank, layer.in_features)
    ups = torch.zeros(len(adapters), layer.out_features, rank)
    for index, adapter in enumerate(adapters):
        if name in adapter.updates:
            down, up = adapter.updates[name]
            downs[index, : len(down)], ups[index, :, : len(down)] = down, up
    return BankedUpdate(layer, downs, ups, selection)


def _whole(layer: nn.Linear, name: str, adapters: Sequence[Adapter], selection: Selection) -> BankedLinear:
    """All communities' own copies of a layer, the base's where one has none."""
    bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach().cpu()
    own = {"weight": layer.weight.detach().cpu(), "bias": bias}
    found = {
        part: torch.stack([adapter.replaced.get(name, {}).get(part, tensor).float() for adapter in adapters])
        for part, tensor in own.items()
    }
    return BankedLinear(found["weight"], found["bias"], selection)
