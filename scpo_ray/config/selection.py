"""Settings of the selection: which pairs a community's model learns from."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from scpo_ray.config.section import Section

SelectionStrategy = Literal[
    "filter_weight",
    "filter",
    "weight",
    "inverse_weight",
    "none",
    "random",
    "uncertainty",
    "keep_fraction",
    "other_ruler",
]


@dataclass(frozen=True)
class Arm:
    """One way to choose training pairs that runs beside the others: a strategy, possibly at another point of a curve."""

    name: str
    """Names folders and rows: the strategy's name, or e.g. `filter_weight-tau-0.5`, `none-share-0.25`."""
    strategy: SelectionStrategy
    agreement_threshold: float | Literal["auto"]
    training_share: float = 1.0
    """Share of each community's training interactions that it may use at all."""


class SelectConfig(Section):
    """Which pairs a community's reward model learns from, and how strongly."""

    strategy: SelectionStrategy = "filter_weight"
    """filter_weight is SCPO. filter, weight: its halves. inverse_weight: lighter where the global model agrees. none: full
    fine-tuning. random: as many pairs as the filter keeps, by chance. uncertainty: pairs near agreement 0.5.
    keep_fraction: SCPO and a share of the pairs that its filter drops. other_ruler: SCPO by the rewards of another global
    model, trained alike with the next seed, so that ruler and starting model are two; for controls only."""

    controls: tuple[SelectionStrategy, ...] = ()
    """Strategies that run beside it on the same pairs, for comparison; with train.equal_steps also for as many steps."""

    agreement_threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] = 0.7
    """τ, probability. Lower keeps fewer pairs. auto: for each community the lowest that leaves `auto_information`."""

    weight_temperature: Annotated[float, Field(gt=0)] | Literal["auto"] = 1.1
    """β, reward units. Lower down-weights disagreement faster. auto: the one that, at this τ, leaves the scale of the
    community's rewards where full fine-tuning would."""

    auto_information: float = Field(default=0.9, gt=0, lt=1)
    """Share of what all pairs tell that an automatic τ must leave: the statistical efficiency of telling a community that
    differs from one that does not."""

    calibrate: bool = False
    """Divide margins of rewards by the temperature that makes the global model's probabilities right on the majority's
    validation pairs, so that τ and β mean the same for every global model."""

    agreement_form: Literal["sigmoid", "exp_ratio"] = "sigmoid"
    """exp_ratio: exp(r+) / (exp(r+) + exp(r-)) in float32, as published; overflows for large rewards."""

    uncertainty_band: float = Field(default=0.2, gt=0, le=0.5)
    """uncertainty keeps pairs with |agreement - 0.5| of at most this, probability."""

    keep_fraction: float = Field(default=0.25, ge=0, le=1)
    """keep_fraction keeps this share of the pairs that the filter drops, by chance, at full weight."""

    curve_thresholds: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Further values of τ at which the main strategy is trained too, for the report's curve."""

    curve_shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Shares of the training interactions at which the main strategy and full fine-tuning are trained too, for the curves
    against data and compute."""

    @model_validator(mode="after")
    def _other_ruler_is_a_control(self) -> "SelectConfig":
        if self.strategy == "other_ruler":
            raise ValueError("strategy other_ruler is a control; put it into controls")
        return self

    @property
    def needs_other_ruler(self) -> bool:
        """Whether a second global model has to be trained and to score."""
        return "other_ruler" in self.controls

    @model_validator(mode="after")
    def _controls_differ(self) -> "SelectConfig":
        if self.strategy in self.controls or len(set(self.controls)) < len(self.controls):
            raise ValueError(f"controls {list(self.controls)} repeat a strategy (the main one is {self.strategy})")
        return self

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The main strategy first, then the controls, then the points of the curves."""
        threshold = self.agreement_threshold
        arms = [Arm(strategy, strategy, threshold) for strategy in (self.strategy, *self.controls)]
        arms += [Arm(f"{self.strategy}-tau-{tau:g}", self.strategy, tau) for tau in self.curve_thresholds]
        for strategy in dict.fromkeys((self.strategy, "none")) if self.curve_shares else ():
            arms += [Arm(f"{strategy}-share-{share:g}", strategy, threshold, share) for share in self.curve_shares]
        return tuple({arm.name: arm for arm in arms if arm.name != f"{self.strategy}-tau-{threshold}"}.values())

    @property
    def strategies(self) -> tuple[SelectionStrategy, ...]:
        """The main strategy and the controls: the arms of the headline, without the curves' points."""
        return (self.strategy, *self.controls)
