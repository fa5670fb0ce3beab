"""Rewards that were asked for before: bounded, least recently used out first."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from scpo_ray.records import Message


@dataclass(frozen=True, slots=True)
class Reward:
    """Of one text under one model."""

    value: float
    """Raw, the model's units."""
    truncated: bool
    """The model's context was too short for all of it."""
    num_tokens: int


@dataclass
class RewardCache:
    """(model, context, response) -> reward."""

    max_rewards: int
    num_hits: int = 0
    _rewards: OrderedDict[bytes, Reward] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._rewards)

    def get(self, key: bytes) -> Reward | None:
        """What is known, if anything."""
        found = self._rewards.get(key)
        if found is not None:
            self.num_hits += 1
            self._rewards.move_to_end(key)
        return found

    def put(self, key: bytes, reward: Reward) -> None:
        """Remember a reward; the least recently used one makes room."""
        self._rewards[key] = reward
        if len(self._rewards) > self.max_rewards:
            self._rewards.popitem(last=False)


def text_key(context: Sequence[Message], response: str) -> bytes:
    """128 bits of a context and a response; nobody can make two texts that share them."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (*(text for message in context for text in (message["role"], message["content"])), response):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little"))  # so that parts cannot run into each other
        digest.update(encoded)
    return digest.digest()


def reward_key(model: str, text: bytes) -> bytes:
    """128 bits of a model and a text."""
    return hashlib.blake2b(model.encode() + b"\0" + text, digest_size=16).digest()
