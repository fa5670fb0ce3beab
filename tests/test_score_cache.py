"""Scores by content: every response once, and never those of another model, format or precision."""

import itertools
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scpo_ray.errors import StorageError
from scpo_ray.records import SCORES, table
from scpo_ray.score_cache import ScoreCache

KEY = {"model_hash": "m", "formatter": "f", "precision": "float32"}


def _scores(**rewards):
    return table(
        (
            {"response_id": name, "model_hash": "m", "reward": reward, "num_tokens": 3, "truncated": False}
            for name, reward in rewards.items()
        ),
        SCORES,
    )


def _read(cache):
    found = cache.read()
    assert found.schema == SCORES
    pairs = list(zip(found["response_id"].to_pylist(), found["reward"].to_pylist(), strict=True))
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


@pytest.fixture(params=["{}", "file://{}"])
def address(request, tmp_path):
    return request.param.format(tmp_path / "cache")


def test_what_was_appended_is_read(address):
    cache = ScoreCache(address, **KEY)
    assert _read(cache) == {}
    cache.append(_scores(a=1.5, b=-2.0))
    cache.append(_scores(c=0.25))
    assert _read(cache) == {"a": 1.5, "b": -2.0, "c": 0.25}
    assert _read(ScoreCache(address, **KEY)) == {"a": 1.5, "b": -2.0, "c": 0.25}


def test_a_response_scored_twice_appears_once(address):
    cache = ScoreCache(address, **KEY)
    cache.append(_scores(a=1.0, b=2.0))
    cache.append(_scores(b=2.0, c=3.0))
    cache.append(pa.concat_tables([_scores(d=4.0), _scores(d=4.0)]))
    assert _read(cache) == {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    only = cache.read(["response_id"])
    assert only.column_names == ["response_id"]
    assert sorted(only["response_id"].to_pylist()) == ["a", "b", "c", "d"]


def test_columns_of_an_empty_cache(address):
    assert ScoreCache(address, **KEY).read(["response_id", "reward"]).column_names == ["response_id", "reward"]


def test_keys_are_kept_apart(address):
    keys = [dict(zip(KEY, values, strict=True)) for values in itertools.product("ab", "ab", ("float32", "bfloat16"))]
    for number, key in enumerate(keys):
        ScoreCache(address, **key).append(_scores(a=float(number)))
    assert [_read(ScoreCache(address, **key)) for key in keys] == [{"a": float(number)} for number in range(len(keys))]


def test_leftovers_of_a_killed_scorer_are_ignored(tmp_path):
    cache = ScoreCache(str(tmp_path), **KEY)
    cache.append(_scores(a=1.0))
    (folder,) = tmp_path.iterdir()
    (folder / "0123.parquet.tmp").write_bytes(b"PAR1 half a sha")
    pq.write_table(_scores(z=9.0), folder / "4567.parquet.tmp")
    assert _read(cache) == {"a": 1.0}


def test_a_failed_append_leaves_nothing(tmp_path, monkeypatch):
    cache = ScoreCache(str(tmp_path), **KEY)

    def fail(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match="No space left on device; nothing of it was kept; free space and rerun"):
        cache.append(_scores(a=1.0))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught:
        ScoreCache(str(tmp_path / "file" / "cache"), **KEY)
    assert "\n" not in str(caught.value)
