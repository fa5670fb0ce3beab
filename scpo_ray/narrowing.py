"""The last layer's MLP, most of that layer, computed only where a reward is read. Exact: nothing else reads the rest."""

from collections.abc import Callable

from torch import Tensor, nn

_ENCODERS = ("bert", "roberta", "xlm-roberta", "deberta", "deberta-v2")
"""Their rewards read the first token."""


def narrow_encoder(model: nn.Module, rows: "Callable[[], slice | Tensor]" = lambda: slice(0, 1)) -> None:
    """What comes out of the last layer is narrow, and so is all that follows.

    Args:
        model: a sequence classifier, bare or with adapters; models of other architectures are left as they are.
        rows: which of the tokens, second dimension of the layer's states, are read in the pass that runs.
    """
    last = _last_layer(model)
    if last is None:
        return
    last.intermediate.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, rows()],))
    last.output.register_forward_pre_hook(lambda _, inputs: (inputs[0], inputs[1][:, rows()]))


def narrow_decoder(layer: nn.Module, rows: Callable[[], Tensor]) -> None:
    """The layer adds its MLP to all tokens: zero where nobody reads.

    Args:
        layer: the last one.
        rows: which of a single row's tokens are read in the pass that runs.
    """
    whole = layer.mlp.forward

    def narrow(states: Tensor) -> Tensor:
        read = rows()
        found = whole(states[:, read])
        spread = found.new_zeros(*states.shape[:2], found.shape[-1])
        spread[:, read] = found
        return spread

    layer.mlp.forward = narrow


def _last_layer(model: nn.Module) -> nn.Module | None:
    config = getattr(model, "config", None)
    if config is None or config.model_type not in _ENCODERS or getattr(config, "chunk_size_feed_forward", 0):
        return None
    if getattr(config, "conv_kernel_size", 0) and config.num_hidden_layers == 1:
        return None  # DeBERTa's first layer may be followed by a convolution over all tokens
    ending = f"encoder.layer.{config.num_hidden_layers - 1}"
    return next((module for name, module in model.named_modules() if name.endswith(ending)), None)
