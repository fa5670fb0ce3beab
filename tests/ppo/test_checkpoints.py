"""Unfinished policies that this config's learners could not read are refused before one starts."""

import pytest

from scpo_ray.config import PpoConfig
from scpo_ray.errors import TrainingError
from scpo_ray.ppo.checkpoints import PolicyCheckpoints


@pytest.mark.parametrize(
    ("num_learners", "zero_stage", "message"),
    [
        (2, 0, r"step_00000006: written by 1 ranks, ppo.num_learners is 2, .*; set ppo.num_learners to 1, or delete"),
        (1, 3, r"step_00000006: written under ZeRO stage 0, ppo.zero_stage is 3; set it to 0, or delete"),
    ],
)
def test_another_layout_is_refused_and_the_same_is_not(tmp_path, num_learners, zero_stage, message):
    for step in (3, 6):
        folder = tmp_path / f"step_{step:08d}"
        folder.mkdir()
        (folder / "rank_0.pt").touch()
        (folder / "zero_stage").write_text("0")
    checkpoints = PolicyCheckpoints(tmp_path)
    checkpoints.refuse_other_layout(PpoConfig(), "ppo")
    with pytest.raises(TrainingError, match=message):
        checkpoints.refuse_other_layout(PpoConfig(num_learners=num_learners, zero_stage=zero_stage), "ppo")
