"""The report in a real browser: headless Chromium, no network."""

import shutil
from pathlib import Path

import pytest

from scpo_ray.core.bootstrap import Estimate
from scpo_ray.reporting.model_page import ModelPage, render_models

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def report(controlled_run) -> Path:
    return Path(controlled_run.run_dir, "report.html")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, report):
    messages: list[str] = []
    requests: list[str] = []
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    yield page
    assert messages == [], "nothing on the console"
    assert requests == [report.as_uri()], "nothing is loaded from elsewhere"
    page.close()


def test_every_figure_is_drawn(page, report):
    names = {figure.get_attribute("id") for figure in page.locator("figure").all()}
    drawn = {"gains", "frontier", "tau", "data", "compute", "distances", "transfer", "calibration"}
    assert names == {f"figure-{name}" for name in drawn}
    for figure in page.locator("figure svg").all():
        box = figure.bounding_box()
        assert box["width"] > 100 and box["height"] > 60
        assert figure.locator("path, circle, rect, line").count() > 5
    assert {path.stem for path in (report.parent / "report/figures").glob("*.png")} == drawn
    page.screenshot(path=str(report.parent / "report.png"), full_page=True)
    assert (report.parent / "report.png").stat().st_size > 50_000


def test_no_table_or_figure_is_wider_than_the_page(page):
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 1200
    page.set_viewport_size({"width": 420, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 440, "wide tables scroll by themselves"


def test_the_ledger_search_shows_what_holds_every_word(page):
    search, pairs = page.locator("#ledger-search"), page.locator("details.ledger .pair")
    total = pairs.count()
    assert total > 4 and not page.locator("details.ledger[open]").count()
    search.fill("dropped BREVIA")
    shown = [pair for pair in pairs.all() if not pair.evaluate("pair => pair.hidden || pair.parentElement.hidden")]
    assert 0 < len(shown) < total
    assert all("dropped" in pair.inner_text().lower() for pair in shown)
    assert page.locator("#ledger-count").inner_text() == f"{len(shown)} of {total} pairs"
    search.fill("no such words anywhere")
    assert page.locator("#ledger-count").inner_text() == f"0 of {total} pairs"
    search.fill("")
    assert not [pair for pair in pairs.all() if pair.evaluate("pair => pair.hidden")]


def test_it_prints(page, tmp_path):
    page.emulate_media(media="print")
    page.pdf(path=str(tmp_path / "report.pdf"))
    assert (tmp_path / "report.pdf").read_bytes().count(b"/Type /Page") > 2


def test_the_page_of_models_from_elsewhere(browser, tmp_path):
    def estimate(value: float, num_clusters: int = 12) -> Estimate:
        return Estimate(value, value - 0.05, value + 0.05, 60, num_clusters)

    names = ("ORG/first", "<b>second</b>")
    comparison = {"arm": names[1], "against": names[0], "community": "all communities", "metric": "overall"}
    comparison |= {"difference": 0.06, "low": 0.01, "high": 0.11, "p_value": 0.01, "p_holm": 0.03, "detectable": 0.05}
    comparison |= {"num_pairs": 120, "num_clusters": 12}
    measures = ("mean_margin", "adaptive_calibration_error", "temperature", "calibration_error_at_temperature")
    values = dict.fromkeys((*measures, "length_correlation", "share_of_ties", "truncated_share"), 0.5)
    content = ModelPage(
        title="Two models",
        run_dir="runs/compare",
        seed=0,
        created="2026-01-01T00:00:00Z",
        models=names,
        accuracy={
            "Here": {names[0]: estimate(0.6, 4), names[1]: estimate(0.7, 4)},
            "all communities": {names[0]: estimate(0.61), names[1]: estimate(0.67)},
        },
        comparisons=[comparison],
        diagnostics={(community, name): values for community in ("Here", "all communities") for name in names},
        hashes=dict.fromkeys(names, "0" * 32),
        packages={"torch": "2"},
        about_pairs="120 of 150 prepared pairs (train and test).",
    )
    file = tmp_path / "models.html"
    file.write_text(render_models(content), encoding="utf-8")
    messages: list[str] = []
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(file.as_uri())
    assert page.locator("p.lead").inner_text() == (
        "<b>second</b> is better than ORG/first: +6.0 points [+1.0, +11.0], p after Holm 0.030."
    )
    assert "Fewer than 10 annotators or prompts behind the intervals of Here" in page.locator(".warnings").inner_text()
    box = page.locator("#figure-accuracy svg").bounding_box()
    assert box["width"] > 200 and box["height"] > 40
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    page.screenshot(path=str(tmp_path / "models.png"), full_page=True)
    page.close()
    assert messages == []
