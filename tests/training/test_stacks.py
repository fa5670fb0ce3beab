"""Files of where ranks stood: there where something is in them, and nothing else left behind."""

import os

from scpo_ray.training.stacks import Stacks, has_stacks


def test_empty_files_and_old_ones_are_no_stacks(tmp_path):
    (tmp_path / "rank_0.txt").touch()
    assert not has_stacks(tmp_path, since=0), "a killed rank leaves an empty file"
    (tmp_path / "rank_1.txt").write_text("Timeout!")
    os.utime(tmp_path / "rank_1.txt", (1000, 1000))
    assert has_stacks(tmp_path, since=999) and not has_stacks(tmp_path, since=1001)


def test_what_ended_in_time_leaves_no_folder(tmp_path):
    folder = tmp_path / "run" / "logs" / "stacks" / "abc"
    (tmp_path / "run").mkdir()
    with Stacks(folder, 0, limit_s=60).watching() as first:
        with Stacks(folder, 1, limit_s=60).watching(), first.of_step():
            assert sorted(path.name for path in folder.iterdir()) == ["rank_0.txt", "rank_1.txt"]
        assert [path.name for path in folder.iterdir()] == ["rank_0.txt"]
    assert list((tmp_path / "run").iterdir()) == []
