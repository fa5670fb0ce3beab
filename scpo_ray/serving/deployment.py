"""The service on Ray Serve: one deployment whose replicas each hold models, batch, and answer HTTP by themselves."""

import asyncio
import logging
import os
from pathlib import Path

import ray
from ray import serve
from ray.serve import Application

from scpo_ray.config.serving import ServeConfig
from scpo_ray.scoring import RewardScorer
from scpo_ray.serving.adapters import AdapterScorer
from scpo_ray.serving.api import make_api
from scpo_ray.serving.catalog import Catalog, ServedModel, read_catalog
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
    )
    return deployment.bind(config, catalog.digest)


def replica_class(max_loaded_models: int) -> type:
    """The replica, with a bounded cache of models that Ray Serve's router knows of."""

    class RewardReplica:
        """Reads the catalog, loads what is shared, answers.

        Args:
            digest: what the application was built for; another is a run that changed under it.
        """

        def __init__(self, config: ServeConfig, digest: str) -> None:
            self._config = config
            _set_threads(config)
            self._catalog = read_catalog(config)
            if self._catalog.digest != digest:
                _LOGGER.warning("the run has changed since it was deployed: serving %s", self._catalog.digest)
            self._bases = {
                model.key: load_base(config, self._catalog, model)
                for model in {each.key: each for each in self._catalog.models.values() if each.shares_base}.values()
            }
            self._full = {model.key: model for model in self._catalog.models.values() if not model.shares_base}
            if config.authentication == "off":
                _LOGGER.warning("authentication is off: whoever reaches this port may ask")

        def __serve_build_asgi_app__(self):
            """FastAPI around this replica's models; Ray Serve asks for it once."""
            rewards = Rewards(self._config, self._scorer)
            tokens = None if self._config.tokens_file is None else Tokens(self._config.tokens_file)
            if self._config.authentication == "off":
                tokens = None
            return make_api(self._config, Service(self._catalog, rewards), tokens=tokens)

        async def _scorer(self, key: str) -> RewardScorer:
            base = self._bases.get(key)
            return base if base is not None else await self._load(key)

        @serve.multiplexed(max_num_models_per_replica=max_loaded_models)
        async def _load(self, key: str) -> RewardScorer:
            return await asyncio.get_running_loop().run_in_executor(None, load_full, self._config, self._full[key])

    return RewardReplica


def load_full(config: ServeConfig, model: ServedModel) -> RewardScorer:
    """A community's whole model.

    Raises:
        ModelError: it cannot be loaded.
    """
    return RewardScorer(
        Path(model.folder),
        format_config=model.format,
        tokens_per_batch=config.tokens_per_batch,
        precision=config.precision,
    )


def load_base(config: ServeConfig, catalog: Catalog, model: ServedModel) -> AdapterScorer:
    """The base that a community's model sits on, with the adapters of all that do.

    Raises:
        ModelError: it cannot be loaded, or an adapter does not fit.
    """
    sharing = catalog.sharing(model.key)
    return AdapterScorer(
        Path(model.folder),
        {name: None if each.adapter is None else Path(each.adapter) for name, each in sharing.items()},
        format_config=model.format,
        tokens_per_batch=config.tokens_per_batch,
        precision=config.precision,
    )


def _set_threads(config: ServeConfig) -> None:
    import torch

    reserved = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    threads = config.threads or max(1, round(reserved))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
