"""The service on Ray Serve: one deployment whose replicas each hold models, batch, and answer HTTP by themselves."""

import logging
import os

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from scpo_ray.config.serving import ServeConfig
from scpo_ray.errors import ArtifactError
from scpo_ray.serving.api import make_api
from scpo_ray.serving.catalog import read_catalog
from scpo_ray.serving.loading import load_models
from scpo_ray.serving.notices import Notices
from scpo_ray.serving.rewards import Rewards
from scpo_ray.serving.service import Service
from scpo_ray.serving.tokens import Tokens

_LOGGER = logging.getLogger("ray.serve")


def application(config: ServeConfig, *, num_replicas: int = 1, num_cpus: float = 1) -> Application:
    """What `serve run` and `serve deploy` take. Settings, tokens and the run are checked here, before a replica starts.

    Args:
        num_replicas: a deployment's YAML overrides it, and `num_cpus`, what Ray reserves for each.

    Raises:
        ConfigError: settings do not fit together, or the tokens cannot be read.
        ArtifactError: the run is not finished.
        ModelError: something is no reward model.
    """
    catalog = read_catalog(config)
    if config.tokens_file is not None:
        Tokens(config.tokens_file)
    deployment = serve.deployment(
        serve.ingress()(replica_class(config.max_loaded_models)),
        name="rewards",
        num_replicas=num_replicas,
        ray_actor_options={"num_cpus": num_cpus},
        max_surge_percent=100,  # a new run's replicas are there before the old one's go
        max_ongoing_requests=512,  # the batcher wants to see all of them; max_queued bounds the work
        max_queued_requests=1024,  # in the proxy
        backpressure_config={"status_code": 429, "retry_after_s": 1},  # beyond
        graceful_shutdown_timeout_s=config.body_timeout_s + config.deadline_s + 5,
    )
    return deployment.bind(config, catalog.digest)


def replica_class(max_loaded_models: int) -> type:
    """The replica; a class of its own, because Ray Serve wants to know the bound when it is made."""

    class RewardReplica:
        """Reads the catalog, loads what is shared, answers.

        Args:
            digest: what the application was built for.

        Raises:
            ArtifactError: the run is another one by now; two would answer side by side.
        """

        def __init__(self, config: ServeConfig, digest: str) -> None:
            _set_threads(config)
            catalog = read_catalog(config)
            if catalog.digest != digest:
                raise ArtifactError(f"{config.run_dir}: has changed since it was deployed; deploy it again")
            if config.authentication == "off":
                _LOGGER.warning("authentication is off: whoever reaches this port may ask")
            rewards = Rewards(config, load_models(config, catalog))
            notices = Notices(max_loaded_models, self._note)
            self._config, self._service = config, Service(catalog, rewards, note=notices.asked_for)

        def __serve_build_asgi_app__(self) -> FastAPI:
            """FastAPI around this replica's models; Ray Serve asks for it once."""
            needs_tokens = self._config.authentication == "bearer" and self._config.tokens_file is not None
            tokens = Tokens(str(self._config.tokens_file)) if needs_tokens else None
            replica = serve.get_replica_context().replica_id.unique_id
            return make_api(self._config, self._service, tokens=tokens, replica=replica)

        @serve.multiplexed(max_num_models_per_replica=max_loaded_models)
        async def _note(self, community: str) -> str:
            """Ray Serve sends callers of the models that it heard of last here to this replica. What is in memory is
            `LoadedModels`'s business."""
            return community

    return RewardReplica


def _set_threads(config: ServeConfig) -> None:
    import torch

    reserved = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    threads = config.threads or max(1, round(reserved))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
