"""What benchmarks/gpu.py works on: a model with random weights, PRISM-shaped texts, and the FLOPs of both."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from benchmarks.prism import write_prism
from scpo_ray import models
from scpo_ray.config import FormatConfig, ModelConfig, PrismConfig
from scpo_ray.core.model_size import TransformerShape, forward_flops, training_flops
from scpo_ray.datasets import prism
from scpo_ray.formatting import Formatter, TokenSequence
from scpo_ray.training.batches import Item, Preference, PreferenceSet

SIZES = {
    "tiny": ModelConfig(hidden_size=64, num_layers=2, num_heads=2),
    "0.1B": ModelConfig(hidden_size=768, num_layers=12, num_heads=12, vocab_size=16_000),
    "1B": ModelConfig(hidden_size=2048, num_layers=18, num_heads=16, vocab_size=16_000),
    "8B": ModelConfig(hidden_size=4096, num_layers=29, num_heads=32, vocab_size=16_000),
}
MAX_TOKENS, STEPS, INTERACTIONS_PER_STEP = 1024, 3, 32


@dataclass(frozen=True)
class Work:
    """A model on disk, files of texts, and formatted responses with their pairs."""

    folder: Path
    texts_at: Path
    device: torch.device
    formatter: Formatter
    shape: TransformerShape
    contexts: list
    responses: list[str]
    sequences: list[TokenSequence]
    interactions: list[list[int]]
    """Responses of each."""
    data: PreferenceSet

    def model(self, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> PreTrainedModel:
        """A fresh copy."""
        found = AutoModelForSequenceClassification.from_pretrained(self.folder, dtype=dtype)
        return found.to(device or self.device)

    def steps(self) -> list[list[Item]]:
        """What every way of training sees."""
        return list(self.data.batches(batch_size=INTERACTIONS_PER_STEP, seed=0, first_step=0, num_steps=STEPS))


def format_config() -> FormatConfig:
    """Of every way."""
    return FormatConfig(max_tokens=MAX_TOKENS)


def prepared(folder: Path, size: str, conversations: int, device: torch.device) -> Work:
    """Texts and model; written once."""
    texts_at = folder / f"prism_{conversations}"
    write_prism(texts_at, conversations)
    dataset = prism.read(PrismConfig(path=str(texts_at)), min_score_gap=0.0)
    rows = dataset.responses.to_pylist()
    place = folder / f"model_{size}"
    if not place.exists():
        texts = [
            text for row in rows for text in (row["response"], *(message["content"] for message in row["context"]))
        ]
        made = models.make(SIZES[size], texts=texts, max_tokens=MAX_TOKENS, seed=0)
        models.save(made.model, made.tokenizer, place)
    tokenizer = models.load_tokenizer(place)
    formatter = Formatter(tokenizer, format_config())
    contexts, responses = [row["context"] for row in rows], [row["response"] for row in rows]
    sequences = formatter.format(contexts, responses)
    position = {row["response_id"]: index for index, row in enumerate(rows)}
    preferences = [
        Preference(
            row["interaction_id"], row["prompt_id"], position[row["chosen_id"]], position[row["rejected_id"]], 1.0, 0.0
        )
        for row in dataset.pairs.sort_by("pair_id").to_pylist()
    ]
    interactions: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        interactions.setdefault(row["interaction_id"], []).append(index)
    data = PreferenceSet(sequences, preferences, batching="interactions")
    return Work(
        place,
        texts_at,
        device,
        formatter,
        models.shape_of(place),
        contexts,
        responses,
        sequences,
        [*interactions.values()],
        data,
    )


def flops_per_token(work: Work) -> float:
    """In the mean."""
    lengths = [len(sequence.input_ids) for sequence in work.sequences]
    mean = sum(length * length for length in lengths) / sum(lengths)
    return forward_flops(work.shape, num_tokens=1, mean_length=mean)


def flops_per_pair(work: Work) -> float:
    """In the mean over the steps, each response once."""
    lengths = [len(work.sequences[index].input_ids) for index in seen(work)]
    mean = sum(length * length for length in lengths) / sum(lengths)
    return training_flops(work.shape, num_tokens=sum(lengths), mean_length=mean) / num_pairs(work)


def seen(work: Work) -> list[int]:
    """Responses of the steps."""
    return [index for step in work.steps() for item in step for index in item.responses]


def num_pairs(work: Work) -> int:
    """Of the steps."""
    return sum(len(item.pairs) for step in work.steps() for item in step)
