"""Every setting, with its default, unit and check: one frozen model per stage.

Defaults live here and nowhere else. `scpo_ray.cli.load_config` fills these models from a YAML file and the command
line; functions receive the smallest sub-config that they need.
"""

import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

CommunityField = Literal[
    "reside_country",
    "birth_country",
    "reside_subregion",
    "religion",
    "gender",
    "age",
    "ethnicity",
    "education",
    "employment",
]
DatasetName = Literal["atlas", "prism", "global_opinions", "pair_files", "general_preferences"]
SelectionStrategy = Literal["filter_weight", "filter", "weight", "inverse_weight", "none"]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _expand_variables(address: str) -> str:
    """Replace `${NAME}` by the environment's value; a variable that is not set is an error, never an empty string."""
    expanded = os.path.expandvars(address)
    missing = re.search(r"\$\{(\w+)\}", expanded)
    if missing:
        raise ValueError(f"the environment variable {missing[1]} is not set; set it, or give another path or hub name")
    return expanded


Address = Annotated[str, AfterValidator(_expand_variables)]
"""A path, s3:// or gs:// address, or hub name; `${NAME}` takes a value from the environment."""


NOT_IDENTITY: dict[str, JsonValue] = {"identity": False}
"""Marks settings that change cost or place, not the result: an artifact made under another value still counts."""


def _absolute(address: str) -> str:
    """Workers have other working directories."""
    return address if "://" in address else os.path.abspath(os.path.expanduser(address))


SharedFolder = Annotated[Address, AfterValidator(_absolute)]
"""A folder that workers use as well; a relative path is taken from where the job is started."""


class Section(BaseModel):
    """A part of the configuration: immutable, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def identity(self, prefix: str) -> dict[str, object]:
        """Dotted key -> value of every setting that the result depends on."""
        found: dict[str, object] = {}
        for name, info in type(self).model_fields.items():
            if info.json_schema_extra == NOT_IDENTITY:
                continue
            value = getattr(self, name)
            if isinstance(value, Section):
                found |= value.identity(f"{prefix}.{name}")
            else:
                found[f"{prefix}.{name}"] = list(value) if isinstance(value, tuple) else value
        return found


class AtlasConfig(Section):
    """The synthetic world: communities with known preferences, planted noise and planted outliers."""

    num_prompts: int = Field(default=300, ge=10, le=900)
    """Distinct prompts of the world; the grammar has 900."""

    majority_annotators: int = Field(default=120, ge=2)
    """Annotators of the majority community."""

    minority_annotators: int = Field(default=24, ge=2)
    """Annotators of each minority community."""

    interactions_per_annotator: int = Field(default=16, ge=1)
    """Prompts that one annotator rates."""

    responses_per_interaction: int = Field(default=4, ge=2, le=8)
    """K: rated responses of one interaction."""

    num_minorities: int = Field(default=3, ge=1, le=6)
    """Minority communities, each with its own planted differences from the majority."""

    noise_rate: float = Field(default=0.05, ge=0, lt=0.5)
    """Share of ratings whose response was swapped with another one's (labelled `noise`)."""

    outlier_rate: float = Field(default=0.05, ge=0, lt=0.5)
    """Share of a minority's pairs that are extreme outliers: reversed where everyone agrees most (labelled `outlier`)."""

    @model_validator(mode="after")
    def _prompts_suffice(self) -> "AtlasConfig":
        if self.interactions_per_annotator > self.num_prompts:
            raise ValueError(
                f"interactions_per_annotator {self.interactions_per_annotator} exceeds num_prompts {self.num_prompts}: an "
                "annotator rates a prompt once; raise num_prompts"
            )
        return self


class PrismConfig(Section):
    """PRISM (Kirk et al. 2024): conversations rated 1-100 by residents of 38 countries."""

    path: Address = "HannahRoseKirk/prism-alignment"
    """Folder with `survey.jsonl` and `utterances.jsonl`, or the hub data set's name."""

    community_field: CommunityField = "reside_country"
    """Which survey answer names the annotator's community."""

    history: Literal["full", "none"] = "full"
    """Earlier turns (prompts with the chosen responses) in the context, or the last prompt alone (as published)."""

    pairing: Literal["all", "chosen_vs_rest"] = "all"
    """All response pairs of a turn whose scores differ, or only the chosen one against the others (as published)."""

    balanced_subset: bool = False
    """Only conversations of PRISM's balanced subset."""


class GlobalOpinionsConfig(Section):
    """GlobalOpinionQA (Durmus et al. 2023): answer shares of survey questions by country."""

    path: Address = "Anthropic/llm_global_opinions"
    """A CSV file with the hub data set's columns, or the hub data set's name."""

    min_share_gap: Fraction = 0.1
    """Smallest difference of two options' shares that counts as a preference, probability."""


class PairFilesConfig(Section):
    """Preference pairs in files: columns prompt or messages, chosen, rejected, community."""

    paths: tuple[Address, ...] = ()
    """JSONL, JSONL.gz or Parquet files, or hub data sets (`name` or `name:split`)."""


class GeneralPreferencesConfig(Section):
    """General preferences for the global model: HH-RLHF transcripts or DSP `text`/`score` lists."""

    paths: tuple[Address, ...] = ()
    """JSON or JSONL(.gz) files, or hub data sets."""

    community: str = "General"
    """The community name that these pairs carry."""


class PrepareConfig(Section):
    """From source rows to responses, pairs and splits."""

    datasets: tuple[DatasetName, ...] = Field(default=("atlas",), min_length=1)
    """Which adapters to read; each has its own section below."""

    atlas: AtlasConfig = AtlasConfig()
    prism: PrismConfig = PrismConfig()
    global_opinions: GlobalOpinionsConfig = GlobalOpinionsConfig()
    pair_files: PairFilesConfig = PairFilesConfig()
    general_preferences: GeneralPreferencesConfig = GeneralPreferencesConfig()

    majority: tuple[str, ...] | None = None
    """Communities whose pairs train the global model and measure what was forgotten; unset: the United States, the
    United Kingdom and the Atlas, as far as the data has them."""

    communities: tuple[str, ...] | None = None
    """Communities to keep beside the majority; all when unset."""

    min_score_gap: float = Field(default=0.0, ge=0)
    """Pairs whose scores differ by this or less are no preference and make no pair (score units)."""

    max_rejected_share: Fraction = Field(default=0.05, json_schema_extra=NOT_IDENTITY)
    """More malformed rows than this share stop the stage, with nothing written."""

    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of each community's pairs for choosing hyperparameters and early stopping; 0 as published."""

    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of each community's pairs for the evaluation."""

    split_by: Literal["auto", "annotator", "prompt", "pair"] = "auto"
    """What stays on one side of a split. auto: the annotator where the community has them, else the prompt group."""

    stratify: bool = True
    """Hold the fractions in every community; off: one random split over all (as published)."""

    near_duplicate_similarity: float = Field(default=0.85, gt=0, le=1)
    """Prompts whose one- and two-gram cosine reaches this form one group."""

    split_salt: str = "scpo"
    """Changes which units fall on which side."""

    @model_validator(mode="after")
    def _splits_leave_training_data(self) -> "PrepareConfig":
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"validation_fraction {self.validation_fraction} + test_fraction {self.test_fraction} leave no training "
                "pairs; lower one of them"
            )
        return self


class FormatConfig(Section):
    """How (context, response) becomes token ids: the same for scoring, training, PPO and serving."""

    max_tokens: int = Field(default=512, ge=8)
    """Longest sequence, tokens. The context loses its oldest tokens first; the response is cut only when it alone is longer."""

    use_chat_template: Literal["auto", "never"] = "auto"
    """auto: the tokenizer's chat template where it has one; never: the plain format."""


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
    """Round batch lengths up to a multiple of this: fewer shapes, faster kernels, more padding (tokens)."""

    dropout: bool = False
    """Leave the backbone's dropout on while training."""

    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """bfloat16: forward and backward under autocast, master weights in float32. auto: where the hardware multiplies it
    natively (GPU, AMX, AVX512-BF16)."""

    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel; on CPUs eager trains about twice as fast as sdpa."""

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

    zero_stage: Literal[0, 1, 2, 3] = Field(default=0, json_schema_extra=NOT_IDENTITY)
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

    @model_validator(mode="after")
    def _override_has_steps(self) -> "OptimizationConfig":
        if self.max_steps_overrides_epochs and self.max_steps is None:
            raise ValueError("max_steps_overrides_epochs is true, but max_steps is unset; set it")
        return self


class TrainGlobalConfig(OptimizationConfig):
    """The global reward model: the ruler, and where every community's model starts."""

    model: Address | None = None
    """Local folder, hub name or `package:NAME/FOLDER`; unset: from scratch with a tokenizer trained on the data."""

    scratch: ModelConfig = ModelConfig()
    communities: tuple[str, ...] | None = None
    """Whose training pairs it learns from; the majority when unset."""

    @model_validator(mode="after")
    def _has_something_to_take(self) -> "TrainGlobalConfig":
        if self.epochs == 0 and self.model is None:
            raise ValueError("epochs 0 takes a model as it is, but model is unset; name one")
        return self


class ScoreConfig(Section):
    """Rewards of the global model for every response, each computed once."""

    tokens_per_batch: int = Field(default=8192, ge=64, json_schema_extra=NOT_IDENTITY)
    """Padded tokens of one forward pass."""

    window: int = Field(default=4096, ge=1, json_schema_extra=NOT_IDENTITY)
    """Responses that are sorted by length together before batching; the unit of work that survives a kill."""

    num_scorers: int = Field(default=1, ge=1, json_schema_extra=NOT_IDENTITY)
    """Actors, each with the model loaded once."""

    cpus_per_scorer: float = Field(default=1, gt=0, json_schema_extra=NOT_IDENTITY)
    gpus_per_scorer: float = Field(default=0, ge=0, json_schema_extra=NOT_IDENTITY)
    threads_per_scorer: int | None = Field(default=None, ge=1, json_schema_extra=NOT_IDENTITY)
    """Torch threads per actor; unset: the machine's cores divided by num_scorers."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the hardware multiplies it natively, else float32. The reward head stays float32."""

    cache_dir: SharedFolder | None = Field(default=None, json_schema_extra=NOT_IDENTITY)
    """Where scores are kept by content, for every run; unset: `score_cache` beside the run directory."""


class SelectConfig(Section):
    """Which pairs a community's reward model learns from, and how strongly."""

    strategy: SelectionStrategy = "filter_weight"
    """filter_weight is SCPO."""

    controls: tuple[SelectionStrategy, ...] = ()
    """Strategies that run beside it on the same pairs and steps, for comparison."""

    agreement_threshold: float = Field(default=0.7, gt=0, lt=1)
    """τ, probability. Lower keeps fewer pairs."""

    weight_temperature: float = Field(default=1.1, gt=0)
    """β, reward units. Lower down-weights disagreement faster."""

    agreement_form: Literal["sigmoid", "exp_ratio"] = "sigmoid"
    """exp_ratio: exp(r+) / (exp(r+) + exp(r-)) in float32, as published; overflows for large rewards."""

    @model_validator(mode="after")
    def _controls_differ(self) -> "SelectConfig":
        if self.strategy in self.controls or len(set(self.controls)) < len(self.controls):
            raise ValueError(f"controls {list(self.controls)} repeat a strategy (the main one is {self.strategy})")
        return self

    @property
    def strategies(self) -> tuple[SelectionStrategy, ...]:
        """The main strategy first, then the controls."""
        return (self.strategy, *self.controls)


class TrainConfig(OptimizationConfig):
    """One reward model per community, all in one job."""

    communities: tuple[str, ...] | None = Field(default=None, json_schema_extra=NOT_IDENTITY)
    """Communities to train; all but the majority when unset."""

    num_worker_groups: int = Field(default=1, ge=1, json_schema_extra=NOT_IDENTITY)
    """Groups of num_workers ranks that take communities from one queue."""

    min_pairs: int = Field(default=8, ge=1)
    """A community with fewer kept pairs fails, and the others go on."""


class EvaluateConfig(Section):
    """What was gained and what was lost, on test pairs."""

    dropout: bool = False
    """Leave dropout on while scoring the trained models (as published)."""

    test_threshold: float = Field(default=0.5, gt=0, lt=1)
    """Agreement below which a test pair counts as one that the global model gets wrong."""

    num_resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples behind every interval."""


class ReportConfig(Section):
    """The terminal table and `report.html`."""

    title: str = "SCPO"
    num_example_pairs: int = Field(default=12, ge=0)
    """Pairs shown per community, with texts."""


class Config(Section):
    """One run, from data to report."""

    run_dir: Annotated[Address, Field(min_length=1), AfterValidator(os.path.expanduser)] = "runs/default"
    """Where the artifacts go: a path, s3:// or gs:// address."""

    seed: int = Field(default=0, ge=0)
    """Seeds the world, initialisation and data order."""

    rebuild: bool = False
    """Remake artifacts that another config made, instead of refusing."""

    prepare: PrepareConfig = PrepareConfig()
    format: FormatConfig = FormatConfig()
    train_global: TrainGlobalConfig = TrainGlobalConfig()
    score: ScoreConfig = ScoreConfig()
    select: SelectConfig = SelectConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()
