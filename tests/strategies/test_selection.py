"""Every selection strategy against the slow version, and the reasons it gives."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray.config import SelectConfig, SelectionStrategy
from scpo_ray.core.agreement import agreement
from scpo_ray.strategies.selection import STRATEGIES, PairView
from tests import reference

reward = st.one_of(st.floats(-6, 6), st.sampled_from([-1e4, 0.0, 1e4]))
pairs = st.lists(st.tuples(reward, reward), min_size=1, max_size=20)

REASONS = {
    "filter_weight": {True: "kept: agreement below threshold", False: "dropped: the global model agrees"},
    "filter": {True: "kept: agreement below threshold", False: "dropped: the global model agrees"},
    "weight": {True: "kept: full weight", False: "kept: lighter, the global model disagrees"},
    "inverse_weight": {True: "kept: full weight", False: "kept: lighter, the global model agrees"},
    "none": {True: "kept: every pair is", False: "kept: every pair is"},
    "random": {True: "kept: drawn by chance", False: "dropped: not drawn"},
    "uncertainty": {True: "kept: the global model is unsure", False: "dropped: the global model is sure"},
}


LOTS = np.random.default_rng(0).random(20)


def _view(rows) -> PairView:
    chosen, rejected = np.array(rows, dtype=np.float64).T
    return PairView(chosen, rejected, agreement(chosen_rewards=chosen, rejected_rewards=rejected), LOTS[: len(rows)])


def test_config_and_registry_name_the_same_strategies():
    assert set(STRATEGIES) == set(get_args(SelectionStrategy)) == {*REASONS, "keep_fraction", "other_ruler"}


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "other_ruler"])
@settings(max_examples=60, deadline=None)
@given(rows=pairs, threshold=st.floats(0.05, 0.95), temperature=st.floats(0.2, 4))
def test_decisions_match_reference(strategy, rows, threshold, temperature):
    config = SelectConfig(strategy=strategy, agreement_threshold=threshold, weight_temperature=temperature)
    decision = STRATEGIES[strategy](_view(rows), config)
    chosen, rejected = [plus for plus, _ in rows], [minus for _, minus in rows]
    probabilities = [reference.sigmoid(plus - minus) for plus, minus in zip(chosen, rejected, strict=True)]
    if any(min(abs(p - threshold), abs(abs(p - 0.5) - config.uncertainty_band)) < 1e-12 for p in probabilities):
        return  # rounding decides
    expected = reference.decisions(
        strategy,
        chosen,
        rejected,
        threshold=threshold,
        temperature=temperature,
        lots=LOTS.tolist(),
        band=config.uncertainty_band,
        fraction=config.keep_fraction,
    )
    for index, (kept, weight) in enumerate(expected):
        assert decision.kept[index] == kept
        assert decision.weight[index] == pytest.approx(weight, rel=1e-11, abs=1e-300)
        side = decision.weight[index] == 1 if strategy.endswith("weight") and strategy != "filter_weight" else kept
        if strategy in REASONS:
            assert decision.reason[index] == REASONS[strategy][bool(side)]
    assert decision.kept.dtype == bool
    assert decision.weight.dtype == np.float64
    assert (decision.weight[~decision.kept] == 0).all()
    assert len(decision.reason) == len(rows)


def test_scpo_by_hand():
    # Gaps: 2 (p = 0.88, dropped), 0.5 (p = 0.62, kept, full), -1.1 (kept, e⁻¹), -2.2 (kept, e⁻²).
    decision = STRATEGIES["filter_weight"](_view([(2.0, 0.0), (0.5, 0.0), (0.0, 1.1), (0.0, 2.2)]), SelectConfig())
    assert decision.kept.tolist() == [False, True, True, True]
    np.testing.assert_allclose(decision.weight, [0, 1, np.exp(-1), np.exp(-2)], rtol=1e-14)
    assert decision.reason == ["dropped: the global model agrees", *["kept: agreement below threshold"] * 3]


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "other_ruler"])
def test_no_pairs_no_decisions(strategy):
    empty = PairView(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0))
    decision = STRATEGIES[strategy](empty, SelectConfig(strategy=strategy))
    assert (decision.kept.tolist(), decision.weight.tolist(), decision.reason) == ([], [], [])


def test_keep_fraction_says_which_pairs_were_drawn():
    view = _view([(3.0, 0.0)] * 20)
    decision = STRATEGIES["keep_fraction"](view, SelectConfig(keep_fraction=0.5))
    assert decision.kept.tolist() == (LOTS < 0.5).tolist()
    assert set(decision.reason) == {"kept: drawn among those that agree", "dropped: the global model agrees"}
    nothing = STRATEGIES["keep_fraction"](view, SelectConfig(keep_fraction=0.0))
    assert not nothing.kept.any()
    assert STRATEGIES["keep_fraction"](view, SelectConfig(keep_fraction=1.0)).kept.all()
