"""Settings of training: models, objective, optimiser, batches, workers, checkpoints."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from scpo_ray.config.section import NOT_IDENTITY, Address, Fraction, Section, SharedFolder, Unique


class ModelConfig(Section):
    """A from-scratch transformer, for data on which no pretrained backbone is needed (`atlas`)."""

    architecture: Literal["llama", "bert"] = "llama"
    hidden_size: int = Field(default=64, ge=32)
    num_layers: int = Field(default=2, ge=1)
    num_heads: int = Field(default=2, ge=1)
    """Heads; hidden_size / num_heads of 32 or more keeps the model usable by vLLM on CPU."""

    vocab_size: int = Field(default=2000, ge=64)
    """Largest size of the tokenizer that is trained on the data."""


class LoraConfig(Section):
    """Low-rank adapters (PEFT); merged into the weights when a reward model is saved."""

    enabled: bool = False
    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class OptimizationConfig(Section):
    """What `train_global` and `train` share: objective, optimiser, batches, workers, checkpoints."""

    epochs: float = Field(default=1.0, ge=0)
    """Passes over the training interactions."""

    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimiser steps, whichever of the two comes first."""

    max_steps_overrides_epochs: bool = False
    """Train for exactly max_steps whatever `epochs` says (as published)."""

    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak step size of AdamW."""

    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Decay of the learning rate to zero after the warm-up."""

    warmup_fraction: Fraction = 0.05
    """Share of the steps over which the learning rate rises."""

    weight_decay: float = Field(default=0.01, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradient clipping norm; 0 turns it off."""

    normalization: Literal["pairs", "weights"] = "pairs"
    """Divide the loss by the number of pairs (as published) or by the sum of their weights; both over the global batch."""

    centering_coefficient: float = Field(default=0.0, ge=0)
    """c: adds c * mean((r+ + r-)^2), which keeps rewards near zero."""

    margin_per_score: float = Field(default=0.0, ge=0)
    """m_i = this * score gap: how many reward units one score unit must separate."""

    batching: Literal["interactions", "prompts", "pairs"] = "interactions"
    """interactions: one forward per response of an interaction, for all its pairs. prompts: one forward per response of a
    prompt, for the pairs of everyone who rated it; for data with few responses per prompt and many raters, such as
    surveys. pairs: two forwards per pair."""

    batch_size: int = Field(default=16, ge=1)
    """Interactions (or prompts, or pairs) per optimiser step, over all workers and accumulation steps."""

    length_window: int = Field(default=16, ge=1)
    """Batches among which items are grouped by length, so that little is padded; 1: fully random order (as published)."""

    accumulation_steps: int = Field(default=1, ge=1, json_schema_extra=NOT_IDENTITY)
    """Micro-batches per worker and optimiser step; changes memory, never the result."""

    pad_to_multiple: int = Field(default=8, ge=1)
    """Round batch lengths up to a multiple of this, where batches are padded: fewer shapes, faster kernels, more padding
    (tokens)."""

    dropout: bool = False
    """Leave the backbone's dropout on while training."""

    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """bfloat16: forward and backward under autocast, master weights in float32. auto: where the hardware multiplies it
    natively (GPU, AMX, AVX512-BF16)."""

    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention kernel; auto: sdpa where transformers has it for the architecture, else eager (DeBERTa). On CPUs auto also
    leaves out all padding, for the architectures of scpo_ray/packing.py."""

    gradient_checkpointing: bool = Field(default=False, json_schema_extra=NOT_IDENTITY)
    lora: LoraConfig = LoraConfig()

    seeded: bool = True
    """Seed order and dropout from `seed`; off: from the operating system (as published)."""

    evaluations_per_epoch: float = Field(default=1.0, gt=0)
    """Validation passes per epoch."""

    patience: int | None = Field(default=None, ge=1)
    """Stop after this many validation passes without a lower validation loss; unset: run to the end."""

    keep: Literal["last", "best"] = "last"
    """Which weights become the reward model: the last ones or those of the lowest validation loss."""

    num_workers: int = Field(default=1, ge=1, json_schema_extra=NOT_IDENTITY)
    """Ranks of one worker group."""

    min_workers: int | None = Field(default=None, ge=1, json_schema_extra=NOT_IDENTITY)
    """With how few ranks a training goes on while nodes are missing, from its last checkpoint; with num_workers again once
    they are back. Unset: it waits for num_workers. The ranks' sums are then rounded otherwise. ZeRO stage 0 only."""

    zero_stage: int = Field(default=0, ge=0, le=3, json_schema_extra=NOT_IDENTITY)
    """DeepSpeed ZeRO stage."""

    use_gpu: bool = Field(default=False, json_schema_extra=NOT_IDENTITY)
    cpus_per_worker: float = Field(default=1, gt=0, json_schema_extra=NOT_IDENTITY)
    """CPUs that Ray reserves per worker."""

    threads_per_worker: int | None = Field(default=None, ge=1, json_schema_extra=NOT_IDENTITY)
    """Torch threads per worker; unset: the machine's cores divided by num_workers."""

    checkpoint_every_steps: int = Field(default=200, ge=1, json_schema_extra=NOT_IDENTITY)
    """Optimiser steps between two checkpoints."""

    checkpoint_dir: SharedFolder | None = Field(default=None, json_schema_extra=NOT_IDENTITY)
    """Where unfinished trainings are kept, on a disk that all workers share; unset: `checkpoints` in the run directory."""

    max_failures: int = Field(default=2, ge=0, json_schema_extra=NOT_IDENTITY)
    """How often a killed worker group is restarted from its last checkpoint."""

    collective_timeout_s: float = Field(default=1800, ge=1, json_schema_extra=NOT_IDENTITY)
    """A step that takes longer has hung: the ranks' stacks are written to `logs/stacks`, and the group starts again.
    Writing a finished model must fit into it too."""

    @model_validator(mode="after")
    def _override_has_steps(self) -> "OptimizationConfig":
        if self.max_steps_overrides_epochs and self.max_steps is None:
            raise ValueError("max_steps_overrides_epochs is true, but max_steps is unset; set it")
        return self

    @model_validator(mode="after")
    def _can_do_with_fewer(self) -> "OptimizationConfig":
        if self.min_workers is None:
            return self
        if self.min_workers > self.num_workers:
            raise ValueError(f"min_workers {self.min_workers} is more than num_workers {self.num_workers}; lower it")
        if self.min_workers < self.num_workers and self.zero_stage > 0:
            raise ValueError(
                f"min_workers {self.min_workers}: checkpoints of ZeRO stage {self.zero_stage} are read by as many ranks as "
                "wrote them; leave min_workers unset, or train under zero_stage 0 from the start"
            )
        return self

    @property
    def fewest_workers(self) -> int:
        """What a group must have to train at all."""
        return self.min_workers or self.num_workers

    @property
    def is_packed(self) -> bool:
        """Whether a batch's sequences go through the model end to end, on CPUs and where the architecture allows it."""
        plain = not self.dropout and not self.gradient_checkpointing
        return plain and self.attention == "auto" and not self.use_gpu


class TrainGlobalConfig(OptimizationConfig):
    """The global reward model: the ruler, and where every community's model starts."""

    model: Address | None = None
    """Local folder, hub name or `package:NAME/FOLDER`; unset: from scratch with a tokenizer trained on the data."""

    scratch: ModelConfig = ModelConfig()
    communities: Annotated[tuple[str, ...] | None, Unique] = None
    """Whose training pairs it learns from; the majority when unset."""

    @model_validator(mode="after")
    def _has_something_to_take(self) -> "TrainGlobalConfig":
        if self.epochs == 0 and self.model is None:
            raise ValueError("epochs 0 takes a model as it is, but model is unset; name one")
        return self


class TrainConfig(OptimizationConfig):
    """One reward model per community, all in one job."""

    communities: Annotated[tuple[str, ...] | None, Unique] = Field(default=None, json_schema_extra=NOT_IDENTITY)
    """Communities to train; all but the majority when unset."""

    num_seeds: int = Field(default=1, ge=1, json_schema_extra=NOT_IDENTITY)
    """Reward models per community and arm, trained with seeds `seed`, `seed` + 1, ...: the report tells the noise of
    training from that of the sample."""

    num_worker_groups: int = Field(default=1, ge=1, json_schema_extra=NOT_IDENTITY)
    """Groups of num_workers ranks that take communities from one queue."""

    equal_steps: bool = False
    """Give every arm of a community the steps that `epochs` over all of its training pairs take, kept or not: arms then
    differ in what they learn from and not in how long. Off: `epochs` over the kept pairs alone, so that a filter that
    keeps half of them takes half of the steps."""

    min_pairs: int = Field(default=8, ge=1)
    """A community with fewer kept pairs fails, and the others go on."""
