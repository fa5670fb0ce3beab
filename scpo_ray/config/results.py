"""Settings of the evaluation and its report."""

from typing import Annotated, Literal

from pydantic import Field

from scpo_ray.config.section import Address, Section, Unique


class EvaluateConfig(Section):
    """What was gained and what was lost, on test pairs."""

    models: Annotated[tuple[Address, ...], Unique] = ()
    """Reward models from elsewhere (folder, hub name, `package:` address) to compare on the prepared pairs instead of the
    run's own; the first is what the others are compared with."""

    model_splits: Annotated[tuple[Literal["train", "test"], ...], Unique] = Field(default=("test",), min_length=1)
    """Which prepared pairs `models` are compared on. Models that saw none of them can take `train,test`; validation pairs
    are kept for their temperatures."""

    trained_on: Annotated[tuple[Address, ...], Unique] = ()
    """What `models` were trained on, as far as it is known: pair files, or run directories of scpo_ray (their training
    pairs). Pairs whose context occurs there are left out, and counted."""

    dropout: bool = False
    """Leave dropout on while scoring the trained models (as published)."""

    test_threshold: float = Field(default=0.5, gt=0, lt=1)
    """Agreement below which a test pair counts as one that the global model gets wrong."""

    num_resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples behind every interval."""

    num_permutations: int = Field(default=10_000, ge=100)
    """Permutations behind every p-value, which is never below 1 / (this + 1): Holm's correction multiplies it by the number
    of comparisons."""

    num_label_permutations: int = Field(default=500, ge=20)
    """Exchanges of annotators' communities behind the test of whether communities differ."""


class ReportConfig(Section):
    """The terminal table and `report.html`."""

    title: str = "SCPO"
    num_example_pairs: int = Field(default=12, ge=0)
    """Pairs shown per community, with texts."""
