"""What other trainers ask a reward model, translated: their requests to (context, response), rewards to their answers.

Checked in their sources:

- OpenRLHF: `openrlhf/utils/agent.py` (`SingleTurnAgentExecutor`), `openrlhf/cli/serve_rm.py`,
  `openrlhf/trainer/ppo_utils/{experience_maker,samples_generator}.py` and `openrlhf/datasets/prompts_dataset.py` of
  OpenRLHF/OpenRLHF. With several addresses in `remote_rm_url` it asks some of them about no query at all.
- verl: `verl/experimental/reward_loop/reward_loop.py` of volcengine/verl and verl-project/verl, which reads
  `data[-1].probs[-1]`; the answer's fields in `vllm/entrypoints/pooling/classify/{protocol,serving}.py` of vLLM 0.32.
- slime: `slime/rollout/rm_hub/__init__.py`, `slime/rollout/sglang_rollout.py` and `slime/utils/{types,data}.py` of THUDM/slime.

OpenRLHF and slime decode what the policy wrote with its special tokens, so a response may end in some; `plain_response`
takes them off. Prompts come as the policy read them: the reward model reads a chat template that the trainer applied
as part of the user's message. Leave templates to the policy's side where the trainer can send messages (slime without
`--apply-chat-template`, TRL).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from scpo_ray.serving.schemas import CONTROL_CHARACTERS, MAX_ITEMS, Wire

EMPTY_REWARD = -3.0
"""Reward of a response without text, which no reward model reads: on the calibrated scale, three standard deviations below the
mean response."""

END_MARKS = (
    "<|end|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|return|>",
    "<end_of_turn>",
    "<eos>",
    "<pad>",
    "</s>",
    "<｜end▁of▁sentence｜>",
)
"""How widespread tokenizers (Llama, Qwen, Gemma, Mistral, Phi, DeepSeek, gpt-oss; this package's own) write the end of a turn."""


_ENDING = re.compile(rf"(?:\s*+(?:{'|'.join(re.escape(mark[::-1]) for mark in END_MARKS)}))++")
"""Of a text from its end: end marks, and the space after each. Possessive, so that it takes time by the text's length."""


def whole(text: str) -> str:
    """The text itself, blank or not.

    Raises:
        ValueError: it holds a lone surrogate, which no tokenizer can read.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has a lone surrogate at character {error.start}; send whole Unicode characters") from None
    return text


PolicyText = Annotated[str, AfterValidator(whole)]
"""What a policy wrote: anything, so that one odd token does not end a training run."""


def without_control(text: str) -> str:
    """As a reward model reads it: what a trainer's own data hold does not end a training run."""
    return CONTROL_CHARACTERS.sub("", text)


def not_blank(text: str) -> str:
    """The text itself.

    Raises:
        ValueError: nothing of it can be read.
    """
    if not without_control(text).strip():
        raise ValueError("is blank; give some text")
    return text


PromptText = Annotated[PolicyText, AfterValidator(not_blank)]
"""What a policy was asked."""


def plain_response(text: str) -> str:
    """A policy's text as a reward model reads it: without control characters, and without end marks after its last word."""
    text = without_control(text)
    ending = _ENDING.match(text[::-1])
    return text if ending is None else text[: len(text) - ending.end()]


@dataclass(frozen=True)
class Exchange:
    """A response and what it answers."""

    context: list[dict[str, str]]
    response: str

    @property
    def is_empty(self) -> bool:
        """No model reads such a response: it gets `EMPTY_REWARD`."""
        return not self.response.strip()


class Foreign(BaseModel):
    """A request of somebody else's program: fields beyond ours are its own business."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class OpenRlhfRequest(Foreign):
    """Texts of prompt and response together, as OpenRLHF's `remote_rm_url` gets them."""

    query: list[PolicyText] = Field(
        fail_fast=True, max_length=MAX_ITEMS, description="Prompt and response in one text."
    )
    prompts: list[PromptText] = Field(fail_fast=True, max_length=MAX_ITEMS, description="How each query begins.")
    labels: list[object] | None = Field(default=None, description="Not read.")

    @model_validator(mode="after")
    def _agrees(self) -> "OpenRlhfRequest":
        lengths = {"query": len(self.query), "prompts": len(self.prompts)}
        lengths |= {} if self.labels is None else {"labels": len(self.labels)}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{length} in {name}" for name, length in lengths.items())
            raise ValueError(f"{counts}; send one of each for every response")
        for index, (query, prompt) in enumerate(zip(self.query, self.prompts, strict=True)):
            if not query.startswith(prompt):
                raise ValueError(
                    f"query {index} begins with {query[:40]!r}, not with its prompt {prompt[:40]!r}; the trainer has cut the "
                    "prompt, or its tokenizer does not give back what it read: shorten prompts or raise the trainer's limit"
                )
        return self

    @property
    def exchanges(self) -> list[Exchange]:
        """In the order of `query`."""
        return [
            Exchange([{"role": "user", "content": without_control(prompt)}], plain_response(query[len(prompt) :]))
            for query, prompt in zip(self.query, self.prompts, strict=True)
        ]


class OpenRlhfResponse(Wire):
    """One number per query in every list."""

    rewards: list[float]
    scores: list[float] = Field(description="σ(reward): OpenRLHF's dynamic filter expects 0 to 1. Not trained on.")
    extra_logs: dict[str, list[float]] = Field(description="Means of these appear in OpenRLHF's logs.")


def openrlhf_response(
    rewards: Sequence[float], *, is_empty: Sequence[bool], truncated: Sequence[bool]
) -> OpenRlhfResponse:
    """OpenRLHF's answer.

    Args:
        rewards: per query, on whatever scale is to be trained on.
        is_empty: the queries that got `EMPTY_REWARD`.
        truncated: the queries that the model did not see whole.
    """
    shares = {"empty": list(map(float, is_empty)), "truncated": list(map(float, truncated))}  # it averages no booleans
    return OpenRlhfResponse(rewards=list(rewards), scores=[sigmoid(reward) for reward in rewards], extra_logs=shares)


class ForeignMessage(Foreign):
    """One turn; a turn that calls a tool or shows a picture has no text content and is refused."""

    role: Literal["system", "user", "assistant"]
    content: PromptText


class SlimeRequest(Foreign):
    """A single sample, as slime's `--rm-type remote_rm` sends it; the answer is a bare number."""

    prompt: PromptText | Annotated[list[ForeignMessage], Field(min_length=1, max_length=MAX_ITEMS)]
    response: PolicyText
    label: object = Field(default=None, description="Not read.")

    @property
    def exchange(self) -> Exchange:
        """The sample."""
        if isinstance(self.prompt, str):
            context = [{"role": "user", "content": without_control(self.prompt)}]
        else:
            context = [{"role": turn.role, "content": without_control(turn.content)} for turn in self.prompt]
        return Exchange(context, plain_response(self.response))


class ClassifyRequest(Foreign):
    """vLLM's classification request as verl sends it: conversations to which the reward model's chat template is applied."""

    model: str = Field(min_length=1, description="A community.")
    input: list[PolicyText] = Field(
        fail_fast=True, min_length=1, max_length=MAX_ITEMS, description="One text or several."
    )
    use_activation: bool | None = None
    activation: bool | None = Field(default=None, description="`use_activation`, as vLLM called it before 0.11.2.")

    @field_validator("input", mode="before", json_schema_input_type=str | list[str])
    @classmethod
    def _is_text(cls, given: object) -> object:
        texts = given if isinstance(given, list) else [given]
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"input {index} is {type(text).__name__}, not text; send texts, not token ids")
        return texts

    @property
    def is_activated(self) -> bool:
        """Whether probabilities are asked for, as vLLM has it when nothing is said; verl says no and gets raw rewards."""
        said = self.activation if self.use_activation is None else self.use_activation
        return said is not False


class Classification(Wire):
    """One text's reward."""

    index: int
    label: str | None = "LABEL_0"
    probs: list[float] = Field(description="The raw reward, or its σ where activation is asked for.")
    num_classes: int = 1


class ClassifyUsage(Wire):
    """Tokens that were read; none are written."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class ClassifyResponse(Wire):
    """vLLM's answer."""

    id: str
    object: Literal["list"] = "list"
    created: int = Field(description="Seconds since 1970.")
    model: str
    data: list[Classification]
    usage: ClassifyUsage


def classify_response(
    request: ClassifyRequest, raw_rewards: Sequence[float], *, identifier: str, created: int, num_tokens: int
) -> ClassifyResponse:
    """vLLM's answer.

    Args:
        raw_rewards: the model's logits, in the order of the request's `input`.
        identifier: of this answer.
        created: seconds since 1970.
        num_tokens: that the model read for all of it.

    Raises:
        ValueError: not one reward per input.
    """
    if len(raw_rewards) != len(request.input):
        raise ValueError(f"{len(raw_rewards)} rewards for {len(request.input)} inputs; give one each")
    probs = [sigmoid(reward) if request.is_activated else reward for reward in raw_rewards]
    return ClassifyResponse(
        id=identifier,
        created=created,
        model=request.model,
        data=[Classification(index=index, probs=[prob]) for index, prob in enumerate(probs)],
        usage=ClassifyUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    )


def sigmoid(reward: float) -> float:
    """1 / (1 + e^-reward), for any finite reward: the exponent is never positive."""
    shrunk = math.exp(-abs(reward))
    return (1 if reward >= 0 else shrunk) / (1 + shrunk)
