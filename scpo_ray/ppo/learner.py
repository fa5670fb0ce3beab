"""One rank of the learners: a policy, its frozen reference and its critic under DeepSpeed.

Ranks do everything together: a method is called on all of them or on none. Model libraries are imported where the actor
starts; what is computed is in `ppo.forward`, `ppo.updates` and `core`.
"""

import contextlib
import gc
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from scpo_ray import telemetry
from scpo_ray.artifacts import Recipe, RunDirectory
from scpo_ray.config import LearnerConfig, PpoConfig
from scpo_ray.ppo.hanging import EndsIfHung
from scpo_ray.ppo.records import CRITIC, POLICY, Canaries, Experience, Sequences, WeightUpdate
from scpo_ray.precision import uses_bfloat16
from scpo_ray.training.task import checkpoint_in, refuse_other_layout

if TYPE_CHECKING:
    from torch import Tensor

    from scpo_ray.ppo.forward import MicroBatch, RankBatch


@dataclass(frozen=True)
class LearnerTask:
    """What a group learns: one policy from its start to its artifact."""

    name: str
    start: str
    """Address of the policy to start from, as `model_files.resolve` understands it."""
    config: LearnerConfig
    seed: int
    temperature: float = 1.0
    reference: str | None = None
    """Address of the policy that it is held to; it is the start policy with its adapters off where there are adapters."""
    has_critic: bool = False
    run: str = ""
    """With `stage` and `community`, what log lines say."""
    stage: str = ""
    community: str = ""


class Learner(EndsIfHung):
    """A rank. Build with its number and the group's size, then `connect`, then `begin` a task."""

    def __init__(self, rank: int, num_ranks: int, *, threads: int, uses_gpu: bool) -> None:
        if not uses_gpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ["OMP_NUM_THREADS"] = str(threads)
        import torch

        torch.set_num_threads(threads)
        self._rank, self._num_ranks, self._uses_gpu = rank, num_ranks, uses_gpu
        self._device = torch.device("cuda" if uses_gpu else "cpu")
        self._engines: dict[str, Any] = {}

    def pid(self) -> int:
        """Of the actor's process."""
        return os.getpid()

    def import_libraries(self) -> None:
        """What `begin` needs, which takes seconds."""
        import deepspeed  # noqa: F401

        import scpo_ray.ppo.forward
        import scpo_ray.training.engine  # noqa: F401

    def address(self) -> tuple[str, int]:
        """Where the group can meet: this rank's host and a free port."""
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def connect(self, host: str, port: int) -> None:
        """Join the group."""
        from scpo_ray.training.engine import join_group

        os.environ |= {
            "MASTER_ADDR": host,
            "MASTER_PORT": str(port),
            "RANK": str(self._rank),
            "WORLD_SIZE": str(self._num_ranks),
            "LOCAL_RANK": "0",  # Ray shows a worker its own GPU alone
        }
        join_group("nccl" if self._uses_gpu else "gloo")

    def begin(self, task: LearnerTask) -> None:
        """Load the start policy; what an earlier task has left is dropped.

        Raises:
            ModelError: the start policy cannot be used.
        """
        import torch

        from scpo_ray import model_files, models, policies
        from scpo_ray.ppo.forward import Critic
        from scpo_ray.training import engine as engines

        self._end()
        self._task, config = task, task.config
        torch.manual_seed(task.seed + self._rank)
        self._start = model_files.resolve(task.start)
        loaded = policies.load(self._start, attention=config.attention)
        self._tokenizer, self._pad_token_id = loaded.tokenizer, models.pad_token_id(loaded.tokenizer)
        self._bfloat16 = uses_bfloat16(config.precision, self._device)
        critic = Critic(loaded.model) if task.has_critic else None
        self._reference = None
        if task.reference is not None and not (config.lora.enabled and task.reference == task.start):
            self._reference = self._frozen(
                policies.load(model_files.resolve(task.reference), attention=config.attention).model
            )
        policy = engines.with_adapters(loaded.model, config.lora, task="CAUSAL_LM")
        for name, model in ((POLICY, policy), (CRITIC, critic)):
            if model is not None:
                models.prepare_for_training(
                    model, dropout=False, gradient_checkpointing=config.gradient_checkpointing and name == POLICY
                )
                self._engines[name] = engines.make_engine(
                    model, config, world_size=self._num_ranks, device=self._device, learning_rate=1.0
                )
        self._log("begun", start=task.start)

    def describe(self) -> dict[str, object]:
        """Architecture and sizes of the policy."""
        from scpo_ray import policies

        return policies.describe(self._engines[POLICY].module)

    def evaluate(self, sequences: Sequences) -> dict[str, "Tensor"]:
        """This rank's share of a batch under policy, reference and critic as they are.

        Returns:
            rows, and of those rows log_probs, reference_log_probs and values, [rows, tokens], as far as the task has them.
        """
        import torch

        from scpo_ray.ppo import forward

        width = max(len(response) for response in sequences.responses)
        found: dict[str, list[Tensor]] = {}
        rows: list[int] = []
        with torch.no_grad():
            for batch in self._batches(sequences, range(len(sequences.responses))):
                results = {"log_probs": self._log_probs(self._engines[POLICY], batch)}
                if self._task.reference is not None:
                    with self._as_reference() as reference:
                        results["reference_log_probs"] = self._log_probs(reference, batch)
                if CRITIC in self._engines:
                    results["values"] = forward.values_of(self._engines[CRITIC], batch)
                if not batch.is_placeholder:
                    rows += batch.rows
                    for name, tensor in results.items():
                        padding = (0, width - tensor.shape[1])
                        found.setdefault(name, []).append(torch.nn.functional.pad(tensor.float().cpu(), padding))
        tensors = {name: torch.cat(parts) for name, parts in found.items()}
        return {"rows": torch.tensor(rows, dtype=torch.long), **tensors}

    def update(self, experience: Experience, step: int) -> dict[str, float]:
        """Every pass over a step's responses; means over its optimiser steps.

        Raises:
            TrainingError: a loss is not finite (on every rank).
        """
        import torch

        from scpo_ray.ppo import updates

        config = self._task.config
        assert isinstance(config, PpoConfig)
        warmth = min(1.0, (step + 1) / max(config.warmup_steps, 1))
        self._set_learning_rate(POLICY, warmth * config.learning_rate * (step >= config.critic_warmup_steps))
        self._set_learning_rate(CRITIC, warmth * config.critic_learning_rate)
        generator = torch.Generator()
        totals: dict[str, float] = {}
        number = len(experience.sequences.responses)
        for epoch in range(config.update_epochs):
            generator.manual_seed((self._task.seed * 1_000_003 + step) * 1_009 + epoch)
            order = torch.randperm(number, generator=generator).tolist()
            for minibatch in range(config.num_minibatches):
                rows = sorted(order[minibatch :: config.num_minibatches])
                losses = updates.ppo_losses(self._engines, experience, rows, config)
                batches = self._batches(experience.sequences, rows)
                for name, value in updates.optimise(self._engines, batches, losses, name=self._task.name).items():
                    totals[name] = totals.get(name, 0.0) + value / (config.update_epochs * config.num_minibatches)
        self._log("updated", step=step, **totals)
        return totals

    def imitate(self, sequences: Sequences, rows: Sequence[int], *, learning_rate: float) -> float:
        """One optimiser step of supervised learning; the loss, nats per response token.

        Raises:
            TrainingError: the loss is not finite (on every rank).
        """
        from scpo_ray.ppo import updates

        num_tokens = sum(len(sequences.responses[row]) for row in rows)
        self._set_learning_rate(POLICY, learning_rate)

        def loss(batch: "MicroBatch") -> dict[str, "Tensor"]:
            return {POLICY: -self._log_probs(self._engines[POLICY], batch).sum() / num_tokens}

        batches = self._batches(sequences, rows)
        return updates.optimise(self._engines, batches, loss, name=self._task.name)["policy_loss"]

    def publish(self, version: int, canaries: Sequence[Sequence[int]], dtype: str) -> WeightUpdate | None:
        """The policy's weights in the object store, on rank 0; None elsewhere."""
        import torch

        from scpo_ray.ppo import sync

        log_probs = self._canary_log_probs(canaries)
        checksum, chunks = sync.Checksum(), []
        weights = sync.named_weights(self._engines[POLICY].module, self._gather, dtype=getattr(torch, dtype))
        for chunk in sync.chunked(weights):
            if self._rank == 0:
                for name, tensor in chunk:
                    checksum.update(name, tensor)
                chunks.append(ray.put(chunk))
        if self._rank != 0:
            return None
        canary = Canaries(tuple(map(tuple, canaries)), log_probs)
        return WeightUpdate(version, tuple(chunks), checksum.hexdigest(), checksum.num_bytes, canary)

    def open_transfer(self, host: str, port: int, engines: Sequence[Any], dtype: str) -> None:
        """Join the engines in an NCCL group; see `ppo.nccl`."""
        import torch

        from scpo_ray.ppo import nccl, sync

        def weights() -> "Iterator[tuple[str, Tensor]]":
            self._sent = sync.Checksum()
            module = self._engines[POLICY].module
            for name, tensor in sync.named_weights(module, self._gather, dtype=getattr(torch, dtype), device="cuda"):
                if self._rank == 0:
                    self._sent.update(name, tensor)
                yield name, tensor

        self._sender = nccl.open_sender(rank=self._rank, host=host, port=port, engines=engines, weights=weights)

    def broadcast(self, version: int, canaries: Sequence[Sequence[int]]) -> WeightUpdate | None:
        """The policy's weights over NCCL into every engine; what the engines must confirm, on rank 0; None elsewhere."""
        log_probs = self._canary_log_probs(canaries)
        self._sender.send_weights()
        if self._rank != 0:
            return None
        canary = Canaries(tuple(map(tuple, canaries)), log_probs)
        return WeightUpdate(version, (), self._sent.hexdigest(), self._sent.num_bytes, canary)

    def save(self, folder: str, state: dict) -> None:
        """Checkpoint of every engine with the controller's state beside them, in a folder that appears whole.

        Raises:
            StorageError: it cannot be written (on every rank).
        """
        from scpo_ray.training import engine as engines

        engines.save_checkpoint(self._engines, Path(folder), state={"controller": state})
        self._log("checkpoint saved", folder=folder)

    def restore(self, folder: str) -> dict:
        """Go back to a checkpoint; the controller's state.

        Raises:
            TrainingError: it was written by another number of learners, or under another ZeRO stage.
        """
        from scpo_ray.training import engine as engines

        stage = self._task.config.zero_stage
        refuse_other_layout(checkpoint_in(Path(folder)), self._num_ranks, stage, ranks="num_learners", is_elastic=False)
        state = engines.load_checkpoint(self._engines, Path(folder))["controller"]
        self._log("checkpoint restored", folder=folder)
        return state

    def write(self, recipe: Recipe, run_address: str, files: dict[str, object], statistics: dict[str, object]) -> None:
        """Rank 0 writes the policy's artifact: weights with adapters folded in, tokenizer, and the given files.

        Raises:
            StorageError: it cannot be written (on every rank).
        """
        import torch

        from scpo_ray import model_files, policies
        from scpo_ray.ppo import sync
        from scpo_ray.training import engine as engines

        weights = {}
        for name, tensor in sync.named_weights(self._engines[POLICY].module, self._gather, dtype=torch.float32):
            if self._rank == 0:
                weights[name] = tensor
        with engines.raised_on_every_rank():
            if self._rank == 0:
                with recipe.making(RunDirectory(run_address)) as draft:
                    policies.save_weights(self._start, weights, draft.folder)
                    for name, content in files.items():
                        if isinstance(content, str):
                            (draft.folder / name).write_text(content)
                        else:
                            draft.write_json(name, content)
                    draft.content_hash = model_files.content_hash(draft.folder)
                    draft.statistics |= statistics

    def _log(self, message: str, **fields: object) -> None:
        """Of this rank."""
        task = self._task
        told = telemetry.Stage(task.run, task.stage)
        told.log(message, name=task.name, community=task.community, rank=self._rank, **fields)

    def _batches(self, sequences: Sequences, rows: Sequence[int]) -> "Iterator[RankBatch]":
        """This rank's micro-batches, as many as every other rank's; where it has none, the shortest sequence as placeholder."""
        from scpo_ray.ppo import forward

        rows = list(rows)
        lengths = [len(sequences.prompts[row]) + len(sequences.responses[row]) for row in rows]
        rounds = forward.plan(
            lengths, tokens_per_micro_batch=self._task.config.tokens_per_micro_batch, num_ranks=self._num_ranks
        )
        shortest = min(range(len(rows)), key=lengths.__getitem__)
        for number, parts in enumerate(rounds):
            mine = parts[self._rank]
            chosen = [rows[index] for index in mine or [shortest]]
            batch = forward.collate(sequences, chosen, pad_token_id=self._pad_token_id).to(self._device)
            yield forward.RankBatch(**vars(batch), is_placeholder=not mine, is_last=number == len(rounds) - 1)

    def _log_probs(self, model: Callable, batch: "MicroBatch", temperature: float | None = None) -> "Tensor":
        import torch

        from scpo_ray.ppo import forward

        if temperature is None:
            temperature = self._task.temperature
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            logits = forward.response_logits(model, batch, temperature=temperature)
        return forward.log_probs_of(logits, batch)

    def _canary_log_probs(self, canaries: Sequence[Sequence[int]]) -> tuple[tuple[float, ...], ...]:
        import torch

        from scpo_ray.ppo import forward

        sequences = Sequences([row[:1] for row in canaries], [row[1:] for row in canaries])
        batch = forward.collate(sequences, range(len(canaries)), pad_token_id=self._pad_token_id).to(self._device)
        with torch.no_grad():
            log_probs = self._log_probs(self._engines[POLICY], batch, temperature=1.0).float().cpu()
        return tuple(tuple(row[: len(canary) - 1].tolist()) for row, canary in zip(log_probs, canaries, strict=True))

    def _frozen(self, model):
        """The reference: a plain module, under ZeRO-3 partitioned like the policy."""
        from scpo_ray.training import engine as engines

        model.requires_grad_(requires_grad=False)
        if self._task.config.zero_stage < 3:
            return model.to(self._device)
        return engines.make_frozen_engine(model, self._task.config, world_size=self._num_ranks, device=self._device)

    @contextlib.contextmanager
    def _as_reference(self) -> "Iterator[Callable]":
        if self._reference is not None:
            yield self._reference
            return
        engine = self._engines[POLICY]
        with engine.module.disable_adapter():
            yield engine

    def _gather(self, parameters: list) -> contextlib.AbstractContextManager:
        import deepspeed

        if self._task.config.zero_stage < 3:
            return contextlib.nullcontext()
        return deepspeed.zero.GatheredParameters(parameters)

    def _set_learning_rate(self, name: str, value: float) -> None:
        if name in self._engines:
            for group in self._engines[name].optimizer.param_groups:
                group["lr"] = value

    def _end(self) -> None:
        for engine in self._engines.values():
            engine.destroy()
        self._engines, self._reference = {}, None
        gc.collect()  # engines are part of cycles with their weights and optimisers
