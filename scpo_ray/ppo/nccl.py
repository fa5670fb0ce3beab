"""vLLM's NCCL weight transfer: from the learners' first GPU straight into the engines' GPUs, past the host.

vLLM's own trainer side drives the handshake; here are its two ends: a client that reaches rollout engines as Ray actors, and
the policy as a source of weights. Every learner iterates the source (under ZeRO-3 each module is gathered on all ranks), the
first one sends.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import torch
from torch import Tensor

Weights = Callable[[], Iterator[tuple[str, Tensor]]]
"""A fresh pass over (name, whole tensor), in an order that stays."""


class EngineClient:
    """What vLLM's sender calls on the receiving side, on every engine at once; engine i is rank i + 1 of the transfer."""

    def __init__(self, engines: Sequence[Any]) -> None:
        self._engines = list(engines)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Join the group that the sender opens; it joins at the same time."""
        ray.get(
            [
                engine.open_transfer.remote(init_info | {"rank_offset": index + 1})
                for index, engine in enumerate(self._engines)
            ]
        )

    def start_weight_update(self) -> None:
        """Prepare to load."""
        ray.get([engine.start_weight_update.remote() for engine in self._engines])

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive and load, while the sender sends."""
        ray.get([engine.receive.remote(update_info) for engine in self._engines])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """All is loaded."""
        ray.get([engine.finish_weight_update.remote() for engine in self._engines])


def open_sender(*, rank: int, host: str, port: int, engines: Sequence[Any], weights: Weights) -> Any:
    """A learner's end of the transfer; `send_weights()` on all ranks sends once.

    Args:
        rank: of the learner; 0 sends, the others take part in gathering.
        host, port: where the first learner waits for the engines.
    """
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

    info = NCCLTrainerInitInfo(rank=rank, master_address=host, master_port=port, world_size=1 + len(engines))
    return NCCLTrainerWeightTransferEngine.trainer_init(info, client=EngineClient(engines), source=source_of(weights))


def source_of(weights: Weights) -> Any:
    """The policy as vLLM's WeightSource. Shapes are learned by one pass, at the first transfer."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class PolicySource(WeightSource):
        """Names, types and shapes; and the tensors."""

        def __init__(self) -> None:
            self._metadata: list[ParamMeta] | None = None

        def metadata(self) -> list[ParamMeta]:
            if self._metadata is None:
                self._metadata = [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights()]
            return self._metadata

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            return weights()

    return PolicySource()
