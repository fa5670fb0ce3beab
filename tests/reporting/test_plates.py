"""Figures that only some data have: drawn, with every value in them."""

import math
import re

from scpo_ray.reporting.evidence import Evidence
from scpo_ray.reporting.figures import to_png, to_svg
from scpo_ray.reporting.plates import plates


def drawn(evidence: Evidence) -> dict[str, tuple[str, str]]:
    """Name -> (caption, SVG)."""
    return {
        plate.name: (plate.caption, to_svg(plate.chart))
        for plate in plates([], evidence, strategies=("filter_weight",))
    }


def test_opinions_have_a_panel_for_each_community_and_a_line_for_each_model():
    rows = [
        {"community": community, "arm": arm, "value": 0.7, "low": 0.6, "high": 0.8, "gain": gain}
        | {"gain_low": gain and gain - 0.02, "gain_high": gain and gain + 0.02}
        | {"num_questions": 30, "num_clusters": 20, "temperature": None, "num_at_bound": 0, "num_replicates": 0}
        for community in ("Here", "There")
        for arm, gain in (("global", None), ("filter_weight", 0.1), ("uniform", -0.1), ("majority", math.nan))
    ]
    _, svg = drawn(Evidence(opinions=rows))["opinions"]
    for text in ("Here", "There", "SCPO (filter + weight)", "uniform", "Similarity gained"):
        assert text in svg
    assert "global model" not in svg, "it gains nothing on itself"
    assert svg.count('aria-roledescription="point"') == 4, "what has no value has no mark"


def test_agreement_shows_the_number_in_every_cell_that_has_one():
    structure = {
        "communities": ["Here", "There", "Alone"],
        "agreement": [[0.71, 0.43, None], [0.43, 0.92, None], [None, None, None]],
        "shared_pairs": [[9, 5, 0], [5, 8, 0], [0, 0, 0]],
    }
    _, svg = drawn(Evidence(structure=structure))["agreement"]
    numbers = re.findall(r'aria-roledescription="text mark"[^>]*>(\d+)</text>', svg)
    assert sorted(numbers) == ["43", "43", "71", "92"]


def test_nothing_shared_draws_no_agreement():
    structure = {
        "communities": ["Here", "There"],
        "agreement": [[0.7, None], [None, 0.9]],
        "shared_pairs": [[1, 0], [0, 1]],
    }
    assert "agreement" not in drawn(Evidence(structure=structure))


def test_distances_show_the_planted_truth_where_it_is_known():
    rows = [{"community": "Here", "value": 0.2, "low": 0.1, "high": 0.3, "num_pairs": 9, "num_clusters": 9}]
    caption, svg = drawn(Evidence(distances=rows, planted_distances={"Here": 0.25}))["distances"]
    assert "planted truth" in caption and 'aria-roledescription="tick"' in svg
    caption, svg = drawn(Evidence(distances=rows))["distances"]
    assert "planted" not in caption and 'aria-roledescription="tick"' not in svg


def test_figures_become_png_files():
    rows = [{"community": "Here", "value": 0.2, "low": 0.1, "high": 0.3, "num_pairs": 9, "num_clusters": 9}]
    (plate,) = plates([], Evidence(distances=rows), strategies=("filter_weight",))
    png = to_png(plate.chart)
    assert png.startswith(b"\x89PNG") and int.from_bytes(png[16:20]) > 800, "twice the page's width"
