"""Ray Data around the inner scorer: any number of models, each needed response once, what survives a kill kept.

Every Ray worker process imports this module, those that only read and filter too: the model libraries, seconds to
import, are imported where a model is used.
"""

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from scpo_ray import model_files, nodes
from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config, FormatConfig, ScoreConfig
from scpo_ray.errors import ConfigError, ScpoError
from scpo_ray.records import SCORES
from scpo_ray.runtime import connect, progress_bar
from scpo_ray.score_cache import ScoreCache
from scpo_ray.scoring_cost import ScoringCost

if TYPE_CHECKING:
    from scpo_ray.scoring import RewardScorer


_COSTS = pa.schema(
    [
        ("model", pa.string()),
        ("num_responses", pa.int64()),
        ("num_forward_passes", pa.int64()),
        ("num_tokens", pa.int64()),
        ("num_padded_tokens", pa.int64()),
        ("failure", pa.binary()),  # a pickled ScpoError: what an actor raises, Ray Data replaces by its own exception
    ]
)


RESPONSES_FILE = "prepared/responses.parquet"


@dataclass(frozen=True)
class ModelToScore:
    """One model and the responses that it must score."""

    name: str
    address: str
    response_ids: pa.Array
    dropout: bool = False


def score_models(wanted: Sequence[ModelToScore], config: Config) -> tuple[dict[str, pa.Table], ScoringCost]:
    """Rewards of every wanted (model, response), from the cache where it has them.

    Returns:
        Model name -> table of the SCORES columns in the order of its `response_ids`, and what was computed for it.

    Raises:
        ConfigError: the actors ask for more than the cluster has.
        ModelError: a model cannot be loaded, or gives rewards that are not finite.
    """
    return _Scoring(wanted, config).run(lambda done, total, cost: None)


def score_with_progress(
    stage: str, wanted: Sequence[ModelToScore], config: Config
) -> tuple[dict[str, pa.Table], ScoringCost]:
    """`score_models` under a progress bar, in the job's own process where the cache has everything: no Ray is started then."""
    scoring = _Scoring(wanted, config)
    if scoring.num_missing or config.log_format == "json":  # Ray also writes the log's lines
        connect(config.log_format)
    with progress_bar(stage, unit="responses", run=RunDirectory(config.run_dir).absolute_address) as bar:
        return scoring.run(lambda done, total, cost: bar.update(done, total, measures=cost.measures))


class _Scoring:
    """What the cache has of what is wanted, and what is missing."""

    def __init__(self, wanted: Sequence[ModelToScore], config: Config) -> None:
        from scpo_ray.stages.recipes import score_precision

        score = config.score.model_copy(update={"precision": score_precision(config)})
        self._wanted, self._config = wanted, config.model_copy(update={"score": score})
        self._caches = {model.name: _cache(model, self._config) for model in wanted}
        self._known = {model.name: self._caches[model.name].read() for model in wanted}
        self._missing = {model.name: _missing(model.response_ids, self._known[model.name]) for model in wanted}

    @property
    def num_missing(self) -> int:
        """Responses, over all models."""
        return sum(map(len, self._missing.values()))

    def run(self, on_progress: Callable[[int, int, ScoringCost], None]) -> tuple[dict[str, pa.Table], ScoringCost]:
        """Compute what is missing, in a Ray that is up; once."""
        cost, total = ScoringCost(), self.num_missing
        unfinished = [model for model in self._wanted if len(self._missing[model.name])]
        if unfinished:
            _check_resources(self._config.score)
            for row in _dataset(unfinished, self._missing, self._config).iter_rows():
                if row["failure"] is not None:
                    raise pickle.loads(row["failure"])
                cost.num_responses += row["num_responses"]
                cost.num_forward_passes += row["num_forward_passes"]
                cost.num_tokens += row["num_tokens"]
                cost.num_padded_tokens += row["num_padded_tokens"]
                on_progress(cost.num_responses, total, cost)
        self._known |= {model.name: self._caches[model.name].read() for model in unfinished}
        tables = {model.name: _ordered(self._known.pop(model.name), model.response_ids) for model in self._wanted}
        return tables, cost


def _dataset(wanted: Sequence[ModelToScore], missing: dict[str, pa.Array], config: Config) -> ray.data.Dataset:
    """One row of costs per scored window: (model, rows of a row group) -> their texts -> actors."""
    directory, score = RunDirectory(config.run_dir), config.score
    with directory.open_parquet(RESPONSES_FILE) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    known = directory.read_table(RESPONSES_FILE, columns=["response_id"])["response_id"].combine_chunks()
    work = [
        {"model": model.name, "row_group": group, "rows": rows.tolist()}
        for model in wanted
        for group, rows in windows(
            model.response_ids, missing[model.name], known, sizes, window=score.window, num_scorers=score.num_scorers
        )
    ]
    return (
        ray.data.from_items(work, override_num_blocks=len(work))
        .map_batches(_ReadRows(directory.absolute_address), batch_format="pyarrow", batch_size=1)
        .map_batches(
            ScoringActor,
            fn_constructor_kwargs={
                "addresses": {model.name: model.address for model in wanted},
                "dropout": {model.name: model.dropout for model in wanted},
                "score_config": score,
                "format_config": config.format,
                "cache_dir": cache_address(config),
            },
            batch_format="pyarrow",
            batch_size=None,  # a window as it is: small ones would be put together again
            num_cpus=score.cpus_per_scorer,
            num_gpus=score.gpus_per_scorer,
            compute=ray.data.ActorPoolStrategy(size=score.num_scorers),
        )
    )


_WINDOWS_PER_SCORER = 4


def windows(
    wanted: pa.Array, missing: pa.Array, known: pa.Array, sizes: Sequence[int], *, window: int, num_scorers: int
) -> Iterator[tuple[int, np.ndarray]]:
    """What is scored at once: the missing ones of up to `window` wanted rows of a row group; smaller where several scorers share
    few rows. Where windows end does not depend on what is missing, so that a job that goes on batches as it would have.

    Args:
        wanted, missing: response ids, the latter among the former.
        known: all ids, in the order of the file.
        sizes: rows of its row groups.

    Returns:
        (row group, row numbers in it) of every window that misses something.
    """
    rows = np.sort(pc.index_in(wanted, known).drop_null().to_numpy())
    is_missing = np.zeros(len(known), dtype=bool)
    is_missing[pc.index_in(missing, known).drop_null().to_numpy()] = True
    if num_scorers > 1:
        window = min(window, max(1, -(-len(rows) // (num_scorers * _WINDOWS_PER_SCORER))))
    first = 0
    for group, size in enumerate(sizes):
        begin, end = np.searchsorted(rows, [first, first + size])
        for start in range(begin, end, window):
            part = rows[start : min(start + window, end)]
            part = part[is_missing[part]]
            if len(part):
                yield group, part - first
        first += size


class _ReadRows:
    """Reads rows of the responses for a model. No model library."""

    def __init__(self, run_address: str) -> None:
        self._run_address = run_address

    def __call__(self, batch: pa.Table) -> pa.Table:
        ((model, group, numbers),) = zip(
            *(batch[name].to_pylist() for name in ("model", "row_group", "rows")), strict=True
        )
        with RunDirectory(self._run_address).open_parquet(RESPONSES_FILE) as file:
            rows = file.read_row_group(group, columns=["response_id", "context", "response"]).take(pa.array(numbers))
        return rows.append_column("model", pa.array([model] * len(rows), pa.string()))


class ScoringActor:
    """Holds one model at a time; scores a window, puts it into the cache, answers what it cost."""

    def __init__(
        self,
        *,
        addresses: dict[str, str],
        dropout: dict[str, bool],
        score_config: ScoreConfig,
        format_config: FormatConfig,
        cache_dir: str,
    ) -> None:
        import torch

        threads = score_config.threads_per_scorer or max(1, (os.cpu_count() or 1) // score_config.num_scorers)
        torch.set_num_threads(threads)
        self._addresses, self._dropout = addresses, dropout
        self._score_config, self._format_config, self._cache_dir = score_config, format_config, cache_dir
        self._loaded: tuple[str, RewardScorer, ScoreCache] | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Score a window of (model, response); one row of costs per model in it, or one with what went wrong."""
        try:
            costs = self._score(batch)
        except ScpoError as error:
            costs = [{"failure": pickle.dumps(error)}]
        return pa.Table.from_pylist(costs, schema=_COSTS)

    def _score(self, batch: pa.Table) -> list[dict]:
        costs = []
        for model in pc.unique(batch["model"]).to_pylist():
            window = batch.filter(pc.equal(batch["model"], model))
            scorer, cache = self._scorer(model)
            scores = scorer.score(window["context"].to_pylist(), window["response"].to_pylist())
            columns = {
                "response_id": window["response_id"],
                "model_hash": [cache.model_hash] * len(window),
                "reward": scores.rewards,
                "num_tokens": scores.num_tokens,
                "truncated": scores.truncated,
            }
            cache.append(pa.table(columns, schema=SCORES))
            costs.append({"model": model, **vars(scores.cost)})
        return costs

    def _scorer(self, model: str) -> "tuple[RewardScorer, ScoreCache]":
        from scpo_ray.scoring import RewardScorer

        if self._loaded is None or self._loaded[0] != model:
            folder = model_files.resolve(self._addresses[model])
            scorer = RewardScorer(
                folder,
                format_config=self._format_config,
                tokens_per_batch=self._score_config.tokens_per_batch,
                precision=self._score_config.precision,
                dropout=self._dropout[model],
            )
            cache = open_cache(
                self._cache_dir, folder, self._format_config, self._score_config, dropout=self._dropout[model]
            )
            self._loaded = (model, scorer, cache)
        return self._loaded[1], self._loaded[2]


def open_cache(
    address: str, folder: Path, format_config: FormatConfig, score_config: ScoreConfig, *, dropout: bool
) -> ScoreCache:
    """The cache of a model under a format and a precision."""
    from scpo_ray import models
    from scpo_ray.formatting import Formatter

    formatter = Formatter(models.load_tokenizer(folder), format_config)
    precision = f"{score_config.precision}{' with dropout' if dropout else ''}"
    return ScoreCache(
        address, model_hash=model_files.content_hash(folder), formatter=formatter.identity, precision=precision
    )


def cache_address(config: Config) -> str:
    """`score.cache_dir`, or `score_cache` beside the run directory."""
    if config.score.cache_dir is not None:
        return config.score.cache_dir
    if "://" in config.run_dir:
        return f"{config.run_dir.rstrip('/').rsplit('/', 1)[0]}/score_cache"
    return str(Path(config.run_dir).absolute().parent / "score_cache")


def _cache(model: ModelToScore, config: Config) -> ScoreCache:
    return open_cache(
        cache_address(config), model_files.resolve(model.address), config.format, config.score, dropout=model.dropout
    )


def _missing(response_ids: pa.Array, known: pa.Table) -> pa.Array:
    return response_ids.filter(pc.invert(pc.is_in(response_ids, known["response_id"].combine_chunks())))


def _ordered(scores: pa.Table, response_ids: pa.Array) -> pa.Table:
    return scores.take(pc.index_in(response_ids, scores["response_id"].combine_chunks()))


def _check_resources(config: ScoreConfig) -> None:
    has = nodes.totals()
    for resource, each in (("CPU", config.cpus_per_scorer), ("GPU", config.gpus_per_scorer)):
        if each * config.num_scorers > has.get(resource, 0.0):
            raise ConfigError(
                f"score.num_scorers: {config.num_scorers} actors need {each * config.num_scorers:g} {resource}, the cluster "
                f"has {has.get(resource, 0.0):g}; lower num_scorers or {resource.lower()}s_per_scorer"
            )
