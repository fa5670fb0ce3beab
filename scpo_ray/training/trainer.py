"""The state of one training on one rank, and what it does with a batch."""

import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from scpo_ray import models
from scpo_ray.config import OptimizationConfig
from scpo_ray.core.batching import packed_batches
from scpo_ray.core.schedules import learning_rate, num_optimizer_steps
from scpo_ray.errors import DataError, TrainingError
from scpo_ray.formatting import Formatter
from scpo_ray.packing import Packer, can_pack, tokens_per_pass
from scpo_ray.training import engine as engines
from scpo_ray.training.batches import InputsOf, Item, PreferenceSet
from scpo_ray.training.data import load_preferences
from scpo_ray.training.step import collate_items, normalizers, part_loss, placeholder_loss
from scpo_ray.training.task import StepReport, TrainingTask


class Trainer:
    """The state of one training on one rank: data, engine, and what a checkpoint must restore."""

    def __init__(self, task: TrainingTask, base: models.RewardModel, *, device: torch.device) -> None:
        self.task, self.config = task, task.config
        self.rank, self.world_size, self.device = dist.get_rank(), dist.get_world_size(), device
        self.seed = _training_seed(task)
        torch.manual_seed(self.seed + self.rank)
        self.tokenizer = base.tokenizer
        self.formatter = Formatter(base.tokenizer, task.format_config)
        data = load_preferences(task, self.formatter, split="train")
        if data is None:
            raise DataError(f"{task.name}: no training pairs left after selection; raise select.agreement_threshold")
        self.data: PreferenceSet = data
        self.validation = load_preferences(task, self.formatter, split="validation")
        if self.validation is None and (self.config.patience is not None or self.config.keep == "best"):
            raise DataError(
                f"{task.name}: no validation pairs, which patience and keep: best need; raise "
                "prepare.validation_fraction or leave both unset"
            )
        self.num_steps = num_optimizer_steps(
            num_items=task.num_items or len(data),
            batch_size=self.config.batch_size,
            epochs=self.config.epochs,
            max_steps=self.config.max_steps,
            max_overrides=self.config.max_steps_overrides_epochs,
        )
        self.packer = Packer(base.model) if _packs(base.model, self.config, device) else None
        self.inputs_of: InputsOf = partial(self.formatter.pad, multiple=self.config.pad_to_multiple)
        if self.packer is not None:
            self.inputs_of = self.packer.inputs_of
        model = engines.with_adapters(base.model, self.config.lora)
        self.model = model
        models.prepare_for_training(
            model,
            dropout=self.config.dropout,
            gradient_checkpointing=self.config.gradient_checkpointing,
            is_narrow=self.packer is not None,
        )
        models.keep_head_float32(model)
        # With fewer ranks than configured, each takes more parts: they grow no larger than its memory was meant for.
        self.accumulation_steps = math.ceil(self.config.num_workers / self.world_size) * self.config.accumulation_steps
        self.engine = engines.make_engine(
            model,
            self.config,
            world_size=self.world_size,
            device=device,
            learning_rate=self.config.learning_rate,
            accumulation_steps=self.accumulation_steps,
        )
        self.step = 0
        self.losses: list[float] = []
        self.validation_losses: list[tuple[int, float]] = []
        self.margin = float("nan")
        """Of the last step."""
        self.is_called = False
        self.num_pairs = self.num_tokens = self.num_padded_tokens = 0
        self._seen_before = self._seen()
        self.wall_time_s = 0.0

    def train_step(self, batch: Sequence[Item], *, calls: bool = False) -> float:
        """One optimiser step on a global batch; returns its loss over all ranks, nats per pair.

        Args:
            calls: this rank wants all of them to confer after the step: `is_called` says so to every one.

        Raises:
            TrainingError: the loss is not finite (raised on every rank).
        """
        rate = learning_rate(
            step=self.step,
            num_steps=self.num_steps,
            peak=self.config.learning_rate,
            warmup_fraction=self.config.warmup_fraction,
            schedule=self.config.schedule,
        )
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        normalizer, num_pairs = normalizers(batch, self.config)
        parts = self.data.split(batch, num_parts=self.world_size * self.accumulation_steps)
        passes = [each for part in parts[self.rank :: self.world_size] for each in self._passes(part)]
        totals = torch.tensor([0, 0, 0, 0, calls], dtype=torch.float64)  # loss, tokens, padded tokens, margins, calls
        for number, part in enumerate(passes):
            self.engine.set_gradient_accumulation_boundary(number == len(passes) - 1)
            if part:
                micro_batch = collate_items(part, self.data, self.inputs_of, self.config)
                loss, margin_sum = part_loss(
                    self.engine, micro_batch.to(self.device), self.config, normalizer=normalizer, num_pairs=num_pairs
                )
                num_padded = max(
                    micro_batch.num_tokens, micro_batch.inputs["input_ids"].numel()
                )  # fewer: some are shared
                seen = (micro_batch.num_tokens, num_padded)
                totals += torch.tensor([loss.item(), *seen, margin_sum.item(), 0])
            else:
                loss = placeholder_loss(self.engine, self.data, self.inputs_of, self.config)
            # DeepSpeed averages over ranks and accumulation steps; the parts are to be summed.
            self.engine.backward(loss * (self.world_size * self.accumulation_steps))
            self.engine.step()
        total = self._sum_over_ranks(totals)
        self.step += 1
        self.num_pairs += int(num_pairs)
        self.num_tokens += int(total[1])
        self.num_padded_tokens += int(total[2])
        self.margin = total[3] / num_pairs
        self.is_called = total[4] > 0
        self._check_finite(total[0], "loss")
        self.losses.append(total[0])
        return total[0]

    def _passes(self, part: Sequence[Item]) -> list[list[Item]]:
        """A part, cut where it is packed into passes that take little memory; their gradients add up.

        Of several ranks each makes one pass: all must make as many.
        """
        if self.packer is None or self.world_size > 1 or not part:
            return [list(part)]
        lengths = [sum(len(self.data.sequences[index].input_ids) for index in item.responses) for item in part]
        most = tokens_per_pass(self.model.config.intermediate_size)
        return [[part[index] for index in rows] for rows in packed_batches(lengths, tokens_per_batch=most)]

    @torch.no_grad()
    def validate(self) -> float:
        """Mean unweighted loss on the communities' validation pairs, over all ranks, nats per pair."""
        assert self.validation is not None
        plain = self.config.model_copy(update={"centering_coefficient": 0.0, "margin_per_score": 0.0})
        self.engine.eval()
        parts_per_rank = max(1, math.ceil(len(self.validation) / (self.world_size * self.config.batch_size)))
        parts = self.validation.split(self.validation.items, num_parts=parts_per_rank * self.world_size)
        total = torch.zeros(1, dtype=torch.float64)
        for part in parts[self.rank :: self.world_size]:
            if part:
                micro_batch = collate_items(part, self.validation, self.inputs_of, plain).to(self.device)
                total += part_loss(
                    self.engine,
                    micro_batch,
                    plain,
                    normalizer=self.validation.num_pairs,
                    num_pairs=self.validation.num_pairs,
                ).loss.item()
            else:
                placeholder_loss(self.engine, self.validation, self.inputs_of, plain)
        self.engine.train()
        (loss,) = self._sum_over_ranks(total)
        self._check_finite(loss, "validation loss")
        self.validation_losses.append((self.step, loss))
        return loss

    def report(self) -> StepReport:
        """Where it stands after a step."""
        seen = (now - before for now, before in zip(self._seen(), self._seen_before, strict=True))
        return StepReport(self.step, self.num_steps, self.losses[-1], self.margin, *seen)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's `state`."""
        for name, value in state.items():
            setattr(self, name, value)
        self._seen_before = self._seen()

    def _seen(self) -> tuple[int, int, int]:
        return self.num_pairs, self.num_tokens, self.num_padded_tokens

    @property
    def best_step(self) -> int | None:
        """The step of the lowest validation loss, the first of equals; None before the first validation."""
        return (
            min(self.validation_losses, key=lambda entry: (entry[1], entry[0]))[0] if self.validation_losses else None
        )

    def is_out_of_patience(self) -> bool:
        """Whether the last `patience` validations brought no lower loss."""
        if self.config.patience is None or self.best_step is None:
            return False
        return sum(step > self.best_step for step, _ in self.validation_losses) >= self.config.patience

    def _sum_over_ranks(self, values: torch.Tensor) -> list[float]:
        values = values.to(self.device)
        dist.all_reduce(values)
        return values.tolist()

    def _check_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"{self.task.name}: {what} is {value} at step {self.step} of {self.num_steps}; lower learning_rate "
                f"({self.config.learning_rate}) or use precision float32"
            )


def _packs(model: PreTrainedModel, config: OptimizationConfig, device: torch.device) -> bool:
    """Whether batches go through the model without padding."""
    return device.type == "cpu" and config.is_packed and can_pack(model)


def _training_seed(task: TrainingTask) -> int:
    """The config's seed, or one from the operating system, shared by all ranks, when `seeded` is off."""
    if task.config.seeded:
        return task.seed
    seed = [int.from_bytes(os.urandom(4)) if dist.get_rank() == 0 else 0]
    dist.broadcast_object_list(seed, src=0)
    return seed[0]
