"""A model in training on validation pairs: what a search compares its trials by."""

import torch

from scpo_ray.core.batching import packed_batches, token_budget_batches
from scpo_ray.formatting import Formatter
from scpo_ray.packing import Packer
from scpo_ray.training.batches import InputsOf, PreferenceSet, on_device
from scpo_ray.training.data import load_pairs_of
from scpo_ray.training.task import Observation, TrainingTask

_TOKENS_PER_BATCH = 8192


class Watcher:
    """The validation pairs of a watched task, read and formatted once."""

    def __init__(self, task: TrainingTask, formatter: Formatter, device: torch.device, packer: Packer | None) -> None:
        assert task.watch is not None
        self._device, self._num_parts = device, task.watch.num_parts
        self._inputs_of: InputsOf = formatter.pad if packer is None else packer.inputs_of
        self._cut = token_budget_batches if packer is None else packed_batches
        self._own, self._majority = (
            load_pairs_of(task, formatter, communities, split="validation")
            for communities in (task.communities, task.watch.majority)
        )

    def part(self, step: int, num_steps: int) -> int:
        """How many of the parts are done after this many steps."""
        return step * self._num_parts // num_steps

    def observe(self, engine: torch.nn.Module, step: int, num_steps: int) -> Observation:
        """Margins under the weights of this step. Every rank computes all of them: under ZeRO-3 each forward needs all."""
        engine.eval()
        margins = [() if pairs is None else self._margins(engine, pairs) for pairs in (self._own, self._majority)]
        engine.train()
        return Observation(step, self.part(step, num_steps), *margins)

    @torch.no_grad()
    def _margins(self, engine: torch.nn.Module, pairs: PreferenceSet) -> tuple[float, ...]:
        rewards = torch.empty(len(pairs.sequences))
        lengths = [len(sequence.input_ids) for sequence in pairs.sequences]
        for batch in self._cut(lengths, tokens_per_batch=_TOKENS_PER_BATCH):
            inputs = self._inputs_of([pairs.sequences[index] for index in batch])
            logits = engine(**on_device(inputs, self._device)).logits
            rewards[torch.as_tensor(batch)] = logits.float().squeeze(-1).cpu()
        found = [(rewards[pair.chosen] - rewards[pair.rejected]).item() for pair in pairs.preferences]
        return tuple(found)
