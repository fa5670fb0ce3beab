"""Option probabilities beside a community's answers."""

import math

import numpy as np
import pyarrow as pa
import pytest

from scpo_ray.config import EvaluateConfig
from scpo_ray.core.distributions import jensen_shannon_distance, option_probabilities
from scpo_ray.errors import DataError
from scpo_ray.evaluation.opinions import opinion_rows, questions
from scpo_ray.records import OPTION_SHARES
from tests.evaluation.pair_sets import scores_of

CONFIG = EvaluateConfig(num_resamples=100)
SHARES = (0.75, 0.25)


def shares_table(*, majority: tuple[float, float] = (0.5, 0.5)) -> pa.Table:
    """Two validation and two test questions of Here with the same answers; the majority was asked test question 2."""
    rows = [
        {"community": "Here", "prompt_id": f"q{n}", "prompt_group": f"g{n}", "split": split}
        | {"response_id": f"q{n}-{option}", "share": share}
        for n, split in enumerate(("validation", "validation", "test", "test"))
        for option, share in zip("ab", SHARES, strict=True)
    ]
    rows += [
        {"community": "West", "prompt_id": "q2", "prompt_group": "g2", "split": "test"}
        | {"response_id": f"q2-{option}", "share": share}
        for option, share in zip("ab", majority, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=OPTION_SHARES)


def rewards(gap: float) -> pa.Table:
    return scores_of({f"q{n}-{option}": gap * (option == "a") for n in range(4) for option in "ab"})


def rows_for(**arms: pa.Table) -> dict[str, dict]:
    arms = {"global": rewards(1.0)} | arms
    found = opinion_rows("Here", shares_table(), {k: [v] for k, v in arms.items()}, ["West"], CONFIG, seed=0)
    return {row["arm"]: row for row in found}


def test_by_hand():
    """A gap of 2 ln 3 with T = 2 gives ¾ and ¼: the answers themselves. Uniform and the majority say ½ and ½."""
    found = rows_for(none=rewards(2 * math.log(3)))
    assert found["none"]["temperature"] == pytest.approx(2, rel=1e-4)
    assert found["none"]["value"] == pytest.approx(1.0, abs=1e-4)
    half = 1 - jensen_shannon_distance(np.array([0.5, 0.5]), np.array(SHARES))
    assert found["uniform"]["value"] == found["majority"]["value"] == pytest.approx(half)
    assert (found["none"]["num_questions"], found["majority"]["num_questions"]) == (2, 1)
    assert found["uniform"]["temperature"] is None
    assert (found["none"]["num_at_bound"], found["none"]["num_replicates"]) == (0, 1)
    assert found["uniform"]["num_replicates"] == 0


def test_gains_are_paired_with_the_global_model_on_the_same_questions():
    """The global model has no opinion here: uniform gains nothing on it, question by question, whatever their spread."""
    found = rows_for(**{"global": rewards(0.0), "none": rewards(2 * math.log(3))})
    assert found["global"]["gain"] is None
    assert found["uniform"]["gain"] == found["majority"]["gain"] == pytest.approx(0)
    assert found["none"]["gain"] == pytest.approx(found["none"]["value"] - found["global"]["value"])
    assert found["none"]["gain_low"] == found["none"]["gain_high"] == pytest.approx(found["none"]["gain"])


def test_a_model_of_the_other_opinion_is_no_better_than_uniform():
    """No temperature makes it right: the fit goes to its bound, where all options are nearly alike."""
    found = rows_for(none=rewards(-3.0))
    assert found["none"]["temperature"] == pytest.approx(100)
    assert (found["none"]["num_at_bound"], found["none"]["num_replicates"]) == (1, 1)
    expected = 1 - jensen_shannon_distance(
        option_probabilities(np.array([-3.0, 0.0]), temperature=100), np.array(SHARES)
    )
    assert found["none"]["value"] == pytest.approx(expected)
    assert expected < found["uniform"]["value"]


def test_no_validation_or_no_test_questions_no_rows():
    table = shares_table()
    for split in ("validation", "test"):
        kept = pa.Table.from_pylist([row for row in table.to_pylist() if row["split"] != split], schema=OPTION_SHARES)
        assert opinion_rows("Here", kept, {"global": [rewards(1.0)]}, [], CONFIG, seed=0) == []
    assert opinion_rows("There", table, {"global": [rewards(1.0)]}, [], CONFIG, seed=0) == []


def test_an_option_without_a_reward_stops():
    partial = scores_of({f"q{n}-a": 1.0 for n in range(4)})
    with pytest.raises(DataError, match="none: option 'q0-b' of question q0 has no reward"):
        rows_for(none=partial)


def test_questions_keep_their_options_order():
    (first, second) = questions(shares_table(), community="Here", split="test")
    assert (first.prompt_id, first.options, first.shares.tolist()) == ("q2", ("q2-a", "q2-b"), list(SHARES))
    assert second.group == "g3"
