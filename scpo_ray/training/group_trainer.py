"""Ray's TorchTrainer for a worker group, less what can outlive a killed job. Imports torch."""

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback


class GroupTrainer(TorchTrainer):
    """Without Ray's PlacementGroupCleaner, a detached actor that frees a dead controller's placement group while the job lives.

    Ray tells it whose end to watch for in a second call, so that a job that is killed in between leaves it behind for as long
    as the cluster lives. A group whose controller is dead is not started again here, and its placement group goes with the job.
    """

    def _create_default_callbacks(self) -> list:
        return [
            callback
            for callback in super()._create_default_callbacks()
            if not isinstance(callback, PlacementGroupCleanerCallback)
        ]
