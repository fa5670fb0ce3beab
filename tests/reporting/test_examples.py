"""Which pairs of the ledger are shown, and what became of planted kinds."""

import pytest

from scpo_ray.reporting.examples import choose_examples, planted_rows

LEDGER = [
    {"pair_id": f"p{number}", "agreement": agreement, "kept": agreement < 0.7, "weight": weight}
    for number, (agreement, weight) in enumerate([(0.1, 0.2), (0.3, 0.6), (0.65, 1), (0.55, 1), (0.72, 0), (0.9, 0)])
]
INTERACTIONS = {f"p{number}": f"i{number}" for number in range(6)}


class TestExamples:
    def test_reasons_take_turns(self):
        chosen = choose_examples(LEDGER, number=4, interaction_of=INTERACTIONS)
        assert [(why.split(";")[0].split(",")[0], row["pair_id"]) for why, row in chosen] == [
            ("Kept", "p0"),
            ("Kept", "p1"),
            ("Kept", "p2"),
            ("Dropped", "p4"),
        ]

    def test_one_pair_per_interaction_and_never_twice(self):
        same = dict.fromkeys(INTERACTIONS, "i")
        assert [row["pair_id"] for _, row in choose_examples(LEDGER, number=9, interaction_of=same)] == ["p0"]
        everything = choose_examples(LEDGER, number=9, interaction_of=INTERACTIONS)
        assert sorted(row["pair_id"] for _, row in everything) == sorted(INTERACTIONS)

    def test_planted_kinds(self):
        kinds = {"p0": "noise", "p1": "culture", "p2": "culture", "p4": "agreement", "p5": "agreement"}
        noise = planted_rows(kinds, LEDGER, strategy="filter_weight")
        assert [(row.kind, row.num_pairs, row.kept_share, row.mean_weight) for row in noise] == [
            ("agreement", 2, 0.0, None),
            ("culture", 2, 1.0, 0.8),
            ("noise", 1, 1.0, 0.2),
        ]
        assert noise[1].weight_share == pytest.approx(1.6 / 2.8)
