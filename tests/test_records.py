"""Identifiers that never change, and folder names that are always safe."""

import string

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray.records import DECISIONS, content_id, context_id, response_id, safe_name, table

CONTEXT = [{"role": "user", "content": "Hi"}]
WINDOWS_RESERVED = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10)),
}


def test_ids_are_the_same_in_every_release():
    assert content_id("a", 1) == "484c670ce4753ed75a3cc908af49224a"
    assert context_id(CONTEXT) == "207a0e32ee9dc272b344e133cf853243"
    assert response_id(CONTEXT, "Yo") == "7d85bf5ecfa1fbc93f012656ae9d31a1"
    assert content_id("Østmark", None, 0.5, [True]) == "dd950ae2091b2c3dbeb4d974d30eb58d"


def test_ids_depend_on_content_alone():
    assert context_id([{"content": "Hi", "role": "user"}]) == context_id(CONTEXT)
    assert content_id({"b": 1, "a": 2}) == content_id({"a": 2, "b": 1})
    different = [
        content_id("ab", "c"),
        content_id("a", "bc"),
        content_id("abc"),
        content_id("a", "b", "c"),
        content_id(["a", "b", "c"]),
        content_id("1"),
        content_id(1),
        content_id(None),
        content_id("null"),
    ]
    assert len(set(different)) == len(different)
    assert response_id(CONTEXT, "Yo") != response_id([{"role": "system", "content": "Hi"}], "Yo")
    assert response_id(CONTEXT, "Yo") != context_id([*CONTEXT, {"role": "assistant", "content": "Yo"}])


def test_lone_surrogates_have_ids():
    assert content_id("\ud800") != content_id("\ud801")


def test_table_has_exactly_the_schema():
    rows = table([{"pair_id": "p", "weight": 0.5}], DECISIONS)
    assert rows.schema == DECISIONS
    assert rows.to_pylist()[0]["weight"] == 0.5
    assert rows.to_pylist()[0]["reason"] is None
    assert table([], DECISIONS).num_rows == 0
    with pytest.raises(pa.ArrowInvalid):
        table([{"weight": "heavy"}], DECISIONS)


def _is_safe(name: str) -> bool:
    plain = set(string.ascii_lowercase + string.digits + "-")
    return 0 < len(name) <= 64 and set(name) <= plain and name not in WINDOWS_RESERVED and name[0] != "-"


@settings(max_examples=100, deadline=None)
@given(
    st.sets(st.one_of(st.text(), st.sampled_from(["con", "Con", "nul", "com1", "..", ".", "/", "\\", " "])), max_size=8)
)
def test_safe_names_are_safe_and_unique(names):
    safe = [safe_name(name) for name in names]
    assert all(_is_safe(name) for name in safe), safe
    assert len(set(safe)) == len(names)


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("New Zealand", "new-zealand-"),
        ("a/b", "a-b-"),
        ("Garúa", "garua-"),
        ("../../etc/passwd", "etc-passwd-"),
        ("Korea, Republic of", "korea-republic-of-"),
        ("x" * 300, "x" * 40 + "-"),
    ],
)
def test_safe_names_stay_readable(name, start):
    safe = safe_name(name)
    assert safe.startswith(start)
    assert len(safe) == len(start) + 8
    assert _is_safe(safe)


def test_plain_names_stay_as_they_are():
    assert [safe_name(name) for name in ("chile", "south-africa", "x1")] == ["chile", "south-africa", "x1"]


@pytest.mark.parametrize("name", ["", ".", "..", "日本", "?", "-"])
def test_names_without_letters_become_a_hash(name):
    assert len(safe_name(name)) == 8
    assert _is_safe(safe_name(name))


def test_names_that_differ_little_stay_apart_where_case_does_not_count():
    names = ["Chile", "chile", "CHILE", "New Zealand", "New_Zealand", "new-zealand", "x" * 50, "x" * 51]
    safe = [safe_name(name) for name in names]
    assert len({name.casefold() for name in safe}) == len(names)


@pytest.mark.parametrize("name", ["Chile", "New Zealand", "..", ""])
def test_a_name_that_looks_like_a_safe_name_is_kept_apart(name):
    assert safe_name(safe_name(name)) != safe_name(name)
