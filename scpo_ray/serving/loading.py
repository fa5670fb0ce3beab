"""What a replica has in memory: a bounded number of whole models, the bases that adapters share, tokenizers."""

import contextlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from scpo_ray import models
from scpo_ray.config.serving import ServeConfig
from scpo_ray.errors import ModelError
from scpo_ray.formatting import Formatter
from scpo_ray.reloading import MappedWeights, kind_of
from scpo_ray.scoring import RewardScorer
from scpo_ray.serving.adapters import AdapterScorer
from scpo_ray.serving.catalog import Catalog, ServedModel, stamp

_CPU_TOKENS, _GPU_TOKENS = 4096, 16384
_CPU_PASSES = 2


class StaleModelError(ModelError):
    """Its files are not those any more that the service was deployed with."""


class LoadedModels:
    """Scorers by `ServedModel.key`, least recently used out before the next one comes in. Threads may share it.

    Args:
        load: makes the scorer of a whole model, out of the one that made room for it where there is one.
        max_models: whole models at a time; bases that adapters share are loaded by `load_models` and stay.
    """

    def __init__(self, max_models: int, load: Callable[[ServedModel, RewardScorer | None], RewardScorer]) -> None:
        self._max_models, self._load = max_models, load
        self.formatters = Formatters()
        self._bases: dict[str, AdapterScorer] = {}
        self._models: OrderedDict[str, RewardScorer] = OrderedDict()
        self._num_users: Counter[str] = Counter()
        self._released = threading.Condition()
        self._loading = threading.Lock()
        self.num_loads = 0

    def add_base(self, key: str, scorer: AdapterScorer) -> None:
        """Keep a base for good."""
        self._bases[key] = scorer

    def packs(self, model: ServedModel) -> bool:
        """Whether a model computes batches without padding; false while it is not in memory."""
        scorer = self._bases.get(model.key) or self._models.get(model.key)
        return scorer is not None and scorer.packs

    @contextlib.contextmanager
    def used(self, model: ServedModel) -> Iterator[RewardScorer | AdapterScorer]:
        """The scorer of a model, loaded where it is not there, and kept while the block lasts.

        Raises:
            ModelError: it cannot be loaded.
        """
        if model.key in self._bases:
            yield self._bases[model.key]
            return
        scorer = self._take(model) or self._load_into_place(model)
        try:
            yield scorer
        finally:
            del scorer
            with self._released:
                self._num_users[model.key] -= 1
                self._released.notify_all()

    def _take(self, model: ServedModel) -> RewardScorer | None:
        """What is there already, marked as used."""
        with self._released:
            if model.key not in self._models:
                return None
            self._num_users[model.key] += 1
            self._models.move_to_end(model.key)
            return self._models[model.key]

    def _load_into_place(self, model: ServedModel) -> RewardScorer:
        """One at a time, and only once there is room: a model that is being used is not dropped."""
        with self._loading:
            found = self._take(model)  # another thread may have loaded it meanwhile
            if found is not None:
                return found
            check_unchanged(model)  # before another has to go for it
            with self._released:
                self._released.wait_for(lambda: len(self._models) < self._max_models or self._unused())
                is_full = len(self._models) >= self._max_models
                dropped = self._models.pop(self._unused()[0]) if is_full else None
            self.num_loads += 1
            scorer = self._load(model, dropped)
            with self._released:
                self._models[model.key] = scorer
                self._num_users[model.key] += 1
            return scorer

    def _unused(self) -> list[str]:
        """Keys that nobody uses, the one that was used longest ago first."""
        return [key for key in self._models if not self._num_users[key]]


class Formatters:
    """One formatter for all models that read texts alike, as those of a run do."""

    def __init__(self) -> None:
        self._formatters: dict[str, Formatter] = {}
        self._keys: dict[str, str] = {}

    def key(self, model: ServedModel) -> str:
        """Equal for models whose formatter is the same.

        Raises:
            ModelError: its tokenizer cannot be read, or is not the one any more that the service was deployed with.
        """
        if model.key not in self._keys:
            folder = Path(model.folder)
            key = model.format.model_dump_json() + kind_of(folder)
            if key not in self._formatters:
                self._formatters[key] = Formatter(models.load_tokenizer(folder), model.format)
            check_unchanged(model)
            self._keys[model.key] = key
        return self._keys[model.key]

    def get(self, model: ServedModel) -> Formatter:
        """A model's.

        Raises:
            ModelError: as of `key`.
        """
        return self._formatters[self.key(model)]


def load_models(config: ServeConfig, catalog: Catalog) -> LoadedModels:
    """A replica's: tokenizers, shared bases and as many whole models as there is room for are loaded now, so that a replica that
    is ready answers at once; the others when they are asked for.

    Raises:
        ModelError: one of them cannot be loaded.
    """
    mapped = MappedWeights(int(config.max_mapped_gib * 2**30))
    found = LoadedModels(config.max_loaded_models, lambda model, dropped: load_whole(config, model, dropped, mapped))
    for model in catalog.models.values():
        found.formatters.get(model)
    for key in dict.fromkeys(model.key for model in catalog.models.values() if model.shares_base):
        found.add_base(key, _load_base(config, catalog.sharing(key)))
    whole = {model.key: model for model in catalog.models.values() if not model.shares_base}
    for model in list(whole.values())[: config.max_loaded_models]:
        with found.used(model):
            pass
    return found


def tokens_per_batch(config: ServeConfig) -> int:
    """As configured, or what suits the device."""
    return config.tokens_per_batch or (_GPU_TOKENS if torch.cuda.is_available() else _CPU_TOKENS)


def num_passes(config: ServeConfig, *, num_threads: int) -> int:
    """As configured, or what suits the device."""
    return config.passes or (1 if torch.cuda.is_available() or num_threads == 1 else _CPU_PASSES)


def load_whole(
    config: ServeConfig,
    model: ServedModel,
    dropped: RewardScorer | None = None,
    mapped: MappedWeights | None = None,
) -> RewardScorer:
    """A community's whole model.

    Args:
        dropped: a scorer that nobody uses any more; where it differs in nothing but its weights, it becomes the model's.
        mapped: keeps those weights, for the next time.

    Raises:
        ModelError: it cannot be loaded, or is another than when the service was deployed.
    """
    folder = Path(model.folder)
    with contextlib.ExitStack() as unused:
        if dropped is not None:
            unused.callback(dropped.close)
        check_unchanged(model)
        try:
            if (
                dropped is not None
                and dropped.formatter.config == model.format
                and dropped.becomes(folder, mapped=mapped)
            ):
                scorer = dropped
            else:
                unused.close()  # before there is another
                scorer = RewardScorer(
                    folder,
                    format_config=model.format,
                    tokens_per_batch=tokens_per_batch(config),
                    precision=config.precision,
                    safetensors_only=True,
                )
        except ModelError:
            check_unchanged(model)  # it may be the reason
            raise
        check_unchanged(model)
        unused.pop_all()
    return scorer


def _load_base(config: ServeConfig, sharing: dict[str, ServedModel]) -> AdapterScorer:
    first = next(iter(sharing.values()))
    scorer = AdapterScorer(
        Path(first.folder),
        {name: None if each.adapter is None else Path(each.adapter) for name, each in sharing.items()},
        format_config=first.format,
        precision=config.precision,
    )
    for model in sharing.values():
        check_unchanged(model)
    return scorer


def check_unchanged(model: ServedModel) -> None:
    """Models that are written anew in place must not answer under their old name and scales.

    Raises:
        StaleModelError: this one was.
    """
    if model.stamp is None:
        return
    try:
        present = stamp(model)
    except OSError as error:
        raise StaleModelError(
            f"{model.community}'s model cannot be read any more ({error.strerror}); deploy again"
        ) from error
    if present != model.stamp:
        raise StaleModelError(f"{model.community}'s model has changed since the service was deployed; deploy again")
