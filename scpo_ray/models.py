"""Reward models: load, make, describe, save."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Literal

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from scpo_ray.config import ModelConfig
from scpo_ray.core.model_size import TransformerShape
from scpo_ray.errors import ModelError
from scpo_ray.formatting import pad_token_id
from scpo_ray.narrowing import narrow_encoder

_HEAD_NAMES = ("score", "classifier")
ADAPTER, ADAPTER_CONFIG = "adapter", "adapter_config.json"
"""Folder beside a reward model's weights: what LoRA learned alone, in PEFT's format."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|> ' + message['content'] + ' <|end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)
"""What tokenizers made here use: every role and the end of a turn are single tokens."""


@dataclass
class RewardModel:
    """A one-label sequence classifier and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load(
    folder: Path,
    *,
    attention: str = "auto",
    new_head_seed: int | None = None,
    safetensors_only: bool = False,
) -> RewardModel:
    """A reward model in float32, dropout off.

    Args:
        folder: transformers format, encoder or decoder.
        attention: attention kernel, as transformers names it; auto: the fastest that it has for the architecture.
        new_head_seed: put a fresh head on a backbone that has none, drawn from this seed; refuse it when unset.
        safetensors_only: refuse pickled weights. Remote code is never run.

    Raises:
        ModelError: the checkpoint has another number of labels, lacks a head or other weights, or cannot be read.
    """
    check(folder, may_lack_head=new_head_seed is not None)
    with seeded(new_head_seed):
        try:
            tokenizer = load_tokenizer(folder)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=1,
                dtype=torch.float32,
                attn_implementation=None if attention == "auto" else attention,
                output_loading_info=True,
                trust_remote_code=False,
                use_safetensors=True if safetensors_only else None,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"{folder}: cannot be loaded as a reward model ({str(error).splitlines()[0][:200]})"
            ) from error
    _refuse_missing_weights(folder, report["missing_keys"], has_head=_has_head(_read_config(folder)))
    return _finish(model, tokenizer)


def _refuse_missing_weights(folder: Path, missing: Iterable[str], *, has_head: bool) -> None:
    """transformers fills what a checkpoint lacks with random numbers and a warning. A new head is all that may be new."""
    may_be_new = () if has_head else (*_HEAD_NAMES, "pooler")
    lacking = sorted(key for key in missing if not any(part in may_be_new for part in key.split(".")))
    if lacking:
        raise ModelError(
            f"{folder}: the checkpoint lacks {len(lacking)} of the model's weights ({', '.join(lacking[:3])}"
            f"{', ...' if len(lacking) > 3 else ''}); it is damaged, or its config.json is another model's"
        )


def check(folder: Path, *, may_lack_head: bool, max_tokens: int | None = None) -> None:
    """Refuse, from the configuration alone, a checkpoint that is no reward model.

    Raises:
        ModelError: it has a head with another number of labels than 1, no head where one is needed, or fewer positions
            than `max_tokens`.
    """
    config = _read_config(folder)
    has_head = _has_head(config)
    if has_head and config.num_labels != 1:
        raise ModelError(
            f"{folder}: {config.num_labels} labels, a reward model has 1; give a checkpoint with num_labels=1, or a "
            "backbone without a head to train one"
        )
    if not has_head and not may_lack_head:
        raise ModelError(f"{folder}: {config.architectures} has no reward head; train one with train_global.epochs > 0")
    positions = getattr(config, "max_position_embeddings", None)
    if "roberta" in config.model_type and positions is not None:
        positions -= (config.pad_token_id or 0) + 1  # the first positions stand for padding
    if max_tokens is not None and positions is not None and 0 < positions < max_tokens:
        raise ModelError(
            f"{folder}: reads at most {positions} tokens, format.max_tokens is {max_tokens}; lower format.max_tokens"
        )


def _has_head(config: PretrainedConfig) -> bool:
    return any("ForSequenceClassification" in name for name in config.architectures or ())


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model.

    Raises:
        ModelError: there is none that can be read.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: no readable tokenizer ({str(error).splitlines()[0][:200]})") from error


def make(
    config: ModelConfig, *, texts: Iterable[str], max_tokens: int, seed: int, attention: str = "sdpa"
) -> RewardModel:
    """A reward model from scratch: a word tokenizer trained on `texts`, weights drawn from `seed`."""
    tokenizer = train_tokenizer(texts, vocab_size=config.vocab_size, architecture=config.architecture)
    shared = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden_size,
        "intermediate_size": 4 * config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": max_tokens,
        "num_labels": 1,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": torch.float32,
    }
    if config.architecture == "llama":  # not qwen2: transformers 5 would rebuild its tokenizer and lose ours
        hf_config = LlamaConfig(
            **shared,
            num_key_value_heads=config.num_heads,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
        )
    else:
        hf_config = BertConfig(**shared)
    with seeded(seed):
        model = AutoModelForSequenceClassification.from_config(hf_config, attn_implementation=attention)
    return _finish(model, tokenizer)


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, architecture: Literal["llama", "bert"]
) -> PreTrainedTokenizerBase:
    """A word-level tokenizer: lower case, words and marks apart, the rarest words unknown beyond `vocab_size`."""
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if architecture == "bert":
        special = ["<pad>", "<unk>", "<cls>", "<sep>"]
    else:
        special = ["<pad>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    backend.train_from_iterator(texts, trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=special))
    if architecture == "bert":
        backend.post_processor = processors.BertProcessing(("<sep>", 3), ("<cls>", 2))
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            pad_token="<pad>",
            unk_token="<unk>",
            cls_token="<cls>",
            sep_token="<sep>",
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|end|>",
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, state: dict | None = None
) -> None:
    """Transformers format with safetensors; `state` replaces the model's own weights."""
    transformers_logging.disable_progress_bar()
    model.save_pretrained(
        folder, state_dict=None if state is None else dict(state)
    )  # transformers empties what it gets
    tokenizer.save_pretrained(folder)


def describe(model: PreTrainedModel) -> dict[str, object]:
    """Architecture and sizes, for manifests and model cards."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    embeddings = model.get_input_embeddings().weight.numel()
    return {
        "architecture": type(model).__name__,
        "num_parameters": parameters,
        "num_non_embedding_parameters": parameters - embeddings,
        "num_layers": model.config.num_hidden_layers,
    }


def shape_of(folder: Path) -> TransformerShape:
    """What a checkpoint's configuration says of its size; loads no weights.

    Raises:
        ModelError: there is no readable configuration.
    """
    config = _read_config(folder)
    is_gated = hasattr(config, "hidden_act") and config.model_type not in _PLAIN_MLP
    heads = config.num_attention_heads
    return TransformerShape(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab_size=config.vocab_size,
        num_positions=0 if is_gated else config.max_position_embeddings,
        gated_mlp=is_gated,
        biases=not is_gated,
        writes_scores=config.model_type.startswith("deberta"),
    )


_PLAIN_MLP = ("bert", "roberta", "xlm-roberta", "deberta", "deberta-v2", "electra", "distilbert", "mpnet")
"""Encoders with two matrices per MLP and learned positions; others are read as gated decoders with rotary ones."""


def prepare_for_training(
    model: PreTrainedModel, *, dropout: bool, gradient_checkpointing: bool, is_narrow: bool = False
) -> None:
    """Train mode; with `dropout` off, every dropout probability is zero (checkpointing needs train mode all the same).

    Encoders' last layers compute from then on only what a reward reads.

    Args:
        is_narrow: they do already.
    """
    if not is_narrow:
        narrow_encoder(model)
    if not dropout:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            for name in ("attention_dropout", "dropout_prob"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()


def writes_in_forward(model: PreTrainedModel) -> bool:
    """Whether a forward pass changes the model: some rotary embeddings keep frequencies that fit the batch in hand."""
    kinds = str(getattr(model.config, "rope_parameters", None))
    return "'dynamic'" in kinds or "'longrope'" in kinds


def keep_head_float32(model: PreTrainedModel) -> None:
    """Compute the reward head in float32 even under autocast: bfloat16 rewards near 1 are 1/128 apart and tie."""
    for name in _HEAD_NAMES:
        head = getattr(model, name, None)
        if head is not None:
            head.forward = MethodType(_forward_in_float32(type(head).forward), head)


def _forward_in_float32(forward):
    def wrapped(self, hidden: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return forward(self, hidden.float(), *args, **kwargs)

    return wrapped


def _read_config(folder: Path):
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder}: not a transformers model ({str(error).splitlines()[0][:200]})") from error


def _finish(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> RewardModel:
    model.config.pad_token_id = pad_token_id(tokenizer)
    model.eval()
    return RewardModel(model, tokenizer)


@contextlib.contextmanager
def seeded(seed: int | None):
    """Draw from `seed` inside, and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        yield
