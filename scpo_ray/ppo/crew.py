"""All actors of a run, started once and kept for every policy that it trains and measures."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import ray

from scpo_ray import model_files, policies
from scpo_ray.config import FormatConfig, PpoConfig, ScoreConfig
from scpo_ray.config.ppo import Transfer
from scpo_ray.models import load_tokenizer
from scpo_ray.ppo import sync
from scpo_ray.ppo.actors import Failures, Pool
from scpo_ray.ppo.engines import Engines
from scpo_ray.ppo.learners import Learners
from scpo_ray.ppo.placement import reserved
from scpo_ray.ppo.records import WeightUpdate
from scpo_ray.ppo.reward import RewardActor, Scorers
from scpo_ray.ppo.rollout import EngineSpec
from scpo_ray.precision import resolved_precision


@dataclass
class Crew:
    """Engines, scorers, learners, and the deaths that they share a budget of."""

    engines: Engines
    scorers: Scorers
    learners: Learners
    failures: Failures
    engine_precision: str
    transfer: Transfer = "object_store"

    def synchronise(self, version: int, canaries: Sequence[Sequence[int]]) -> float:
        """The learners' policy into every engine, proved; the largest canary difference, nats.

        Raises:
            SynchronizationError: an engine does not hold what was published.
        """

        def publish() -> WeightUpdate:
            return self.learners.publish(version, canaries, self.engine_precision)

        if self.transfer == "object_store":
            return self.engines.synchronise(publish())
        self.engines.publish_again = publish
        if self.engines.has_changed or self.learners.has_changed:
            self.learners.open_transfer(self.engines.pool.actors, self.engine_precision)
            self.engines.has_changed = self.learners.has_changed = False
        return self.engines.synchronise(self.learners.broadcast(version, canaries))


@contextlib.contextmanager
def at_work(
    config: PpoConfig,
    *,
    policy: str,
    reward_models: Mapping[str, str],
    format_config: FormatConfig,
    score_config: ScoreConfig,
    with_learners: bool = False,
) -> Iterator[Crew]:
    """Every actor started, all kinds at the same time, while the block lasts.

    Args:
        policy: the start policy's address: what the engines can run.
        reward_models: name -> folder.
        with_learners: let the learners' processes start too; their group meets with `learners.start`.

    Raises:
        ConfigError: the cluster has too little for the placement.
        ModelError: vLLM cannot run the policy.
    """
    precision = resolved_precision(config.engine_precision, on_gpu=config.gpus_per_engine > 0)
    if config.engine_precision == "auto" and config.gpus_per_engine == 0:
        precision = "float32"
    with reserved(config) as placement:
        failures = Failures(config.max_failures)
        engines = Engines(
            config.num_engines,
            _engine_spec(config, policy, format_config, precision),
            placement,
            failures,
            tolerance=config.sync_tolerance or sync.default_tolerance(_coarsest(precision, config)),
            limit_s=config.call_timeout_s,
        )
        threads = max(1, (os.cpu_count() or 1) // config.num_scorers)
        actor = ray.remote(RewardActor)
        pool = Pool(
            "reward scorer",
            config.num_scorers,
            lambda index: actor.options(**placement.options("scorer", index)).remote(
                dict(reward_models), format_config, score_config, threads=threads
            ),
            failures,
            limit_s=config.call_timeout_s,
        )
        learners = Learners(
            config,
            lambda rank: placement.options("learner", rank),
            threads=config.threads_per_learner or max(1, (os.cpu_count() or 1) // config.num_learners),
        )
        try:
            scorers = Scorers(pool, list(reward_models))
            loading_engines, loading_scorers = engines.begin_load(), scorers.begin_load()
            if with_learners:
                learners.spawn()
            pool.collect(loading_scorers)  # first: a broken reward model is known long before vLLM has started
            engines.pool.collect(loading_engines)
            yield Crew(engines, scorers, learners, failures, precision, config.transfer)
        finally:
            learners.stop()
            pool.stop()
            engines.pool.stop()


def _engine_spec(config: PpoConfig, policy: str, format_config: FormatConfig, precision: str) -> EngineSpec:
    folder = model_files.resolve(policy)
    return EngineSpec(
        policy=policy,
        max_tokens=format_config.max_tokens,
        max_response_tokens=config.max_response_tokens,
        stop_token_ids=tuple(policies.stop_token_ids(folder, load_tokenizer(folder))),
        temperature=config.temperature,
        precision=precision,
        threads=config.threads_per_engine or max(1, (os.cpu_count() or 1) // config.num_engines),
        cache_gib=config.cpu_cache_gib,
        gpu_memory_utilization=config.gpu_memory_utilization,
        uses_gpu=config.gpus_per_engine > 0,
        receives_nccl=config.transfer == "nccl",
    )


def _coarsest(engine_precision: str, config: PpoConfig) -> str:
    """Of engine and learner: what rounding their log-probabilities may differ by."""
    learner = resolved_precision(config.precision, on_gpu=config.gpus_per_learner > 0)
    return "float32" if engine_precision == learner == "float32" else "bfloat16"
