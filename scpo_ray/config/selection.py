"""Settings of the selection: which pairs a community's model learns from."""

from typing import Literal

from pydantic import Field, model_validator

from scpo_ray.config.section import Section

SelectionStrategy = Literal["filter_weight", "filter", "weight", "inverse_weight", "none"]


class SelectConfig(Section):
    """Which pairs a community's reward model learns from, and how strongly."""

    strategy: SelectionStrategy = "filter_weight"
    """filter_weight is SCPO."""

    controls: tuple[SelectionStrategy, ...] = ()
    """Strategies that run beside it on the same pairs and steps, for comparison."""

    agreement_threshold: float = Field(default=0.7, gt=0, lt=1)
    """τ, probability. Lower keeps fewer pairs."""

    weight_temperature: float = Field(default=1.1, gt=0)
    """β, reward units. Lower down-weights disagreement faster."""

    agreement_form: Literal["sigmoid", "exp_ratio"] = "sigmoid"
    """exp_ratio: exp(r+) / (exp(r+) + exp(r-)) in float32, as published; overflows for large rewards."""

    @model_validator(mode="after")
    def _controls_differ(self) -> "SelectConfig":
        if self.strategy in self.controls or len(set(self.controls)) < len(self.controls):
            raise ValueError(f"controls {list(self.controls)} repeat a strategy (the main one is {self.strategy})")
        return self

    @property
    def strategies(self) -> tuple[SelectionStrategy, ...]:
        """The main strategy first, then the controls."""
        return (self.strategy, *self.controls)
