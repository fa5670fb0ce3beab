"""What can never be placed is refused, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scpo_ray.core.placement import reason_unplaceable, room

CPU_NODE, GPU_NODE = {"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("bundles", "nodes", "reason"),
    [
        ([{"CPU": 1, "GPU": 1}] * 3, [GPU_NODE], "3 GPU needed, 2 there"),
        ([{"CPU": 6}], [CPU_NODE, CPU_NODE], "6 CPU needed on one node, and no node has it"),
        ([{"CPU": 3}] * 2, [CPU_NODE, {"CPU": 2.0}], "2 x 3 CPU needed, each on one node; the nodes have room for 1"),
        ([{"CPU": 1, "GPU": 1}], [], "1 CPU needed, 0 there"),
        (
            [{"CPU": 5, "GPU": 1}] * 2,
            [GPU_NODE, CPU_NODE],
            "2 x 5 CPU and 1 GPU needed, each on one node; the nodes have room for 1",
        ),
        ([{"GPU": 0.5}] * 4, [GPU_NODE], None),
        ([{"CPU": 0.1}] * 40, [CPU_NODE], None),
        ([{"CPU": 1, "GPU": 0.0}], [CPU_NODE], None),
        ([], [], None),
    ],
)
def test_reasons(bundles, nodes, reason):
    assert reason_unplaceable(bundles, nodes) == reason


@pytest.mark.parametrize(
    ("bundle", "nodes", "expected"),
    [
        ({"CPU": 1, "GPU": 1}, [CPU_NODE, GPU_NODE, GPU_NODE], (2, 4)),
        ({"CPU": 6, "GPU": 0.0}, [CPU_NODE, GPU_NODE], (1, 1)),
        ({"GPU": 0.3}, [GPU_NODE], (1, 6)),
        ({"CPU": 9}, [CPU_NODE, GPU_NODE], (0, 0)),
    ],
)
def test_room(bundle, nodes, expected):
    """A GPU node holds 2 bundles of a GPU and 6 of three tenths: 2 GPU / 0.3 = 6.67."""
    assert room(bundle, nodes) == expected
    with pytest.raises(ValueError, match="an empty bundle goes anywhere"):
        room({"CPU": 0.0}, nodes)


AMOUNTS = st.dictionaries(st.sampled_from(["CPU", "GPU"]), st.integers(0, 4).map(float), min_size=1)


@given(st.lists(AMOUNTS, max_size=4), st.lists(AMOUNTS, max_size=3))
def test_what_is_refused_has_no_packing(bundles, nodes):
    """Against every assignment of bundles to nodes."""
    if reason_unplaceable(bundles, nodes) is not None:
        assert not can_be_packed(bundles, [dict(node) for node in nodes])


def can_be_packed(bundles: list[dict], left: list[dict]) -> bool:
    if not bundles:
        return True
    first, *others = bundles
    for node in left:
        if all(node.get(name, 0.0) >= amount for name, amount in first.items()):
            for name, amount in first.items():
                node[name] = node.get(name, 0.0) - amount
            if can_be_packed(others, left):
                return True
            for name, amount in first.items():
                node[name] = node.get(name, 0.0) + amount
    return False
