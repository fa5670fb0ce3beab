"""The search space: dotted settings with ranges, and the points in it as configurations."""

import difflib
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import yaml
from pydantic import ValidationError

from scpo_ray.config import Config, SearchRange, Value, reason_to_be_shared, settings_of
from scpo_ray.errors import ConfigError

Point = Mapping[str, Value]
"""Dotted setting -> value."""

_SECTIONS = ("select.", "train.")
_MOST_EXAMPLES = 64
_NOT_SEARCHED = {
    "select.controls": "controls are compared with a strategy, they are none",
    "select.curve_thresholds": "search select.agreement_threshold instead",
    "select.curve_shares": "trials train on all of the data",
    "train.communities": "set it beside the search",
    "train.num_seeds": "a trial trains once; run the chosen point with several seeds",
}


def check_space(config: Config) -> None:
    """Refuse a space before anything starts: every key must name a setting that trials may differ in, and every end of a
    range must be a legal value of it.

    Raises:
        ConfigError: an empty space; an unknown key, or one that trials share; a value that the key refuses.
    """
    if not config.tune.space:
        raise ConfigError(
            "tune.space is empty; name settings to search, e.g. select.agreement_threshold: {uniform: [0.5, 0.95]}"
        )
    for key, search in config.tune.space.items():
        _check_key(config, key)
        own = [community for community, settings in config.per_community.items() if key in settings]
        if own:
            raise ConfigError(f"tune.space.{key}: per_community fixes it for {', '.join(own)}; leave it out there")
        for value in _examples(search):
            _check_value(config, key, value)


def _value_of(config: Config, key: str) -> object:
    value: object = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def with_point(config: Config, point: Point, *, where: str = "the trial") -> Config:
    """The configuration with the point's values in place.

    Raises:
        ConfigError: a value is not one that its setting takes, alone or with the others.
    """
    try:
        return config.with_settings(point)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        remedy = "search integers or a choice" if first["type"].startswith("int_") else "correct tune.space"
        raise ConfigError(
            f"{where}: {first['input']!r}: {first['msg'].removeprefix('Value error, ')}; {remedy}"
        ) from None


def grid(space: Mapping[str, SearchRange]) -> list[dict[str, Value]]:
    """Every combination, in an order whose every start covers the whole of it: a fixed shuffle."""
    values = [search.values or () for search in space.values()]
    points = [dict(zip(space, combination, strict=True)) for combination in itertools.product(*values)]
    order = np.random.default_rng(0).permutation(len(points))
    return [points[index] for index in order]


def random_point(space: Mapping[str, SearchRange], *, seed: int, number: int) -> dict[str, Value]:
    """The point of one trial of a random search; each number has its own, whatever ran before."""
    random = np.random.default_rng([seed, number])
    return {key: _draw(search, random) for key, search in space.items()}


def describe(point: Point) -> str:
    """For people: `agreement_threshold 0.7, learning_rate 2e-05`."""
    return ", ".join(f"{key.split('.', 1)[1]} {_shown(value)}" for key, value in point.items())


def _shown(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _draw(search: SearchRange, random: np.random.Generator) -> Value:
    if search.values is not None:
        return search.values[int(random.integers(len(search.values)))]
    if search.loguniform is not None:
        low, high = search.loguniform
        return float(math.exp(random.uniform(math.log(low), math.log(high))))
    assert search.uniform is not None
    return float(random.uniform(*search.uniform))


def _examples(search: SearchRange) -> Sequence[Value]:
    """Values that stand for all: each where they can be counted, else both ends and one between that is not whole."""
    if search.values is not None:
        return search.values if len(search.values) <= _MOST_EXAMPLES else (search.values[0], search.values[-1])
    low, high = search.uniform or search.loguniform or (0.0, 1.0)
    return low, low + (high - low) / math.pi, high


def _check_value(config: Config, key: str, value: Value) -> None:
    """It must be legal beside some values of the other searched settings; not all combinations have to be.

    Raises:
        ConfigError: it is legal beside none.
    """
    others = {other: _examples(search) for other, search in config.tune.space.items() if other != key}
    refusal: ConfigError | None = None
    combinations = itertools.islice(itertools.product(*others.values()), _MOST_EXAMPLES)
    for point in [{}, *(dict(zip(others, values, strict=True)) for values in combinations)]:
        try:
            found = with_point(config, {**point, key: value}, where=f"tune.space.{key}")
        except ConfigError as error:
            refusal = refusal or error
            continue
        if isinstance(value, str) and (meant := _value_of(found, key)) != value:
            raise ConfigError(
                f"tune.space.{key}: {value!r} is text to YAML; write {yaml.safe_dump(meant).splitlines()[0]}"
            )
        return
    assert refusal is not None
    raise refusal


def _check_key(config: Config, key: str) -> None:
    known = settings_of()
    place = f"tune.space.{key}"
    if key not in known:
        nearest = difflib.get_close_matches(key, [name for name in known if name.startswith(_SECTIONS)], n=1)
        raise ConfigError(f"{place}: unknown key; {f'did you mean {nearest[0]}?' if nearest else '--help lists all'}")
    if not key.startswith(_SECTIONS):
        raise ConfigError(f"{place}: trials share the data and the global model; search settings of select and train")
    if key in _NOT_SEARCHED:
        raise ConfigError(f"{place}: cannot be searched: {_NOT_SEARCHED[key]}")
    if not known[key]:
        raise ConfigError(f"{place}: changes cost, not the result; set it beside the search")
    if config.tune.per_community and (reason := reason_to_be_shared(key)) is not None:
        raise ConfigError(f"{place}: cannot be searched per community: {reason}")
