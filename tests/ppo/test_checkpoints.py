"""Unfinished policies that this config's learners could not read are refused before one starts."""

import pytest

from scpo_ray.artifacts import Recipe, RunDirectory
from scpo_ray.config import PpoConfig
from scpo_ray.errors import TrainingError
from scpo_ray.ppo.checkpoints import checkpoints_in
from scpo_ray.training.task import checkpoints_of


@pytest.mark.parametrize(
    ("num_learners", "zero_stage", "message"),
    [
        (2, 0, r"step_00000006: written by 1 ranks, ppo.num_learners is 2, .*; set ppo.num_learners to 1, or delete"),
        (1, 3, r"step_00000006: written under ZeRO stage 0, ppo.zero_stage is 3; set it to 0, or delete"),
    ],
)
def test_another_layout_is_refused_and_the_same_is_not(tmp_path, num_learners, zero_stage, message):
    recipe, run = Recipe("policies/Chile", "ppo", {}, {}, 0), RunDirectory(str(tmp_path))
    unfinished = checkpoints_of(recipe, "policy_checkpoints", run_address=run.absolute_address, place=None)
    for step in (3, 6):
        folder = unfinished / f"step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / "rank_0.pt").touch()
        (folder / "zero_stage").write_text("0")
    checkpoints = checkpoints_in(run, recipe, PpoConfig())
    checkpoints.refuse_other_layout(PpoConfig(), "ppo")
    with pytest.raises(TrainingError, match=message):
        checkpoints.refuse_other_layout(PpoConfig(num_learners=num_learners, zero_stage=zero_stage), "ppo")


def test_what_is_left_goes_with_what_other_settings_left_of_the_same_policy(tmp_path):
    run = RunDirectory(str(tmp_path))
    folders = {}
    for name, rate in (("policies/Chile", 1), ("policies/Chile", 2), ("policies/Peru", 1)):
        recipe = Recipe(name, "ppo", {"rate": rate}, {}, 0)
        folders[name, rate] = checkpoints_of(recipe, "policy_checkpoints", run_address=run.absolute_address, place=None)
        folders[name, rate].mkdir(parents=True)
    checkpoints_in(run, Recipe("policies/Chile", "ppo", {"rate": 1}, {}, 0), PpoConfig()).remove()
    assert [key for key, folder in folders.items() if folder.exists()] == [("policies/Peru", 1)]
