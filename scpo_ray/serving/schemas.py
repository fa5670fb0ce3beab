"""What goes over the wire: requests with their limits, answers with their units."""

import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_MAX_FIELDS = 64
FaultT = TypeVar("FaultT", bound=Mapping[str, Any])
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def readable(text: str) -> str:
    """The text itself.

    Raises:
        ValueError: it is blank, or holds what no tokenizer can read: lone surrogates, control characters.
    """
    if not text.strip():
        raise ValueError("is blank; give some text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has a lone surrogate at character {error.start}; send whole Unicode characters") from None
    found = CONTROL_CHARACTERS.search(text)
    if found:
        raise ValueError(f"has the control character U+{ord(found[0]):04X} at character {found.start()}; remove it")
    return text


Text = Annotated[str, AfterValidator(readable)]


def clearest(faults: Sequence[FaultT]) -> FaultT:
    """Of pydantic's errors the one to tell: of a union's branches that which understood most, and found a value and not a type
    wrong."""

    def understood(fault: FaultT) -> tuple[bool, bool, int]:
        kind = str(fault["type"])
        return kind == "value_error", not kind.endswith(("_type", "literal_error")), len(fault["loc"])

    return max(faults, key=understood)


class Wire(BaseModel):
    """Strict: unknown fields are refused, numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, given: object) -> object:
        if isinstance(given, dict) and len(given) > _MAX_FIELDS:  # each unknown one would be an error of its own
            raise ValueError(f"{len(given)} fields; there are {', '.join(cls.model_fields)}")
        return given


class ChatMessage(Wire):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


def check_weights(weights: dict[str, float]) -> dict[str, float]:
    """A steering vector.

    Raises:
        ValueError: a weight is negative, or they do not sum to 1.
    """
    for community, weight in weights.items():
        if weight < 0:
            raise ValueError(f"the weight of {community[:60]!r} is {weight:g}; weights are 0 or more")
    total = math.fsum(weights.values())
    if abs(total - 1) > _SUM_TOLERANCE:
        raise ValueError(f"the weights sum to {total:.9g}; they must sum to 1")
    return weights


def check_number(given: object) -> object:
    """A dictionary that is worth looking into.

    Raises:
        ValueError: it has more than `MAX_ITEMS` entries.
    """
    if isinstance(given, dict) and len(given) > MAX_ITEMS:
        raise ValueError(f"{len(given)} weights; give at most {MAX_ITEMS}")
    return given


MAX_ITEMS = 1024
"""Of any list: longer ones are refused before their items are looked at. The service's settings ask for less."""
_SUM_TOLERANCE = 1e-5
Weights = Annotated[
    dict[str, float],
    Field(min_length=1, max_length=MAX_ITEMS),
    BeforeValidator(check_number),
    AfterValidator(check_weights),
]
Names = Annotated[list[str], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]


class Question(Wire):
    """What a response answers, and whom to ask."""

    prompt: Text | None = Field(default=None, description="A single user message; or give `messages`.")
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)] | None = Field(
        default=None, description="The conversation before the response, oldest first."
    )
    communities: Literal["all"] | Names | Weights = Field(
        default="all",
        description="Names; `all`; or a steering vector: community -> weight, summing to 1.",
        examples=["all", ["Chile", "Kenya"], {"Chile": 0.75, "Kenya": 0.25}],
    )

    @model_validator(mode="after")
    def _asks_once(self) -> "Question":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages, one of the two")
        return self

    @cached_property
    def context(self) -> list[dict[str, str]]:
        """As the formatter reads it."""
        if self.messages is None:
            return [{"role": "user", "content": self.prompt or ""}]
        return [message.model_dump() for message in self.messages]

    @property
    def weights(self) -> dict[str, float] | None:
        """The steering vector, where one is given."""
        return self.communities if isinstance(self.communities, dict) else None


class ScoreRequest(Question):
    """Rewards of responses under communities' models."""

    response: Text | None = None
    responses: Annotated[list[Text], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)] | None = None
    scale: Literal["calibrated", "raw"] = Field(
        default="calibrated",
        description="Of `scores` and `steered`. calibrated: standard deviations above the mean response of the community's "
        "validation pairs, comparable between communities. raw: the model's own units.",
    )

    @model_validator(mode="after")
    def _has_responses(self) -> "ScoreRequest":
        if (self.response is None) == (self.responses is None):
            raise ValueError("give either response or responses, one of the two")
        return self

    @property
    def texts(self) -> list[str]:
        """One or many."""
        return self.responses if self.responses is not None else [self.response or ""]


class CommunityScores(Wire):
    """One community's view of the responses, in their order."""

    community: str
    scores: list[float] = Field(description="On the scale that was asked for.")
    raw: list[float] = Field(description="The model's logits.")
    truncated: list[bool] = Field(description="Whether the model's context was too short for all of it.")


class ScoreResponse(Wire):
    """Rewards of responses."""

    run: str = Field(description="Digest of everything that is served: equal runs, equal scores.")
    scale: Literal["calibrated", "raw"]
    communities: list[CommunityScores]
    steered: list[float] | None = Field(description="Σ weight x score, where a steering vector was given.")


class CompareRequest(Question):
    """Which of two responses communities would rather have."""

    response_a: Text
    response_b: Text


class Preference(Wire):
    """One community's choice between A and B."""

    community: str
    probability: float = Field(description="P(a member prefers A), σ((r_A - r_B) / T).")
    interval: tuple[float, float] | None = Field(
        description="95%: what the temperature T may be, given its validation pairs. Not whether the model understands this "
        "prompt. Null without calibration, or with validation pairs of a single annotator."
    )
    reward_margin: float = Field(description="r_A - r_B, the model's units.")
    is_calibrated: bool = Field(description="False: no validation pairs to fit T on; it is 1.")
    truncated: bool


class Disagreement(Wire):
    """How far the communities are apart."""

    lowest: float = Field(description="P(A) in the least favourable community.")
    highest: float
    standard_deviation: float = Field(description="Of P(A) over communities, each counted once.")
    least_favourable: str = Field(description="To A.")
    most_favourable: str


class CompareResponse(Wire):
    """Who would rather have A."""

    run: str
    communities: list[Preference]
    disagreement: Disagreement
    steered: float | None = Field(
        description="Σ weight x P(A): the preference for A of a person drawn from the weighted communities."
    )


class CommunityFacts(Wire):
    """What is known of a community's model."""

    name: str
    kind: Literal["full", "adapter", "global"]
    model: str = Field(description="Content hash of its weights.")
    is_calibrated: bool
    mean: float | None = Field(description="Reward of the mean validation response.")
    standard_deviation: float | None = Field(description="Of rewards over validation responses.")
    temperature: float | None
    temperature_interval: tuple[float, float] | None
    num_validation_pairs: int | None
    facts: dict[str, str] = Field(description="From the model card: data, licence, selection, accuracy on test pairs.")


class CommunitiesResponse(Wire):
    """Everyone who is served."""

    run: str
    communities: list[CommunityFacts]


class ErrorResponse(Wire):
    """Every refusal: where, what value, what to do, in one line."""

    error: str
