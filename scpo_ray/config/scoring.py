"""Settings of texts as tokens, and of scoring them."""

from typing import Literal

from pydantic import Field

from scpo_ray.config.section import NOT_IDENTITY, Section, SharedFolder


class FormatConfig(Section):
    """How (context, response) becomes token ids: the same for scoring, training, PPO and serving."""

    max_tokens: int = Field(default=512, ge=8)
    """Longest sequence, tokens. The context loses its oldest tokens first; the response is cut only when it alone is longer."""

    use_chat_template: Literal["auto", "never"] = "auto"
    """auto: the tokenizer's chat template where it has one; never: the plain format."""


class ScoreConfig(Section):
    """Rewards of the global model for every response, each computed once."""

    tokens_per_batch: int | None = Field(default=None, ge=64, json_schema_extra=NOT_IDENTITY)
    """Tokens of one forward pass, padding included; unset: 2048 on CPUs, near whose caches such a batch stays, 8192 on GPUs."""

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
