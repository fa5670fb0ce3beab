"""Policies: causal language models that write responses. Load, make, describe where they stop."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from scpo_ray import models
from scpo_ray.config import ModelConfig
from scpo_ray.errors import ModelError


@dataclass
class Policy:
    """A causal language model and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load(folder: Path, *, attention: str = "sdpa") -> Policy:
    """A policy in float32, dropout off.

    Raises:
        ModelError: the checkpoint is no causal language model, lacks weights, or cannot be read.
    """
    check(folder)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be loaded as a policy ({str(error).splitlines()[0][:200]})") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder}: the checkpoint lacks {len(missing)} of the policy's weights ({', '.join(missing[:3])}); it is damaged or "
            "its config.json is another model's"
        )
    return Policy(model.eval(), models.load_tokenizer(folder))


def check(folder: Path, *, num_tokens: int | None = None) -> PretrainedConfig:
    """Refuse, from the configuration alone, a checkpoint that writes nothing, or less than `num_tokens`.

    Raises:
        ModelError: it is a reward model or an encoder, or has fewer positions.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder}: not a transformers model ({str(error).splitlines()[0][:200]})") from error
    architectures = config.architectures or ()
    if not any("CausalLM" in name or "LMHeadModel" in name for name in architectures):
        raise ModelError(
            f"{folder}: {', '.join(architectures) or 'no architecture'} is no causal language model; give a policy"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if num_tokens is not None and positions is not None and positions < num_tokens:
        raise ModelError(
            f"{folder}: reads at most {positions} tokens, format.max_tokens is {num_tokens}; lower format.max_tokens"
        )
    return config


def make(config: ModelConfig, *, texts: Iterable[str], max_tokens: int, seed: int) -> Policy:
    """A policy from scratch: a word tokenizer trained on `texts`, weights drawn from `seed`.

    Raises:
        ModelError: the architecture is an encoder.
    """
    if config.architecture != "llama":
        raise ModelError(f"sft.scratch.architecture: {config.architecture} is an encoder and writes nothing; use llama")
    tokenizer = models.train_tokenizer(texts, vocab_size=config.vocab_size, architecture="llama")
    hf_config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=4 * config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        max_position_embeddings=max_tokens,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
        dtype=torch.float32,
    )
    with models.seeded(seed):
        model = AutoModelForCausalLM.from_config(hf_config)
    return Policy(model.eval(), tokenizer)


def stop_token_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a response: the tokenizer's, and those that the checkpoint's generation config names.

    Raises:
        ModelError: there is none, so that no response would ever end.
    """
    found = {tokenizer.eos_token_id}
    if (folder / "generation_config.json").is_file():
        named = GenerationConfig.from_pretrained(folder).eos_token_id
        found |= set(named) if isinstance(named, list) else {named}
    found.discard(None)
    if not found:
        raise ModelError(f"{folder}: no end-of-sequence token, so that no response would end; set eos_token")
    return sorted(found)


def save_weights(start: Path, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """A policy of `start`'s architecture and tokenizer with other weights, transformers format.

    Args:
        weights: every parameter by its plain name; a tied output layer may be among them.
    """
    config = AutoConfig.from_pretrained(start)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    if config.tie_word_embeddings:
        weights = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    models.save(model, models.load_tokenizer(start), folder, state=weights)
    if (start / "generation_config.json").is_file():
        shutil.copy(start / "generation_config.json", folder)


def describe(model: PreTrainedModel) -> dict[str, object]:
    """Architecture and sizes; under ZeRO-3 of the whole model."""
    parameters = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
    return {"architecture": model.config.architectures or type(model).__name__, "num_parameters": parameters}


def save(policy: Policy, folder: Path) -> None:
    """Transformers format with safetensors."""
    models.save(policy.model, policy.tokenizer, folder)
