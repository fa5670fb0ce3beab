"""DeepSpeed around a model: steps, gathered weights, checkpoints."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import deepspeed
import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from torch import nn
from transformers import PreTrainedModel

from scpo_ray.config import LoraConfig
from scpo_ray.errors import ScpoError, StorageError
from scpo_ray.folders import storage_errors
from scpo_ray.precision import uses_bfloat16
from scpo_ray.training.step import parameter_groups
from scpo_ray.training.task import ZERO_STAGE_FILE

if TYPE_CHECKING:
    from peft import PeftModel


class EngineSettings(Protocol):
    """What an engine reads of a stage's settings."""

    @property
    def weight_decay(self) -> float: ...  # noqa: D102
    @property
    def adam_beta1(self) -> float: ...  # noqa: D102
    @property
    def adam_beta2(self) -> float: ...  # noqa: D102
    @property
    def max_grad_norm(self) -> float: ...  # noqa: D102
    @property
    def zero_stage(self) -> int: ...  # noqa: D102
    @property
    def precision(self) -> str: ...  # noqa: D102


def join_group(backend: Literal["nccl", "gloo"]) -> None:
    """Let DeepSpeed compute in the process group that is there, or that the environment describes.

    DeepSpeed would have the first process on a machine compile sums of its own over gloo's, half a minute on a laptop.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, verbose=False)


def make_engine(
    model: nn.Module,
    config: EngineSettings,
    *,
    world_size: int,
    device: torch.device,
    learning_rate: float,
    accumulation_steps: int = 1,
) -> DeepSpeedEngine:
    """A DeepSpeed engine with AdamW; ZeRO stage and precision from the config."""
    optimizer = torch.optim.AdamW(
        parameter_groups(model, weight_decay=config.weight_decay),
        lr=learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        fused=True,  # one pass over memory, which otherwise shows in a small model's steps on a CPU
    )
    bfloat16 = uses_bfloat16(config.precision, device)
    settings = deepspeed_config(config, world_size=world_size, accumulation_steps=accumulation_steps, bfloat16=bfloat16)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    if world_size == 1 and config.zero_stage == 0:
        # One rank has nothing to reduce, but DeepSpeed would copy every gradient into a bucket and back.
        engine.enable_backward_allreduce = False
    return engine


def make_frozen_engine(
    model: nn.Module, config: EngineSettings, *, world_size: int, device: torch.device
) -> DeepSpeedEngine:
    """A model that is only read, its parameters partitioned over the ranks (ZeRO-3)."""
    bfloat16 = uses_bfloat16(config.precision, device)
    settings = deepspeed_config(config, world_size=world_size, accumulation_steps=1, bfloat16=bfloat16)
    engine, *_ = deepspeed.initialize(model=model, config=settings)
    return engine


def deepspeed_config(config: EngineSettings, *, world_size: int, accumulation_steps: int, bfloat16: bool) -> dict:
    """DeepSpeed's own settings. Batch sizes are formal: micro-batches are cut by the loop, not by DeepSpeed."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation_steps,
        "train_batch_size": accumulation_steps * world_size,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": {"stage": config.zero_stage, "stage3_gather_16bit_weights_on_model_save": True},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {
            "enabled": bfloat16,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],  # gradients are reduced in float32
        },
        "wall_clock_breakdown": False,
        "steps_per_print": 10**9,
    }


def with_adapters(
    model: PreTrainedModel, config: LoraConfig, *, task: Literal["SEQ_CLS", "CAUSAL_LM"] = "SEQ_CLS"
) -> PreTrainedModel:
    """The model with trainable low-rank adapters (and reward head), the backbone frozen; itself when LoRA is off."""
    if not config.enabled:
        return model
    import peft

    return peft.get_peft_model(
        model,
        peft.LoraConfig(
            task_type=peft.TaskType[task],
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=config.target_modules
            if isinstance(config.target_modules, str)
            else list(config.target_modules),
        ),
    )


def gather_state(engine: DeepSpeedEngine) -> dict[str, torch.Tensor] | None:
    """The whole model's weights on rank 0's CPU, None elsewhere. Every rank must call it."""
    module = engine.module
    if engine.zero_optimization_stage() < 3:
        return _copied(module) if dist.get_rank() == 0 else None
    state: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            if dist.get_rank() == 0:
                state[name] = parameter.detach().cpu().clone()
    if dist.get_rank() != 0:
        return None
    persistent = set(module.state_dict())
    return state | {
        name: buffer.detach().cpu().clone() for name, buffer in module.named_buffers() if name in persistent
    }


def merge_adapters(model: "PeftModel", state: dict[str, torch.Tensor], *, keep: Path) -> PreTrainedModel:
    """A plain model with `state`'s weights, adapters folded in, and the adapters with the reward head in the folder `keep`.

    Args:
        model: what `with_adapters` returned, on CPU.
    """
    model.load_state_dict(state)
    model.peft_config["default"].base_model_name_or_path = "the run's global reward model"  # not a path of this machine
    model.save_pretrained(str(keep), save_embedding_layers=False)
    return model.merge_and_unload()


@contextlib.contextmanager
def raised_on_every_rank() -> Iterator[None]:
    """What one rank raises of scpo_ray's errors, all raise: nobody waits for a rank that has given up."""
    error = None
    try:
        yield
    except ScpoError as raised:
        error = raised
    errors: list[ScpoError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    for found in errors:
        if found is not None:
            raise found


def save_checkpoint(engines: Mapping[str, DeepSpeedEngine], folder: Path, *, state: dict) -> None:
    """Every rank's part of every engine into one folder that appears whole: written beside, renamed when all have written.

    Raises:
        StorageError: a rank could not write its part (raised on every rank); older checkpoints are still there.
    """
    staging = folder.with_name(f".{folder.name}.tmp")
    with raised_on_every_rank(), storage_errors(str(staging)):
        if dist.get_rank() == 0:
            shutil.rmtree(staging, ignore_errors=True)
            for name in engines:
                (staging / name).mkdir(parents=True)
            stage = max(engine.zero_optimization_stage() for engine in engines.values())
            (staging / ZERO_STAGE_FILE).write_text(str(stage))
    writer = _PatientWriter()
    for name, engine in engines.items():
        engine.checkpoint_engine = writer
        engine.save_checkpoint(str(staging), tag=name, save_latest=False, exclude_frozen_parameters=True)
    writer.save(state | {"rng": torch.get_rng_state()}, str(staging / f"rank_{dist.get_rank()}.pt"))
    with raised_on_every_rank():
        if writer.error is not None:
            raise writer.error
    with raised_on_every_rank(), storage_errors(str(folder)):
        if dist.get_rank() == 0:
            os.rename(staging, folder)


class _PatientWriter(TorchCheckpointEngine):
    """Keeps a failed write's error for later: DeepSpeed's barriers come first, and a rank that left would hang the rest."""

    error: StorageError | None = None

    def save(self, state_dict: dict, path: str) -> None:
        """Write one file, or note why not."""
        try:
            torch.save(state_dict, path)
        except (OSError, RuntimeError) as error:  # torch's C++ writer reports a full disk as a RuntimeError
            reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
            self.error = self.error or StorageError(
                f"{path}: the checkpoint cannot be written ({reason}); free space and rerun, the last one is still there"
            )


def load_checkpoint(engines: Mapping[str, DeepSpeedEngine], folder: Path) -> dict:
    """Restore weights, optimisers and random numbers; return the state that was saved with them.

    A rank beyond those that wrote goes on with its own random numbers.
    """
    for name, engine in engines.items():
        engine.load_checkpoint(str(folder), tag=name, load_module_strict=False)
    own, first = (folder / f"rank_{rank}.pt" for rank in (dist.get_rank(), 0))
    state = torch.load(own if own.exists() else first, weights_only=True)
    random_numbers = state.pop("rng")
    if own.exists():
        torch.set_rng_state(random_numbers)
    return state


def _copied(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
