"""Models of a service's tests: one small model under several names, and real scorers that are counted."""

import time

from scpo_ray.config import FormatConfig
from scpo_ray.config.serving import ServeConfig
from scpo_ray.scoring import RewardScorer
from scpo_ray.serving.catalog import ServedModel
from scpo_ray.serving.loading import load_whole

CONFIG = ServeConfig(models={"x": "y"}, authentication="off", max_queued=200)
CONTEXT = [{"role": "user", "content": "what do you think ?"}]


def served(folder, number: int) -> list[ServedModel]:
    """The same weights under formats of their own, so that each is a model of its own."""
    return [
        ServedModel(f"c{index}", "full", str(folder), "hash", FormatConfig(max_tokens=100 + index))
        for index in range(number)
    ]


class Counting:
    """Real scorers, counted until they are dropped."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.alive: list[str] = []
        self.peak = self.num_loads = 0
        self._seconds = seconds

    def __call__(self, model: ServedModel, dropped: RewardScorer | None) -> RewardScorer:
        time.sleep(self._seconds)
        if dropped is not None:
            self.alive.remove(dropped.community)
        scorer = load_whole(CONFIG, model)
        self.num_loads += 1
        self.alive.append(model.community)
        self.peak = max(self.peak, len(self.alive))

        class Watched:
            formatter, packs, community = scorer.formatter, scorer.packs, model.community

            def forward(self, sequences):
                return scorer.forward(sequences)

        return Watched()
