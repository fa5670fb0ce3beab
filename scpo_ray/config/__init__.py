"""Every setting, with its default, unit and check: one frozen model per stage.

Defaults live here and nowhere else. `scpo_ray.cli.load_config` fills these models from a YAML file and the command
line; functions receive the smallest sub-config that they need.
"""

import os
from typing import Annotated

from pydantic import AfterValidator, Field

from scpo_ray.config.data import (
    AtlasConfig,
    CommunityField,
    GeneralPreferencesConfig,
    GlobalOpinionsConfig,
    PairFilesConfig,
    PrepareConfig,
    PrismConfig,
)
from scpo_ray.config.results import EvaluateConfig, ReportConfig
from scpo_ray.config.scoring import FormatConfig, ScoreConfig
from scpo_ray.config.section import Address, Section
from scpo_ray.config.selection import Arm, SelectConfig, SelectionStrategy
from scpo_ray.config.training import LoraConfig, ModelConfig, OptimizationConfig, TrainConfig, TrainGlobalConfig

__all__ = [
    "Arm",
    "AtlasConfig",
    "CommunityField",
    "Config",
    "EvaluateConfig",
    "FormatConfig",
    "GeneralPreferencesConfig",
    "GlobalOpinionsConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimizationConfig",
    "PairFilesConfig",
    "PrepareConfig",
    "PrismConfig",
    "ReportConfig",
    "ScoreConfig",
    "SelectConfig",
    "SelectionStrategy",
    "TrainConfig",
    "TrainGlobalConfig",
]


class Config(Section):
    """One run, from data to report."""

    run_dir: Annotated[Address, Field(min_length=1), AfterValidator(os.path.expanduser)] = "runs/default"
    """Where the artifacts go: a path, s3:// or gs:// address."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seeds the world, initialisation and data order."""

    rebuild: bool = False
    """Remake artifacts that another config made, instead of refusing."""

    prepare: PrepareConfig = PrepareConfig()
    format: FormatConfig = FormatConfig()
    train_global: TrainGlobalConfig = TrainGlobalConfig()
    score: ScoreConfig = ScoreConfig()
    select: SelectConfig = SelectConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()
