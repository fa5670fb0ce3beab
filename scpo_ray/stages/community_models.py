"""The reward models that policies are trained and measured by: whose, where, and on which scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scpo_ray import model_files
from scpo_ray.artifacts import Recipe, RunDirectory
from scpo_ray.config import Config
from scpo_ray.errors import ArtifactError, DataError
from scpo_ray.ppo.objective import Scale, Target
from scpo_ray.records import ModelName
from scpo_ray.runtime import connect
from scpo_ray.stages import recipes
from scpo_ray.stages.global_model import global_model_address
from scpo_ray.stages.prepare import check_known
from scpo_ray.stages.scoring_job import ModelToScore, score_models
from scpo_ray.stages.train import communities_to_train


@dataclass(frozen=True)
class CommunityModel:
    """A community's reward model."""

    community: str
    address: str
    content_hash: str
    is_global: bool
    """A majority's: the global model stands for it."""


def community_models(config: Config, directory: RunDirectory) -> dict[str, CommunityModel]:
    """Community -> model, for `ppo.communities` or every community that was trained.

    Raises:
        ConfigError: a configured community does not occur.
        ArtifactError: a community has no model yet, or one of another config.
    """
    statistics = recipes.checked(directory, recipes.prepared(config)).statistics
    majority, known = statistics["majority"], statistics["communities"]
    assert isinstance(majority, list) and isinstance(known, dict)
    if config.ppo.communities is not None:
        check_known("ppo.communities", config.ppo.communities, known)
    wanted = config.ppo.communities or communities_to_train(config, directory)
    return {community: _model(config, directory, community, is_global=community in majority) for community in wanted}


def policy_recipe(
    config: Config, directory: RunDirectory, target: Target, found: Mapping[str, CommunityModel]
) -> Recipe:
    """Of a policy for communities whose models are found."""
    return recipes.policy(
        config,
        directory,
        name=target.name,
        composition=target.composition,
        reward_models={community: found[community].content_hash for community in target.communities},
    )


def held_out_models(config: Config, directory: RunDirectory, communities: Sequence[str]) -> dict[str, CommunityModel]:
    """Community -> its model of the next seed, where `train.num_seeds` made one: no policy is trained by it."""
    if config.train.num_seeds < 2:
        return {}
    majority = recipes.checked(directory, recipes.prepared(config)).statistics["majority"]
    assert isinstance(majority, list)
    return {
        community: _model(config, directory, community, replicate=1, is_global=False)
        for community in communities
        if community not in majority
    }


def _model(
    config: Config, directory: RunDirectory, community: str, *, is_global: bool, replicate: int = 0
) -> CommunityModel:
    if is_global:
        manifest = recipes.checked(directory, recipes.global_model(config, directory))
        return CommunityModel(community, global_model_address(directory), manifest.content_hash, is_global=True)
    arm = config.select.arms[0]
    name = ModelName(arm.name, community, replicate)
    recipe = recipes.reward_model(config, directory, arm, name)
    if directory.find(recipe.name) is None:
        raise ArtifactError(
            f"{directory.path(recipe.name)}: {community} has no reward model; run jobs/train.py first, or leave it out of "
            "ppo.communities"
        )
    manifest = recipes.checked(directory, recipe)
    return CommunityModel(community, directory.shared_address(recipe.name), manifest.content_hash, is_global=False)


def scales(config: Config, directory: RunDirectory, wanted: dict[str, CommunityModel]) -> dict[str, Scale]:
    """Name -> mean and standard deviation of its model's rewards over the responses of its community's validation pairs.

    Scored through the run's score cache: what the evaluation has scored is not scored again.

    Raises:
        DataError: a community has no validation pairs, or its model gives all of them the same reward.
    """
    from scpo_ray import models  # with transformers, which recipes need not wait for

    connect(config.log_format)
    to_score = []
    for name, model in wanted.items():
        pairs = directory.read_table(
            "prepared/pairs.parquet",
            columns=["chosen_id", "rejected_id"],
            filters=(pc.field("community") == model.community) & (pc.field("split") == "validation"),
        )
        identifiers = pc.unique(pa.concat_arrays([pairs[name].combine_chunks() for name in pairs.column_names]))
        if len(identifiers) < 2:
            raise DataError(
                f"{model.community}: {len(identifiers)} responses in validation pairs, too few to know its rewards' scale; "
                "leave it out of ppo.communities, or raise prepare.validation_fraction"
            )
        models.check(model_files.resolve(model.address), may_lack_head=False, max_tokens=config.format.max_tokens)
        to_score.append(ModelToScore(name, model.address, identifiers.sort()))
    rewards, _ = score_models(to_score, config)
    found = {}
    for name, table in rewards.items():
        values = table["reward"].to_numpy().astype(np.float64)
        if not values.std() > 0:
            raise DataError(
                f"{name}: its reward model gives {len(values)} validation responses the same reward, {values[0]:g}; a "
                "policy cannot be trained by it"
            )
        found[name] = Scale(float(values.mean()), float(values.std()))
    return found
