"""A policy's weights from learners to engines, and the proof that they have arrived.

Learners publish the whole policy in chunks (gathered module by module under ZeRO-3, adapters folded in); engines take the
chunks from the object store, or receive the tensors over NCCL (`ppo.nccl`). Afterwards three things must agree, or the run
stops: the version, a checksum of the tensors as they came in, and the log-probabilities of canary sequences as the engine
computes them with what it has loaded.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
import xxhash
from torch import Tensor, nn

from scpo_ray.errors import SynchronizationError
from scpo_ray.ppo.records import SyncReport, WeightUpdate

_CHUNK_BYTES = 256 * 2**20
"""Weights that are on the way at once."""
_OUTPUT = "lm_head.weight"

Gather = Callable[[list[nn.Parameter]], "object"]
"""A context in which the parameters are whole."""


class Checksum:
    """Of tensors in their order: names, shapes, types, bytes."""

    def __init__(self) -> None:
        self._digest = xxhash.xxh3_128()
        self.num_bytes = 0

    def update(self, name: str, tensor: Tensor) -> None:
        """Take in one tensor."""
        self._digest.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
        content = tensor.detach().cpu().contiguous().view(torch.uint8).numpy() if tensor.numel() else b""
        self._digest.update(content)
        self.num_bytes += tensor.numel() * tensor.element_size()

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        return self._digest.hexdigest()


def named_weights(
    model: nn.Module, gather: Gather, *, dtype: torch.dtype, device: str = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """(name, copy of the tensor) of a plain transformers policy, one module at a time.

    Adapters (PEFT) are folded into their layers' weights. Tied output embeddings come under their own name as well: engines
    keep them apart. Every rank must exhaust it; all ranks get the tensors.
    """
    seen: set[str] = set()
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if _is_adapter_part(prefix):
            continue
        if hasattr(module, "get_delta_weight"):
            yield from _folded(prefix, module, gather, dtype, device)
        elif own:
            with gather(list(own.values())):
                tensors = {name: _exported(parameter, dtype, device) for name, parameter in own.items()}
            for name, tensor in tensors.items():
                plain = _plain_name(f"{prefix}.{name}" if prefix else name)
                seen.add(plain)
                yield plain, tensor
    if getattr(model.config, "tie_word_embeddings", False) and _OUTPUT not in seen:
        embedding = model.get_input_embeddings().weight
        with gather([embedding]):
            tensor = _exported(embedding, dtype, device)
        yield _OUTPUT, tensor


def _folded(
    prefix: str, module: nn.Module, gather: Gather, dtype: torch.dtype, device: str
) -> Iterator[tuple[str, Tensor]]:
    base = module.base_layer
    parts = [*module.lora_A.parameters(), *module.lora_B.parameters(), *base.parameters(recurse=False)]
    with gather(parts):
        tensors = {
            name: _exported(parameter, torch.float32, device)
            for name, parameter in base.named_parameters(recurse=False)
        }
        with torch.no_grad():
            delta = module.get_delta_weight(module.active_adapters[0]).float().to(device)
        tensors["weight"] = tensors["weight"] + delta
    for name, tensor in tensors.items():
        yield _plain_name(f"{prefix}.{name}"), tensor.to(dtype)


def _is_adapter_part(prefix: str) -> bool:
    return any(part.startswith("lora_") or part == "base_layer" for part in prefix.split("."))


def _plain_name(name: str) -> str:
    return name.removeprefix("base_model.model.")


def _exported(parameter: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    return parameter.detach().to(device=device, dtype=dtype, copy=True)


def chunked(weights: Iterable[tuple[str, Tensor]]) -> Iterator[list[tuple[str, Tensor]]]:
    """Lists of (name, tensor) of some hundred megabytes each."""
    chunk: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in weights:
        chunk.append((name, tensor))
        size += tensor.numel() * tensor.element_size()
        if size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def default_tolerance(precision: str) -> float:
    """Largest difference of a log-probability that rounding explains, nats. Float32: measured 5e-7 to 5e-6."""
    return 1e-4 if precision == "float32" else 0.25


def check(update: WeightUpdate, report: SyncReport, *, engine: str, tolerance: float) -> float:
    """Whether an engine now holds the learner's weights; the largest canary difference, nats.

    Raises:
        SynchronizationError: version, checksum or canaries differ; it says by how much.
    """
    if report.version != update.version:
        raise SynchronizationError(
            f"{engine}: has weights of version {report.version}, the learner published {update.version}: a synchronisation was "
            "skipped; the last checkpoint is intact, rerun to resume from it"
        )
    if report.checksum != update.checksum:
        raise SynchronizationError(
            f"{engine}: weights of version {update.version} came in with checksum {report.checksum}, the learner sent "
            f"{update.checksum}: they were damaged on the way; rerun to resume from the last checkpoint"
        )
    difference = canary_difference(update, report)
    if not difference <= tolerance:
        raise SynchronizationError(
            f"{engine}: a canary token's log-probability differs from the learner's by {difference:.3g} nats after weights of "
            f"version {update.version}, ppo.sync_tolerance is {tolerance:.3g}: the engine computes with other weights; rerun to "
            "resume, or raise the tolerance if its precision explains it"
        )
    return difference


def canary_difference(update: WeightUpdate, report: SyncReport) -> float:
    """Largest difference between the learner's and the engine's log-probabilities of canary tokens, nats."""
    expected = torch.tensor([value for row in update.canaries.log_probs for value in row], dtype=torch.float64)
    found = torch.tensor([value for row in report.log_probs for value in row], dtype=torch.float64)
    if expected.shape != found.shape:
        return float("inf")
    return float((expected - found).abs().max()) if len(expected) else 0.0
