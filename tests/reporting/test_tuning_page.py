"""The page of a search: what it says of trials that were written by hand, and what it draws."""

import math
import re
from html import unescape

import pytest

from scpo_ray.reporting.figures import to_svg
from scpo_ray.reporting.tuning_figures import parallel_coordinates, plane, progress
from scpo_ray.reporting.tuning_page import TuningPage, render_tuning
from scpo_ray.tuning.objectives import METRICS
from scpo_ray.tuning.records import TrialRecord

TAU, BETA, KIND = "select.agreement_threshold", "select.weight_temperature", "select.strategy"


def record(number: int, overall: float, *, retention: float = 0.8, state: str = "finished", error: str = "", **point):
    objectives = dict.fromkeys(METRICS, 0.5) | {"overall": overall, "retention": retention}
    return TrialRecord(
        digest=f"digest {number}",
        point={TAU: 0.5 + number / 10, BETA: float(10**number), **point},
        state=state,
        objectives={} if state == "failed" else objectives,
        by_community={} if state == "failed" else {"Here": {"overall": overall}, "<b>There</b>": {"overall": overall}},
        constants={"Here": {"agreement_threshold": 0.7, "weight_temperature": None}},
        error=error,
        wall_time_s=3.0,
    )


RECORDS = [
    record(0, 0.6, retention=0.9),
    record(1, 0.7),
    record(2, 0.65, state="stopped"),
    record(3, math.nan, state="failed", error="Here: 2 training pairs left <after> selection"),
]


def page(**changes) -> TuningPage:
    values = {
        "title": "A search",
        "run_dir": "runs/here",
        "seed": 0,
        "created": "2026-01-01T00:00:00Z",
        "keys": [TAU, BETA],
        "objectives": ("overall", "retention"),
        "criterion": "mean",
        "search": "tpe",
        "records": RECORDS,
        "best": RECORDS[1],
        "front": RECORDS[:2],
        "baselines": {"as configured": record(9, 0.68), "auto": record(8, 0.0, state="failed", error="no temperature")},
        "importance": {TAU: 0.75, BETA: 0.25},
        "num_validation": {"Here": 100, "<b>There</b>": 400},
    }
    return TuningPage(**(values | changes))


def test_what_is_said():
    words = " ".join(page().sentences)
    assert (
        "4 trials: 2 finished, 1 stopped, 1 failed. Chosen by mean of overall, retention: agreement_threshold 0.6"
        in words
    )
    assert "Beside the settings as configured, overall is +2.0 points on the same validation pairs." in words
    assert "The settings auto could not be tried: no temperature" in words
    assert "with 100 validation pairs in Here, one standard error is 5.0 points" in words
    assert "Chosen by the highest overall" in " ".join(page(objectives=("overall",)).sentences)


def test_every_trial_is_in_the_table_and_texts_are_escaped():
    html = render_tuning(page())
    assert "<b>There</b>" not in html and "&lt;b&gt;There" in html
    rows = re.findall(r"<tr><td class=\"n\">(\d)</td><td>(\w+)", html)
    assert rows == [("1", "finished"), ("2", "chosen"), ("3", "stopped"), ("4", "failed")]
    assert "2 training pairs left <after> selection" in unescape(html)
    assert "src=" not in html and "https:" not in html, "nothing is loaded"


def test_which_figures_there_are():
    captions = [caption for caption, _ in page().figures()]
    assert len(captions) == 5
    assert len(page(objectives=("overall",)).figures()) == 4, "no front of one objective"
    assert len(page(importance={}).figures()) == 4
    assert not any("τ and β" in caption for caption, _ in page(keys=[TAU]).figures())
    lone = page(records=RECORDS[1:2], front=RECORDS[1:2], importance={}, objectives=("overall",), keys=[TAU])
    assert lone.figures() == []


def test_lines_go_through_the_place_of_every_value():
    """Numbers by size, over two decades by logarithm, names by order."""
    points = [{"a": 1.0, "b": 1.0, "c": "auto"}, {"a": 3.0, "b": 100.0, "c": 0.7}, {"a": 2.0, "b": 10.0, "c": 0.7}]
    chart = parallel_coordinates(points, [60.0, 70.0, 65.0], chosen=1, title="overall, %").to_dict()
    rows = {(row["trial"], row["axis"]): row["at"] for row in chart["layer"][0]["data"]["values"]}
    for axis in ("a", "b", "overall, %"):
        assert [rows[trial, axis] for trial in range(3)] == pytest.approx([0, 1, 0.5])
    assert [rows[trial, "c"] for trial in range(3)] == [1, 0, 0]
    assert "auto" in to_svg(parallel_coordinates(points, [60.0, 70.0, 65.0], chosen=1, title="overall, %"))


def test_the_best_so_far_never_falls_and_failures_leave_a_gap():
    rows = progress([50.0, math.nan, 70.0, 60.0], title="overall").to_dict()["data"]["values"]
    assert [row["best"] for row in rows] == [50.0, 50.0, 70.0, 70.0]
    assert [row["value"] for row in rows] == [50.0, None, 70.0, 60.0]


def test_the_plane_writes_each_value():
    rows = [
        {"x": 0.7, "y": 1.1, "value": 61.23, "kind": "chosen"},
        {"x": 0.9, "y": 8.0, "value": 60.0, "kind": "tried"},
    ]
    svg = to_svg(plane(rows, x_title="τ", y_title="β", title="overall", log_y=True))
    assert ">61.2<" in svg and ">60.0<" in svg
