"""How responses are spread over scorers."""

import pyarrow as pa
import pytest

from scpo_ray.stages.scoring_job import windows

KNOWN = pa.array([f"r{number}" for number in range(12)])
GROUPS = (5, 5, 2)


def spread(wanted: list[int], missing: list[int], *, window: int, num_scorers: int = 1) -> list[tuple[int, list[int]]]:
    """(row group, rows in it) of every window."""
    ids = ([f"r{number}" for number in numbers] for numbers in (wanted, missing))
    found = windows(
        *(pa.array(each, pa.string()) for each in ids), KNOWN, GROUPS, window=window, num_scorers=num_scorers
    )
    return [(group, rows.tolist()) for group, rows in found]


def test_windows_end_with_their_row_group():
    everything = list(range(12))
    assert spread(everything, everything, window=3) == [
        (0, [0, 1, 2]),
        (0, [3, 4]),
        (1, [0, 1, 2]),
        (1, [3, 4]),
        (2, [0, 1]),
    ]
    assert spread([1, 8, 3, 11], [1, 8, 3, 11], window=9) == [(0, [1, 3]), (1, [3]), (2, [1])]


def test_what_is_known_leaves_the_other_windows_as_they_were():
    wanted = [0, 1, 2, 3, 4, 5, 6]
    assert spread(wanted, [0, 4, 5, 6], window=2) == [(0, [0]), (0, [4]), (1, [0, 1])]
    assert spread(wanted, [], window=2) == []


@pytest.mark.parametrize(("num_scorers", "number"), [(1, 3), (2, 7), (3, 12)])
def test_several_scorers_share_few_rows(num_scorers, number):
    everything = list(range(12))
    assert len(spread(everything, everything, window=4096, num_scorers=num_scorers)) == number
