"""What can go wrong, as one family: catch `ScpoError` to catch them all.

Every message is one line: the place, the value, the remedy. Errors carry only their message, so they pickle and cross
process boundaries unchanged.
"""


class ScpoError(Exception):
    """Root of the errors that scpo_ray raises on purpose."""


class ConfigError(ScpoError):
    """A setting is unknown, out of range, or contradicts another."""


class DataError(ScpoError):
    """Input data is missing, malformed, or too little for what was asked."""


class ArtifactError(ScpoError):
    """An artifact is missing, incomplete, or was made by another config or from other inputs."""


class ModelError(ScpoError):
    """A checkpoint cannot serve as what it was given for."""


class TrainingError(ScpoError):
    """Training cannot go on: a loss is not finite, or a worker group kept failing."""


class WorkerError(TrainingError):
    """Workers were killed or kept failing: the cluster's fault, not that of the settings."""


class SynchronizationError(TrainingError):
    """A rollout engine does not hold the learner's weights."""


class StorageError(ScpoError):
    """Reading or writing the run directory failed."""


class ServiceError(ScpoError):
    """The reward service refused a request, could not be reached in time, or is none."""


class ClusterError(ScpoError):
    """A cluster cannot be started or reached, or can never do what is asked of it."""
