"""Settings of the search over hyperparameters."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from scpo_ray.config.section import NOT_IDENTITY, Section, Unique

Objective = Literal["overall", "acquisition", "retention", "balanced", "worst_community", "majority"]
Value = str | bool | int | float | None


class SearchRange(Section):
    """Where one setting is searched: exactly one of uniform, loguniform, integers and choice."""

    uniform: tuple[float, float] | None = None
    """Lowest and highest number."""
    loguniform: tuple[float, float] | None = None
    """Lowest and highest number, searched by their logarithms."""
    integers: tuple[int, int] | None = None
    """Lowest and highest whole number."""
    choice: tuple[Value, ...] | None = None
    """The values themselves."""
    step: float | None = Field(default=None, gt=0)
    """Only numbers this far apart, from the lowest on; for uniform alone."""

    @model_validator(mode="after")
    def _is_one_range(self) -> "SearchRange":
        kinds = ("uniform", "loguniform", "integers", "choice")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(kinds)}, not {len(given)}")
        if self.choice is not None:
            if len(self.choice) < 2 or len(set(map(repr, self.choice))) < len(self.choice):
                raise ValueError("choice needs two or more different values; a single one belongs into its own section")
            return self._check_step()
        low, high = getattr(self, given[0])
        if not low < high:
            raise ValueError(f"{given[0]}: the lowest value {low:g} must be below the highest {high:g}")
        if self.loguniform is not None and low <= 0:
            raise ValueError(f"loguniform: {low:g} has no logarithm; start above 0")
        return self._check_step()

    def _check_step(self) -> "SearchRange":
        if self.step is not None and self.uniform is None:
            raise ValueError("step belongs to uniform; use choice for other lists of values")
        if self.step is not None and self.uniform is not None and self.step > self.uniform[1] - self.uniform[0]:
            raise ValueError(f"step {self.step:g} is wider than the range")
        return self

    @property
    def values(self) -> tuple[Value, ...] | None:
        """Every value that can come out, in order; None where they cannot be counted."""
        if self.choice is not None:
            return self.choice
        if self.integers is not None:
            return tuple(range(self.integers[0], self.integers[1] + 1))
        if self.uniform is not None and self.step is not None:
            low, high = self.uniform
            number = math.floor((high - low) / self.step + 1e-9) + 1
            return tuple(round(low + index * self.step, 12) for index in range(number))
        return None


class TuneConfig(Section):
    """A search over settings of `select` and `train`, by what trained models do on validation pairs."""

    name: str = Field(default="search", pattern=r"^[a-z0-9][a-z0-9_-]*$", json_schema_extra=NOT_IDENTITY)
    """Folder of this search in `tune/` of the run directory; another search of the same run needs another name."""

    space: dict[str, SearchRange] = Field(default_factory=dict)
    """Dotted setting -> where to search, e.g. `select.agreement_threshold: {uniform: [0.5, 0.95]}`."""

    per_community: bool = False
    """Search for each community by itself: `num_trials` for each, and a best point for each."""

    search: Literal["tpe", "random", "grid"] = "tpe"
    """tpe: Optuna's tree-structured Parzen estimator, also for several objectives. grid: every combination of choices,
    integers and steps, in an order that covers all of them early."""

    num_trials: int = Field(default=24, ge=1, json_schema_extra=NOT_IDENTITY)
    """Combinations to try; a search that was stopped goes on to this number."""

    time_budget_s: float | None = Field(default=None, gt=0, json_schema_extra=NOT_IDENTITY)
    """Start no trial, and give up those that run, after this many seconds of searching, baselines included."""

    max_concurrent: int | None = Field(default=None, ge=1, json_schema_extra=NOT_IDENTITY)
    """Trials at a time; unset: one more than keep all of train.num_worker_groups at work, so that none waits for the next."""

    objectives: Annotated[tuple[Objective, ...], Unique] = Field(default=("overall",), min_length=1)
    """What to raise, on validation pairs, mean over communities; several make a Pareto front. worst_community: the lowest
    overall accuracy. majority: the community's model on the majority's pairs."""

    criterion: Literal["mean", "first", "maximin"] = Field(default="mean", json_schema_extra=NOT_IDENTITY)
    """Which point of the front is chosen. mean: highest mean of the objectives. first: highest first objective. maximin:
    highest smallest gain over the settings as configured."""

    stopping: Literal["none", "asha", "median"] = "none"
    """Stop trials that lag behind others at the same point of their training; for one objective."""

    @property
    def num_planned(self) -> int:
        """Trials that there will be: a grid may have fewer points than are allowed."""
        if self.search != "grid":
            return self.num_trials
        return min(math.prod(len(search.values or ()) for search in self.space.values()), self.num_trials)

    @model_validator(mode="after")
    def _fits_together(self) -> "TuneConfig":
        if self.stopping != "none" and len(self.objectives) > 1:
            raise ValueError(
                f"stopping {self.stopping} compares trials by one objective, {len(self.objectives)} are given"
            )
        for key, search in self.space.items():
            if self.search == "grid" and search.values is None:
                raise ValueError(f"space.{key}: a grid needs choice, integers, or uniform with a step")
        return self
