"""TRL's RewardTrainer over pairs whose tokens are there already. Needs torch, transformers and trl alone."""

import time
from collections.abc import Sequence
from pathlib import Path

import datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from scpo_ray.formatting import TokenSequence
from scpo_ray.training.batches import Preference


def seconds_of_trl(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Preference],
    sequences: Sequence[TokenSequence],
    *,
    folder: Path,
    learning_rate: float,
    batch_size: int,
    accumulation_steps: int,
    order: str,
    bfloat16: bool,
) -> float:
    """Train the model on all pairs once, with the making of the optimiser and the loader; no checkpoints, none of gradients.

    Args:
        folder: where the trainer may write.
        batch_size: pairs of a pass.
        order: of transformers' Trainer; by length, batches of similar lengths come in turn.
    """
    rows = {
        "chosen_ids": [sequences[pair.chosen].input_ids for pair in pairs],
        "rejected_ids": [sequences[pair.rejected].input_ids for pair in pairs],
        "length": [max(len(sequences[index].input_ids) for index in (pair.chosen, pair.rejected)) for pair in pairs],
    }
    settings = RewardConfig(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation_steps,
        num_train_epochs=1,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        max_length=None,
        train_sampling_strategy=order,
        remove_unused_columns=False,  # else the lengths are
        gradient_checkpointing=False,
        bf16=bfloat16,
        use_cpu=model.device.type == "cpu",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=model.device.type != "cpu",
    )
    data = datasets.Dataset.from_dict(rows)
    trainer = RewardTrainer(model, settings, train_dataset=data, processing_class=tokenizer)
    start = time.perf_counter()
    trainer.train()
    return time.perf_counter() - start
