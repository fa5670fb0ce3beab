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
}


def _view(rows) -> PairView:
    chosen, rejected = np.array(rows, dtype=np.float64).T
    return PairView(chosen, rejected, agreement(chosen_rewards=chosen, rejected_rewards=rejected))


def test_config_and_registry_name_the_same_strategies():
    assert set(STRATEGIES) == set(get_args(SelectionStrategy)) == set(REASONS)


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=60, deadline=None)
@given(rows=pairs, threshold=st.floats(0.05, 0.95), temperature=st.floats(0.2, 4))
def test_decisions_match_reference(strategy, rows, threshold, temperature):
    config = SelectConfig(strategy=strategy, agreement_threshold=threshold, weight_temperature=temperature)
    decision = STRATEGIES[strategy](_view(rows), config)
    chosen, rejected = [plus for plus, _ in rows], [minus for _, minus in rows]
    expected = reference.decisions(strategy, chosen, rejected, threshold=threshold, temperature=temperature)
    for index, (kept, weight) in enumerate(expected):
        if abs(reference.sigmoid(chosen[index] - rejected[index]) - threshold) < 1e-12:
            continue  # rounding decides
        assert decision.kept[index] == kept
        assert decision.weight[index] == pytest.approx(weight, rel=1e-11, abs=1e-300)
        side = kept if strategy in ("filter", "filter_weight") else decision.weight[index] == 1
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


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_pairs_no_decisions(strategy):
    empty = PairView(np.zeros(0), np.zeros(0), np.zeros(0))
    decision = STRATEGIES[strategy](empty, SelectConfig(strategy=strategy))
    assert (decision.kept.tolist(), decision.weight.tolist(), decision.reason) == ([], [], [])
