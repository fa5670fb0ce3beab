"""What a transformer of a shape costs: parameters, floating-point operations, memory, network traffic. Arithmetic, no model.

Conventions: one multiply-add is 2 FLOPs; attention is counted whole, also where a causal kernel skips half of it, as model
FLOPs utilisation is usually given; normalisation, activation functions and the optimiser's arithmetic are left out.
"""

from dataclasses import dataclass

WEIGHT_BYTES = GRADIENT_BYTES = 4
"""Master weights and gradients are float32 here, under autocast too."""
ADAM_BYTES = 8
"""Two float32 moments per trained parameter."""


@dataclass(frozen=True)
class TransformerShape:
    """Of an encoder or decoder."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    num_positions: int = 0
    """Rows of a learned position table; 0 for rotary positions."""

    gated_mlp: bool = True
    """Three matrices per MLP (Llama, Qwen), or two (BERT, DeBERTa)."""

    biases: bool = False
    writes_scores: bool = False
    """Attention that no fused kernel computes (DeBERTa), whatever is asked for."""

    @property
    def layer_matrices(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of a layer's linear maps."""
        hidden, inner = self.hidden_size, self.intermediate_size
        attention, kv = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        mlp = (
            ((hidden, inner), (hidden, inner), (inner, hidden))
            if self.gated_mlp
            else ((hidden, inner), (inner, hidden))
        )
        return ((hidden, attention), (hidden, kv), (hidden, kv), (attention, hidden), *mlp)

    @property
    def num_matrix_parameters(self) -> int:
        """Of the layers' linear maps: all that tokens are multiplied by, a language model's head apart."""
        return self.num_layers * sum(inputs * outputs for inputs, outputs in self.layer_matrices)

    @property
    def num_parameters(self) -> int:
        """Of the backbone, with embeddings; a head for rewards adds hidden_size."""
        norm = self.hidden_size * (2 if self.biases else 1)
        biases = sum(outputs for _, outputs in self.layer_matrices) if self.biases else 0
        embeddings = (self.vocab_size + self.num_positions) * self.hidden_size
        return embeddings + self.num_matrix_parameters + self.num_layers * (2 * norm + biases) + norm

    def num_adapter_parameters(self, rank: int) -> int:
        """Of LoRA on every linear map of every layer."""
        return self.num_layers * sum(rank * (inputs + outputs) for inputs, outputs in self.layer_matrices)


def forward_flops(shape: TransformerShape, *, num_tokens: float, mean_length: float, lm_head: bool = False) -> float:
    """FLOPs of a forward pass.

        F = n (2 P + 4 L a s)        P matrix parameters, L layers, a = heads x head size, s length, n tokens

    Args:
        num_tokens: over all sequences.
        mean_length: tokens of a sequence, weighted by tokens: Σ s² / Σ s.
        lm_head: with the product that gives every token's logits over the vocabulary.

    Source: Chowdhery et al. (2022), PaLM, appendix B.
    """
    attention = 4 * shape.num_layers * shape.num_heads * shape.head_size * mean_length
    head = 2 * shape.hidden_size * shape.vocab_size if lm_head else 0
    return num_tokens * (2 * shape.num_matrix_parameters + attention + head)


def training_flops(
    shape: TransformerShape,
    *,
    num_tokens: float,
    mean_length: float,
    lora_rank: int | None = None,
    checkpointing: bool = False,
    lm_head: bool = False,
) -> float:
    """FLOPs of forward and backward: backward is two forwards, one towards activations and one towards weights.

    Args:
        lora_rank: the base's weights take no gradient, which saves one of the three; adapters have all three.
        checkpointing: activations are computed a second time.
    """
    forward = forward_flops(shape, num_tokens=num_tokens, mean_length=mean_length, lm_head=lm_head)
    if lora_rank is None:
        return forward * (3 + checkpointing)
    attention = 4 * shape.num_layers * shape.num_heads * shape.head_size * mean_length * num_tokens
    adapters = 2 * shape.num_adapter_parameters(lora_rank) * num_tokens
    return (
        (forward + adapters) * (2 + checkpointing) + adapters + attention
    )  # attention has two operands to differentiate


def state_bytes(num_parameters: int, *, num_trained: int, zero_stage: int, num_devices: int) -> float:
    """Bytes per device of weights, gradients and Adam's moments.

        stage 0: 4 P + 12 T      1: 4 P + 4 T + 8 T/n      2: 4 P + 12 T/n      3: (4 P + 12 T)/n

    Args:
        num_parameters: P, all of them.
        num_trained: T, those with a gradient: all, or the adapters.
        num_devices: n, over which ZeRO divides.

    Raises:
        ValueError: no such stage.

    Source: Rajbhandari et al. (2020), "ZeRO", with float32 weights and gradients.
    """
    if zero_stage not in (0, 1, 2, 3):
        raise ValueError(f"expected a ZeRO stage of 0 to 3, got {zero_stage}")
    weights = WEIGHT_BYTES * num_parameters / (num_devices if zero_stage >= 3 else 1)
    gradients = GRADIENT_BYTES * num_trained / (num_devices if zero_stage >= 2 else 1)
    moments = ADAM_BYTES * num_trained / (num_devices if zero_stage >= 1 else 1)
    return weights + gradients + moments


def activation_bytes(
    shape: TransformerShape,
    *,
    num_tokens: float,
    length: int,
    bytes_per_value: int,
    checkpointing: bool,
    num_scores: float,
) -> float:
    """Bytes that a micro-batch keeps for its backward pass.

    Per token and layer: both normalisations' inputs and outputs (4 h), queries, keys, values, the attention's output, and the
    MLP's inner values (gated: 4, else 2 of the inner size); and what attention keeps of its scores. Checkpointing keeps
    a layer's input of every layer and the rest of one layer at a time.

    Args:
        num_tokens: padded tokens of a micro-batch.
        num_scores: how often scores are kept, heads x length per token: fused kernels keep none, products (attention.py) the
            softmax, of short texts alone, and eager attention two; so does a shape that writes them, whatever is said here.
    """
    attention = shape.head_size * (2 * shape.num_heads + 2 * shape.num_kv_heads)
    inner = (4 if shape.gated_mlp else 2) * shape.intermediate_size
    scores = (2 if shape.writes_scores else num_scores) * shape.num_heads * length
    layer = 4 * shape.hidden_size + attention + inner + scores
    per_token = shape.num_layers * shape.hidden_size + layer if checkpointing else shape.num_layers * layer
    return num_tokens * bytes_per_value * per_token


def backward_bytes(shape: TransformerShape, *, num_tokens: float, bytes_per_value: int) -> float:
    """Bytes that a backward pass writes for a moment, beside what was kept: gradients within one layer.

    Per token: those of the MLP's inner values (gated: 3, else 2 of the inner size) and of the layer's output and input (2 h).
    """
    inner = (3 if shape.gated_mlp else 2) * shape.intermediate_size
    return num_tokens * bytes_per_value * (inner + 2 * shape.hidden_size)


def cache_bytes(shape: TransformerShape, *, num_tokens: float, bytes_per_value: int) -> float:
    """Bytes of a rollout engine's keys and values."""
    return 2 * shape.num_layers * shape.num_kv_heads * shape.head_size * bytes_per_value * num_tokens


def gradient_traffic_bytes(num_parameters: int, *, num_trained: int, zero_stage: int, num_devices: int) -> float:
    """Bytes that each device sends per optimiser step: a ring's reduce-scatter and all-gather, 4 bytes a value; at stage 3 the
    weights are gathered for the forward and again for the backward pass instead of the all-gather of the updated ones."""
    share = (num_devices - 1) / num_devices
    if zero_stage == 3:
        return share * (2 * WEIGHT_BYTES * num_parameters + GRADIENT_BYTES * num_trained)
    return 2 * share * GRADIENT_BYTES * num_trained


def synchronization_bytes(num_parameters: int, *, num_engines: int, bytes_per_value: int) -> float:
    """Bytes that leave the learners when they hand their weights to rollout engines on other nodes: a copy for each."""
    return float(num_parameters * bytes_per_value * num_engines)


def decoding_seconds(
    shape: TransformerShape,
    *,
    num_tokens: float,
    num_concurrent: float,
    mean_length: float,
    bytes_per_value: int,
    bytes_per_second: float,
) -> float:
    """Seconds at least in which one engine writes tokens: each round of one token per sequence reads all weights and every
    sequence's keys and values.

        t = n / c (b P + c κ(s)) / B        n tokens, c at a time, b bytes a value, κ(s) cache of s tokens, B bytes per second

    Args:
        num_concurrent: sequences that are written side by side.
        mean_length: tokens of a sequence, prompt included, half-way through its response.

    Source: Pope et al. (2022), "Efficiently Scaling Transformer Inference", section 2: memory-bound decoding.
    """
    cache = cache_bytes(shape, num_tokens=mean_length, bytes_per_value=bytes_per_value)
    weights = bytes_per_value * (shape.num_parameters + shape.hidden_size * shape.vocab_size)
    return num_tokens / num_concurrent * (weights + num_concurrent * cache) / bytes_per_second


def logits_bytes(shape: TransformerShape, *, num_tokens: float, bytes_per_value: int = 4) -> float:
    """Bytes of a micro-batch's logits over the vocabulary and of their gradient."""
    return 2 * num_tokens * shape.vocab_size * bytes_per_value
