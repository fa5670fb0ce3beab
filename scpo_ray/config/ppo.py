"""Settings of policies: their supervised warm start, PPO towards communities, best-of-n."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from scpo_ray.config.section import NOT_IDENTITY, Address, Fraction, Section, SharedFolder, Unique
from scpo_ray.config.training import LoraConfig, ModelConfig

Composition = Literal["each", "mixture", "max_min", "conjunction", "routed"]
Transfer = Literal["object_store", "nccl"]
Logger = Literal["tensorboard", "wandb", "mlflow"]


class LearnerConfig(Section):
    """What `sft` and `ppo` share: optimiser, micro-batches, learners, checkpoints."""

    weight_decay: float = Field(default=0.0, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradient clipping norm; 0 turns it off."""

    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """bfloat16: under autocast, master weights in float32. auto: where the hardware multiplies it natively."""

    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = Field(default=False, json_schema_extra=NOT_IDENTITY)
    lora: LoraConfig = LoraConfig()

    tokens_per_micro_batch: int = Field(default=8192, ge=64, json_schema_extra=NOT_IDENTITY)
    """Padded tokens of one forward and backward pass of one learner; changes memory, never the result."""

    num_learners: int = Field(default=1, ge=1, json_schema_extra=NOT_IDENTITY)
    """Ranks of the learner group."""

    zero_stage: int = Field(default=0, ge=0, le=3, json_schema_extra=NOT_IDENTITY)
    """DeepSpeed ZeRO stage of policy and critic; at 3 the reference is partitioned too."""

    cpus_per_learner: float = Field(default=1, gt=0, json_schema_extra=NOT_IDENTITY)
    gpus_per_learner: float = Field(default=0, ge=0, le=1, json_schema_extra=NOT_IDENTITY)
    threads_per_learner: int | None = Field(default=None, ge=1, json_schema_extra=NOT_IDENTITY)
    """Torch threads per learner; unset: the machine's cores divided by num_learners."""

    checkpoint_every_steps: int = Field(default=20, ge=1, json_schema_extra=NOT_IDENTITY)
    """Optimiser steps (sft) or PPO steps (ppo) between two checkpoints."""

    checkpoint_dir: SharedFolder | None = Field(default=None, json_schema_extra=NOT_IDENTITY)
    """Where unfinished policies are kept, on a disk that all learners share; unset: `checkpoints` in the run directory."""

    call_timeout_s: float = Field(default=1800, ge=1, json_schema_extra=NOT_IDENTITY)
    """An actor that takes longer for one thing it is asked (an update, all responses of a step, a checkpoint) has hung: where it
    stood goes into its log, and it is started again."""

    max_failures: int = Field(default=3, ge=0, json_schema_extra=NOT_IDENTITY)
    """How often dead actors (engines, scorers, learners) are started again before the run gives up."""


class SftConfig(LearnerConfig):
    """The start policy: taught on responses that people chose, before any reward is chased."""

    policy: Address | None = None
    """Local folder, hub name or `package:NAME/FOLDER`; unset: from scratch with a tokenizer trained on the data."""

    scratch: ModelConfig = ModelConfig(hidden_size=128, num_heads=4)
    communities: Annotated[tuple[str, ...] | None, Unique] = None
    """Whose chosen training responses it learns; the majority's when unset."""

    responses: Literal["best", "chosen"] = "best"
    """best: responses that were chosen and in no pair rejected, by the same communities. chosen: all that were chosen over
    another, be it the worst of all."""

    epochs: float = Field(default=1.0, gt=0)
    """Passes over these responses, each taken once."""

    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimiser steps, whichever of the two comes first."""

    batch_size: int = Field(default=64, ge=1)
    """Responses per optimiser step, over all learners."""

    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak step size of AdamW."""

    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_fraction: Fraction = 0.03


class PolicyEvaluationConfig(Section):
    """What policies are measured on, when they are trained: prompts that none of them has seen."""

    responses_per_prompt: int = Field(default=4, ge=1)
    """Responses that each policy writes to each test prompt."""

    max_prompts: int = Field(default=512, ge=1)
    """Test prompts at most, drawn by the seed."""

    num_samples: int = Field(default=12, ge=0)
    """Prompts in the page's table of responses before and after."""


class PpoConfig(LearnerConfig):
    """Policies for communities, by PPO against the communities' reward models."""

    policy: Address | None = None
    """Start policy and reference: folder, hub name or `package:` address; unset: the run's own, made by jobs/sft.py."""

    communities: Annotated[tuple[str, ...] | None, Unique] = Field(default=None, json_schema_extra=NOT_IDENTITY)
    """Whom to train policies for; every community with a reward model when unset. A majority's model is the global one."""

    compositions: Annotated[tuple[Composition, ...], Unique] = Field(
        default=("each",), min_length=1, json_schema_extra=NOT_IDENTITY
    )
    """each: one policy per community. mixture, max_min, conjunction: one policy for all of them by the weighted mean of their
    rewards, the worst-off one's, or the weighted mean log-sigmoid. routed: one policy, each prompt under its own
    community's model."""

    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Community -> weight in mixture and conjunction; 1 where unset."""

    prompts: Literal["own", "all"] = "own"
    """own: the prompts of the policy's communities; all: those of every community (routed: only prompts of its own)."""

    test_prompt_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the prompt groups that no policy is trained on (sft included) and all are measured on."""

    num_steps: int = Field(default=100, ge=1)
    """PPO steps: roll out, score, shape, estimate, update, synchronise."""

    prompts_per_step: int = Field(default=64, ge=1)
    responses_per_prompt: int = Field(default=1, ge=1)
    """K: rloo and grpo compare a prompt's responses and need two or more."""

    max_response_tokens: int = Field(default=128, ge=1)
    """A response is cut there. With the prompt it must fit format.max_tokens: longer prompts are left out and counted."""

    temperature: float = Field(default=1.0, gt=0)
    """Of sampling; the learner's probabilities are tempered alike. All of the distribution is sampled from."""

    advantage: Literal["gae", "rloo", "grpo"] = "gae"
    """gae: with a critic. rloo, grpo: a response against the prompt's others, without."""

    discount: float = Field(default=1.0, ge=0, le=1)
    gae_lambda: Fraction = 0.95
    """λ: 0 trusts the critic, 1 the rewards."""

    whiten_advantages: bool = True
    """Mean 0 and variance 1 over a step's tokens (gae)."""

    kl_coefficient: float = Field(default=0.05, ge=0)
    """Price of moving from the reference, reward units (validation standard deviations) per nat; the first one when kl_budget
    is set."""

    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    kl_budget: float | None = Field(default=None, gt=0)
    """Nats per response that the policy may move: the coefficient then follows the measured divergence. Unset: it is fixed."""

    kl_horizon: float = Field(default=10_000, gt=0)
    """Responses in which an error of 20% or more changes the coefficient by about 20%."""

    update_epochs: int = Field(default=2, ge=1)
    """Passes over a step's responses."""

    num_minibatches: int = Field(default=4, ge=1)
    """Optimiser steps per pass."""

    clip_range: float = Field(default=0.2, gt=0, lt=1)
    clip_range_high: float | None = Field(default=None, gt=0)
    """Upper clip; clip_range when unset."""

    dual_clip: float | None = Field(default=None, gt=1)
    value_clip: float | None = Field(default=0.2, gt=0)
    """Values move by no more than this from the old ones, reward units; unset: free."""

    entropy_coefficient: float = Field(default=0.0, ge=0)
    importance_cap: float = Field(default=2.0, ge=1)
    """Cap of π_learner / π_engine, by which tokens count."""

    importance_level: Literal["token", "response"] = "token"
    learning_rate: float = Field(default=1e-6, ge=0)
    """Of the policy; 0 moves nothing (to check engine against learner)."""

    critic_learning_rate: float = Field(default=1e-5, gt=0)
    warmup_steps: int = Field(default=5, ge=0)
    """PPO steps over which both learning rates rise."""

    critic_warmup_steps: int = Field(default=0, ge=0)
    """PPO steps at first that train the critic alone."""

    reward_clip: float | None = Field(default=5.0, gt=0)
    """Normalised rewards are cut there, standard deviations; unset: free."""

    length_penalty: float = Field(default=0.0, ge=0)
    """Reward units per token of a response."""

    unfinished_penalty: float = Field(default=1.0, ge=0)
    """Taken from a response that reached max_response_tokens without an end."""

    empty_reward: float = -3.0
    """Normalised reward of a response without text, which no reward model is asked about."""

    overlap: bool = False
    """Generate the next batch while the last one trains: one step off policy, corrected by importance weights."""

    num_engines: int = Field(default=1, ge=1, json_schema_extra=NOT_IDENTITY)
    """vLLM engines."""

    num_scorers: int = Field(default=1, ge=1, json_schema_extra=NOT_IDENTITY)
    """Actors with the communities' reward models."""

    held_out_every_steps: int = Field(default=5, ge=1, json_schema_extra=NOT_IDENTITY)
    """How often the rollouts are shown to held-out reward models as well, where train.num_seeds made some."""

    placement: Literal["apart", "colocated"] = Field(default="apart", json_schema_extra=NOT_IDENTITY)
    """apart: every actor its own resources, anywhere. colocated: the i-th engine, learner and scorer share one bundle, on one
    node; give them fractions of one GPU."""

    cpus_per_engine: float = Field(default=0.5, ge=0, json_schema_extra=NOT_IDENTITY)
    gpus_per_engine: float = Field(default=0, ge=0, le=1, json_schema_extra=NOT_IDENTITY)
    gpu_memory_utilization: float = Field(default=0.85, gt=0, lt=1, json_schema_extra=NOT_IDENTITY)
    """Share of a GPU's memory that an engine takes."""

    cpu_cache_gib: int = Field(default=1, ge=1, json_schema_extra=NOT_IDENTITY)
    """KV cache of an engine without a GPU, GiB."""

    threads_per_engine: int | None = Field(default=None, ge=1, json_schema_extra=NOT_IDENTITY)
    engine_precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on GPUs, float32 on CPUs."""

    cpus_per_scorer: float = Field(default=0.25, ge=0, json_schema_extra=NOT_IDENTITY)
    gpus_per_scorer: float = Field(default=0, ge=0, le=1, json_schema_extra=NOT_IDENTITY)
    cpus_per_learner: float = Field(default=0.5, ge=0, json_schema_extra=NOT_IDENTITY)

    transfer: Transfer = Field(default="object_store", json_schema_extra=NOT_IDENTITY)
    """How weights get to the engines: Ray's object store, on any device; or NCCL, from the first learner's GPU to the engines'
    (each with a whole GPU, without overlap)."""

    num_canaries: int = Field(default=4, ge=1, json_schema_extra=NOT_IDENTITY)
    """Fixed sequences whose log-probabilities must agree between learner and engine after every synchronisation."""

    sync_tolerance: float | None = Field(default=None, gt=0, json_schema_extra=NOT_IDENTITY)
    """Largest difference of a canary token's log-probability, nats; unset: 1e-4 in float32, 0.25 in bfloat16."""

    loggers: Annotated[tuple[Logger, ...], Unique] = Field(default=("tensorboard",), json_schema_extra=NOT_IDENTITY)
    """Where step metrics go, besides the run directory. wandb and mlflow need the extra `tracking`."""

    evaluation: PolicyEvaluationConfig = PolicyEvaluationConfig()

    @model_validator(mode="after")
    def _groups_can_be_compared(self) -> "PpoConfig":
        if self.advantage != "gae" and self.responses_per_prompt < 2:
            raise ValueError(
                f"advantage {self.advantage} compares a prompt's responses, but responses_per_prompt is "
                f"{self.responses_per_prompt}; set it to 2 or more"
            )
        if self.transfer == "nccl" and not (self.gpus_per_engine == self.gpus_per_learner == 1):
            raise ValueError(
                f"transfer nccl joins whole GPUs, but gpus_per_engine is {self.gpus_per_engine:g} and gpus_per_learner "
                f"{self.gpus_per_learner:g}; set both to 1, or transfer to object_store"
            )
        if self.transfer == "nccl" and self.overlap:
            raise ValueError(
                "transfer nccl leaves no weights for an engine that starts again while the learners are ahead; set overlap to "
                "false, or transfer to object_store"
            )
        if self.kl_budget is not None and self.kl_coefficient == 0:
            raise ValueError("kl_budget multiplies kl_coefficient, which is 0; give it a first value above 0")
        responses = self.prompts_per_step * self.responses_per_prompt
        if self.kl_budget is not None and 0.2 * responses >= self.kl_horizon:
            raise ValueError(
                f"kl_horizon {self.kl_horizon:g} is not above a fifth of the {responses} responses of a step, which could "
                "turn the coefficient negative; raise it"
            )
        if self.num_minibatches > self.prompts_per_step * self.responses_per_prompt:
            raise ValueError(
                f"num_minibatches {self.num_minibatches} of {self.prompts_per_step * self.responses_per_prompt} responses; "
                "lower it"
            )
        return self


class BestOfNConfig(Section):
    """The baseline that needs no training: of n responses, the one that the community's model likes best."""

    num_samples: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Unique] = (1, 2, 4, 8, 16)
    """n; the largest is what is generated, once, for all of them."""
