"""What batches are compared with: each sequence through transformers' own forward pass by itself."""

import torch


@torch.inference_mode()
def rewards_one_by_one(model, sequences) -> list[float]:
    rewards = []
    for sequence in sequences:
        inputs = {"input_ids": torch.tensor([sequence.input_ids])}
        if sequence.token_type_ids is not None:
            inputs["token_type_ids"] = torch.tensor([sequence.token_type_ids])
        rewards.append(model(**inputs).logits.item())
    return rewards
