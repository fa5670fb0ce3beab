"""Settings of the reward service: what it serves, how much it takes on, who may ask."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from scpo_ray.config.scoring import FormatConfig
from scpo_ray.config.section import Address, Section


class ServeConfig(Section):
    """One service: a run's reward models, or models from elsewhere. Replicas, CPUs and GPUs are Ray Serve's to say
    (serve/reward.yaml)."""

    run_dir: Address | None = None
    """A finished run: its reward models, its global model for the majority, its formatting, scales and temperatures."""

    models: dict[str, Address] = Field(default_factory=dict)
    """Community -> reward model from elsewhere (folder, hub name, `package:` address), beside the run's or instead of them.
    They have raw rewards alone: there are no validation pairs to calibrate them by."""

    format: FormatConfig | None = None
    """How texts become tokens for `models`; a run's own models are read as they were trained."""

    communities: Annotated[tuple[str, ...] | None, Field(min_length=1)] = None
    """Whom to serve; everyone when unset."""

    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """float32 gives the scores of training time; bfloat16 is faster where the hardware multiplies it natively."""

    threads: int | None = Field(default=None, ge=1)
    """Torch threads per replica; unset: Ray's CPUs for the replica, at least 1."""

    passes: int | None = Field(default=None, ge=1)
    """Forward passes at a time, which divide the threads. Unset: 1 on a GPU or with one thread, else 2."""

    tokens_per_batch: int | None = Field(default=None, ge=64)
    """Tokens of one forward pass, padding included, over requests and communities. Unset: 16384 on a GPU, 4096 on a CPU. Where
    less waits a batch is as much smaller; fewer tokens answer a single caller sooner who comes while many wait."""

    max_loaded_models: int = Field(default=4, ge=1)
    """Full models that a replica keeps in memory, least recently used out first. Adapters on a shared base do not count."""

    max_mapped_gib: float = Field(default=8.0, ge=0)
    """GiB of files that a replica on a CPU leaves mapped, of full models that take turns in a loaded one's place, so that they
    come back at once; least recently used out first. Their pages are the page cache's, which the kernel takes back where memory
    is short. Models whose files are not in the precision that they compute in are converted on each turn all the same."""

    max_cached_rewards: int = Field(default=100_000, ge=0)
    """Rewards of (context, response, model) that a replica remembers."""

    max_queued: int = Field(default=4096, ge=1)
    """Responses times models that wait in a replica; beyond, requests get 429 with Retry-After."""

    max_body_bytes: int = Field(default=2_000_000, ge=1024)
    max_responses: int = Field(default=256, ge=1, le=1024)
    """Responses per request (queries, for trainers)."""

    max_text_chars: int = Field(default=65_536, ge=1)
    """Of one message or response, characters."""

    max_messages: int = Field(default=128, ge=1, le=1024)
    max_total_chars: int = Field(default=1_000_000, ge=1)
    """Of a request: every response with its conversation. A conversation counts once per response, as it is read."""

    deadline_s: float = Field(default=60.0, gt=0)
    """A request that is not answered by then gets 503; callers may ask for less in `X-Deadline-S`."""

    body_timeout_s: float = Field(default=10.0, gt=0)
    """A request whose body has not come by then gets 408."""

    authentication: Literal["bearer", "off"] = "bearer"
    """bearer: every call but the page, the docs and the health checks needs a token. off: whoever reaches the port may ask."""

    tokens_file: str | None = None
    """File with one bearer token per line, 16 characters at least; `#` starts a comment. It is read again when it changes."""

    cors_origins: tuple[str, ...] = ()
    """Web pages of other origins that may call; none by default."""

    log_texts: bool = False
    """Write the bodies of refused and failed requests to the log (4 KB of each); otherwise no text ever goes there."""

    @field_validator("authentication", mode="before")
    @classmethod
    def _yaml_reads_off_as_false(cls, value: object) -> object:
        return "off" if value is False else value

    @model_validator(mode="after")
    def _serves_something_to_someone(self) -> "ServeConfig":
        if self.run_dir is None and not self.models:
            raise ValueError("nothing to serve: give run_dir=FOLDER of a finished run, or models")
        if self.authentication == "bearer" and self.tokens_file is None:
            raise ValueError(
                "tokens_file is unset: name a file with one token per line (for example `openssl rand -hex 32 > tokens.txt`), "
                "or allow everyone with authentication=off"
            )
        return self
