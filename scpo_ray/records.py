"""Column contracts of the artifacts, and the identifiers that hold them together.

Identifiers are hashes of content: the same response in the same context has one id in every run, on every machine.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import pyarrow as pa

SCHEMA_VERSION = 1
_NOT_PLAIN = re.compile(r"(^|-)[0-9a-f]{8}$|^(con|prn|aux|nul|com[0-9]|lpt[0-9])$")


ALL_COMMUNITIES = "all communities"
"""What result tables call the communities of a run taken together."""


class Message(TypedDict):
    """One turn of a context; `role` is system, user or assistant."""

    role: str
    content: str


MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

RESPONSES = pa.schema(
    [
        ("response_id", pa.string()),
        ("interaction_id", pa.string()),  # the first interaction that the response was seen in
        ("context", MESSAGES),
        ("response", pa.string()),
        ("prompt_id", pa.string()),
    ]
)

PAIRS = pa.schema(
    [
        ("pair_id", pa.string()),
        ("interaction_id", pa.string()),
        ("community", pa.string()),
        ("annotator_id", pa.string()),  # null where the source has aggregates only
        ("prompt_id", pa.string()),
        ("prompt_group", pa.string()),  # near-duplicate prompts share it
        ("chosen_id", pa.string()),
        ("rejected_id", pa.string()),
        ("score_chosen", pa.float64()),  # null where the source has no scores
        ("score_rejected", pa.float64()),
        ("split", pa.string()),  # train | validation | test
        ("source", pa.string()),
    ]
)

REJECTED_ROWS = pa.schema(
    [
        ("source", pa.string()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("reason", pa.string()),
        ("value", pa.string()),
    ]
)

SCORES = pa.schema(
    [
        ("response_id", pa.string()),
        ("model_hash", pa.string()),
        ("reward", pa.float32()),
        ("num_tokens", pa.int32()),
        ("truncated", pa.bool_()),
    ]
)

DECISIONS = pa.schema(
    [
        ("pair_id", pa.string()),
        ("community", pa.string()),
        ("split", pa.string()),
        ("global_reward_chosen", pa.float32()),
        ("global_reward_rejected", pa.float32()),
        ("agreement", pa.float64()),
        ("kept", pa.bool_()),
        ("weight", pa.float64()),
        ("reason", pa.string()),
    ]
)

EVALUATION = pa.schema(
    [
        ("pair_id", pa.string()),
        ("community", pa.string()),  # whose annotator made the pair
        ("model", pa.string()),  # global, or a ModelName
        ("reward_chosen", pa.float32()),
        ("reward_rejected", pa.float32()),
    ]
)

OPTION_SHARES = pa.schema(
    [
        ("community", pa.string()),
        ("prompt_id", pa.string()),
        ("prompt_group", pa.string()),
        ("split", pa.string()),
        ("response_id", pa.string()),  # one option of the question
        ("share", pa.float64()),  # of the community's answers that named an offered option; a question's sum to 1
    ]
)

POLICY_RESPONSES = pa.schema(
    [
        ("policy", pa.string()),  # start, a community, or a composition
        ("prompt_id", pa.string()),
        ("prompt_group", pa.string()),
        ("community", pa.string()),  # whose prompt it is
        ("context", MESSAGES),
        ("sample", pa.int32()),
        ("response", pa.string()),
        ("num_tokens", pa.int32()),
        ("is_finished", pa.bool_()),
        ("kl", pa.float64()),  # log π - log π_ref of the response, nats; null where there is no reference
    ]
)

POLICY_JUDGEMENTS = pa.schema(
    [
        ("policy", pa.string()),
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("kind", pa.string()),  # proxy | held out | truth
        ("community", pa.string()),  # whose judgement
        ("value", pa.float64()),  # validation standard deviations; utility units for the truth
    ]
)

ATLAS_PAIR_TRUTH = pa.schema(
    [
        ("pair_id", pa.string()),
        ("kind", pa.string()),  # agreement | culture | noise | outlier
        ("utility_gap", pa.float64()),  # u(chosen) - u(rejected) under the own community's true preferences
        ("majority_utility_gap", pa.float64()),
    ]
)


@dataclass(frozen=True, order=True)
class ModelName:
    """A trained reward model: which arm chose its pairs, whom it stands for, and which of several seeds it is."""

    arm: str
    community: str
    replicate: int = 0

    def __str__(self) -> str:
        return f"{self.arm}/{self.community}" + (f" #{self.replicate}" if self.replicate else "")


_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


def _to_json(value: object) -> str:
    return str(value) if type(value) is int else _encode(value)  # the encoder is quick with texts alone


def content_id(*parts: object) -> str:
    """32 hexadecimal digits that depend on the parts' JSON form alone."""
    written = ",".join(map(_to_json, parts))  # an encoder of whole lists is slower than one of texts
    return _hash(f"[{written}]").hexdigest()


class ContextIds:
    """Ids of one context and of the responses in it; its text is hashed once for all of them."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = list(messages)
        written = ",".join(f"[{_to_json(each['role'])},{_to_json(each['content'])}]" for each in messages)
        self._begun = _hash(f"[[{written}]")

    def context_id(self) -> str:
        """What `prompt_id` is unless the source names its prompts."""
        return self._ended("]")

    def response_id(self, response: str) -> str:
        """The id of one answer in this context."""
        return self._ended(f",{_to_json(response)}]")

    def _ended(self, rest: str) -> str:
        state = self._begun.copy()
        state.update(rest.encode("utf-8", "surrogatepass"))
        return state.hexdigest()


def context_id(context: Sequence[Message]) -> str:
    """`ContextIds.context_id` where the context has no further use."""
    return ContextIds(context).context_id()


def response_id(context: Sequence[Message], response: str) -> str:
    """`ContextIds.response_id` where the context has no further use."""
    return ContextIds(context).response_id(response)


def _hash(text: str) -> "hashlib.blake2b":
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16)


def table(rows: Iterable[dict], schema: pa.Schema) -> pa.Table:
    """Rows as an Arrow table of exactly this schema; a missing key becomes null."""
    return pa.Table.from_pylist(list(rows), schema=schema)


def safe_name(name: str) -> str:
    """A folder name for any community name: readable, portable, unique (also where case does not count), never a path.

    Names of lower-case letters, digits and single `-` stay as they are, unless Windows reserves them or they end like
    a hash. All others become that, and a hash of the full name keeps "New Zealand" and "New_Zealand" apart.
    """
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_name.lower()).strip("-")[:40].strip("-")
    if name and slug == name and not _NOT_PLAIN.search(name):
        return slug
    return "-".join(part for part in (slug, content_id(name)[:8]) if part)
