"""The page of the reward service in a real browser: headless Chromium, the real service, no other network."""

import json
import math
import re
import shutil
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import httpx
import pytest

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROMPT = "How should we decide where to eat?"
ANSWER_A = "Ask everyone what they would like, and take a vote."
ANSWER_B = "Your eldest guest chooses; it is a matter of respect."
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; apt-get install chromium")
    with playwright.sync_playwright() as engines:
        browser = engines.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, service_url, service_token):
    """Opens tabs of separate sessions; at the end nothing was loaded from elsewhere and nothing went wrong in them."""
    contexts, problems, requests, dialogs = [], [], [], []

    def open_tab(fragment: str = "", **options):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto(f"{service_url}/{fragment}")
        return page

    yield open_tab
    addresses = [page.url for context in contexts for page in context.pages]
    for context in contexts:
        context.close()
    refusals = "error: Failed to load resource: the server responded with a status of"
    # Chromium itself writes refusals that a test asked for, and its advice on password fields ("verbose").
    assert [problem for problem in problems if not problem.startswith((refusals, "verbose:", "debug:"))] == []
    assert dialogs == []
    assert [url for url in requests if not url.startswith((f"{service_url}/", "data:"))] == []
    assert [url for url in requests + addresses if service_token in url] == []


@pytest.fixture
def page(visit, service_token):
    page = visit()
    sign_in(page, service_token)
    return page


def sign_in(page, token):
    page.get_by_label("Token", exact=True).fill(token)
    page.get_by_label("Token", exact=True).press("Enter")
    page.locator("#community-list label").first.wait_for(state="attached")


def write(page, prompt=PROMPT, answer_a=ANSWER_A, answer_b=ANSWER_B):
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Answer A", exact=True).fill(answer_a)
    page.get_by_label("Answer B", exact=True).fill(answer_b)


def compare(page, **texts):
    write(page, **texts)
    page.get_by_role("button", name="Compare").click()
    wait_for_answer(page)


def wait_for_answer(page):
    page.locator("#results[aria-busy=false] #answer:not([hidden])").wait_for()


def names(page):
    return page.locator("#rows bdi").all_inner_texts()


def slider(page, community):
    return page.get_by_role("slider", name=f"Weight of {community}", exact=True)


def share(text: str) -> float:
    return float(text.strip().removesuffix("%")) / 100


def question(communities="all"):
    return {"prompt": PROMPT, "response_a": ANSWER_A, "response_b": ANSWER_B, "communities": communities}


@pytest.fixture
def api(service_url, service_token):
    """What the service says to the same question without a browser."""

    def call(path: str, body: dict | None = None) -> dict:
        headers = {"Authorization": f"Bearer {service_token}"}
        answer = httpx.request("POST" if body else "GET", service_url + path, json=body, headers=headers, timeout=60)
        answer.raise_for_status()
        return answer.json()

    return call


def test_bars_are_the_numbers_of_the_service_most_favourable_first(page, api):
    compare(page)
    answer = {view["community"]: view for view in api("/v1/compare", question())["communities"]}
    rows = page.locator("#rows .row").all()
    assert len(rows) == len(answer) > 1
    shown = [answer[name]["probability"] for name in names(page)]
    assert shown == sorted(shown, reverse=True)
    for row, name in zip(rows, names(page), strict=True):
        view = answer[name]
        assert share(row.locator(".probability").inner_text()) == pytest.approx(view["probability"], abs=6e-4)
        track, bar = row.locator(".track").bounding_box(), row.locator(".bar").bounding_box()
        assert row.locator(".track").get_attribute("aria-hidden") == "true"
        ends = sorted((view["probability"], 0.5))
        assert (bar["x"] - track["x"]) / track["width"] == pytest.approx(ends[0], abs=0.02)
        assert bar["width"] / track["width"] == pytest.approx(ends[1] - ends[0], abs=0.02)
        if view["interval"]:
            whisker, (low, high) = row.locator(".whisker").bounding_box(), view["interval"]
            assert (whisker["x"] - track["x"]) / track["width"] == pytest.approx(low, abs=0.02)
            assert whisker["width"] / track["width"] == pytest.approx(high - low, abs=0.03)
            assert row.locator(".range").inner_text() == f"[{100 * low:.1f}, {100 * high:.1f}]"
        assert ("not calibrated" in row.locator(".mark").inner_text()) is not view["is_calibrated"]
        assert ("truncated" in row.locator(".mark").inner_text()) is view["truncated"]


def test_the_table_has_the_same_numbers_for_those_who_see_no_bars(page, api):
    compare(page)
    page.get_by_text("The same numbers as a table").click()
    cells = [row.locator("th, td").all_inner_texts() for row in page.locator("#cells tr").all()]
    assert [row[0] for row in cells] == names(page)
    answer = {view["community"]: view for view in api("/v1/compare", question())["communities"]}
    for name, probability, interval, margin, notes in cells:
        view = answer[name]
        assert share(probability) == pytest.approx(view["probability"], abs=6e-4)
        assert float(margin) == pytest.approx(view["reward_margin"], abs=1.1e-3)
        ends = view["interval"]
        assert interval == (f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else "none")
        assert (notes == "") is (view["is_calibrated"] and not view["truncated"])


def test_a_sentence_names_the_extremes_and_the_spread(page, api):
    compare(page)
    spread = api("/v1/compare", question())["disagreement"]
    sentence = page.locator("#summary").inner_text().replace("\u2068", "").replace("\u2069", "")
    assert f"Most favourable to A is {spread['most_favourable']} with {100 * spread['highest']:.1f}%" in sentence
    assert f"least {spread['least_favourable']} with {100 * spread['lowest']:.1f}%" in sentence
    assert f"is {100 * spread['standard_deviation']:.1f} points" in sentence


def test_only_chosen_communities_are_asked(page):
    chosen = page.locator("#community-list bdi").first.inner_text()
    page.get_by_role("button", name="None", exact=True).click()
    write(page)
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("alert")).to_contain_text("No community is chosen")
    page.get_by_label(chosen, exact=True).check()
    compare(page)
    assert names(page) == [chosen]
    assert page.get_by_role("alert").inner_text() == ""


def test_the_filter_narrows_the_list_and_its_buttons(page):
    every = page.locator("#community-list bdi").all_inner_texts()
    assert page.locator("#num-chosen").inner_text() == f"{len(every)} of {len(every)} chosen"
    search = page.get_by_label("Filter communities")
    search.fill(every[-1].upper())
    shown = page.locator("#community-list label:visible bdi").all_inner_texts()
    assert every[-1] in shown and len(shown) < len(every)
    page.get_by_role("button", name="None shown").click()
    assert page.locator("#num-chosen").inner_text() == f"{len(every) - len(shown)} of {len(every)} chosen"
    search.fill("")
    unchecked = page.locator("#community-list label:not(:has(:checked)) bdi").all_inner_texts()
    assert unchecked == shown
    page.get_by_role("button", name="All", exact=True).click()
    assert page.locator("#community-list input:not(:checked)").count() == 0


def test_a_changed_question_marks_the_answer_as_old(page):
    compare(page)
    old = page.locator("#stale")
    assert not old.is_visible()
    page.get_by_label("Answer A", exact=True).fill("Something else.")
    assert old.is_visible()
    page.get_by_label("Answer A", exact=True).fill(ANSWER_A)
    assert not old.is_visible()


def test_sliders_steer_as_the_service_does(page, api):
    compare(page)
    first, second, *others = names(page)
    slider(page, first).press("End")
    slider(page, second).fill("25")
    for other in others:
        slider(page, other).press("Home")
    weights = dict.fromkeys(others, 0.0) | {first: 0.8, second: 0.2}
    steered = api("/v1/compare", question(weights))["steered"]
    assert share(page.locator("#steered").inner_text()) == pytest.approx(steered, abs=1e-3)
    shares = page.locator("#rows .share").all_inner_texts()
    assert shares == ["80.0%", "20.0%", *["0.0%"] * len(others)]
    assert slider(page, second).get_attribute("aria-valuetext") == "20.0%"


def test_copied_json_is_a_request_with_these_weights(page, api):
    compare(page)
    slider(page, names(page)[0]).fill("93")
    page.get_by_role("button", name="Copy as JSON").click()
    page.get_by_role("button", name="Copied").wait_for()
    body = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert body == question(body["communities"])
    assert list(body["communities"]) == names(page)
    assert math.fsum(body["communities"].values()) == pytest.approx(1, abs=1e-6)
    steered = api("/v1/compare", body)["steered"]
    assert share(page.locator("#steered").inner_text()) == pytest.approx(steered, abs=1e-3)


def test_no_weights_are_no_number(page):
    compare(page)
    page.get_by_role("button", name="All to 0").click()
    assert page.locator("#steered").inner_text() == "no weights"
    assert page.get_by_role("button", name="Copy as JSON").is_disabled()
    page.get_by_role("button", name="Equal weights").click()
    assert page.locator("#steered").inner_text().endswith("%")


def test_a_reload_restores_everything(page):
    texts = {"prompt": f"{PROMPT}\n\n100% & more + ünïcode 東京 #x", "answer_a": ANSWER_A, "answer_b": HOSTILE}
    page.locator("#community-list input").first.uncheck()
    compare(page, **texts)
    slider(page, names(page)[0]).fill("7")
    before = (names(page), page.locator("#steered").inner_text(), page.locator("#num-chosen").inner_text())
    expect(page).to_have_url(re.compile("weight=7"))
    page.reload()
    wait_for_answer(page)
    assert (names(page), page.locator("#steered").inner_text(), page.locator("#num-chosen").inner_text()) == before
    restored = [page.locator(field).input_value() for field in ("#prompt", "#response-a", "#response-b")]
    assert restored == list(texts.values())
    assert slider(page, names(page)[0]).input_value() == "7"
    assert not page.locator("#community-list input").first.is_checked()


def test_a_copied_link_compares_by_itself_once_there_is_a_token(page, visit, service_token):
    compare(page)
    page.get_by_role("button", name="Copy link").click()
    page.get_by_role("button", name="Copied").wait_for()
    link = urlsplit(page.evaluate("navigator.clipboard.readText()"))
    assert link.query == "" and parse_qs(link.fragment)["prompt"] == [PROMPT]
    other = visit(f"#{link.fragment}")
    other.get_by_label("Token", exact=True).wait_for()
    assert not other.locator("#answer").is_visible()
    sign_in(other, service_token)
    wait_for_answer(other)
    assert names(other) == names(page)


def test_a_token_is_asked_for_and_kept_in_the_tab_alone(visit, service_token):
    page = visit()
    field = page.get_by_label("Token", exact=True)
    field.wait_for()
    assert field.get_attribute("type") == "password" and field.get_attribute("autocomplete") == "off"
    expect(field).to_be_focused()
    sign_in(page, service_token)
    compare(page)
    assert not field.is_visible() and field.input_value() == ""
    assert service_token not in page.url
    assert page.evaluate("Object.values(sessionStorage)") == [service_token]
    assert page.evaluate("localStorage.length + document.cookie.length") == 0


def test_a_wrong_token_is_refused_aloud(visit, service_url, service_token):
    wrong = "x" * len(service_token)
    refusal = httpx.get(f"{service_url}/v1/communities", headers={"Authorization": f"Bearer {wrong}"}, timeout=60)
    page = visit()
    page.get_by_label("Token", exact=True).fill(wrong)
    page.get_by_role("button", name="Use token").click()
    expect(page.get_by_role("alert")).to_have_text(refusal.json()["error"])
    assert page.get_by_label("Token", exact=True).is_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_hostile_texts_are_texts(visit, service_token):
    state = {"prompt": HOSTILE, "a": HOSTILE, "b": ANSWER_B, "community": HOSTILE, "weight": f"99:{HOSTILE}"}
    page = visit(f"#{urlencode(state, quote_via=quote)}")
    sign_in(page, service_token)
    assert HOSTILE in page.locator("#unknown").inner_text()
    assert page.locator("#response-a").input_value() == HOSTILE
    page.get_by_role("button", name="All", exact=True).click()
    compare(page, prompt=HOSTILE, answer_a=HOSTILE)
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("fragment", ["#weight=abc&weight=:&weight=999:Nobody&prompt", "#%E0%A4%A&&=", "#community="])
def test_broken_links_are_survived(visit, service_token, fragment):
    page = visit(fragment)
    sign_in(page, service_token)
    page.get_by_role("button", name="All", exact=True).click()
    compare(page)
    assert page.locator("#rows .row").count() == page.locator("#community-list input").count()


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_scrolls_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    compare(page, prompt="long" * 400, answer_a="WWWW" * 300)
    page.evaluate("document.querySelectorAll('details').forEach((details) => (details.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert all(row.bounding_box()["width"] > 80 for row in page.locator("#rows .track").all())


def test_light_and_dark_are_readable(visit, service_token):
    for scheme, is_dark in (("light", False), ("dark", True)):
        page = visit(color_scheme=scheme)
        sign_in(page, service_token)
        compare(page)
        colours = "(style) => [style.color, style.backgroundColor].map((colour) => colour.match(/\\d+/g).map(Number))"
        ink, paper = page.evaluate(f"({colours})(getComputedStyle(document.body))")
        assert (luminance(paper) < luminance(ink)) is is_dark
        for selector in (".note", ".range", ".mark"):
            soft = page.evaluate(f"({colours})(getComputedStyle(document.querySelector('{selector}')))")[0]
            assert contrast(soft, paper) >= 4.5, f"{selector} in the {scheme} scheme"


def luminance(colour):
    shares = [value / 255 for value in colour[:3]]
    red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_keyboard_is_enough(visit, service_token):
    page = visit()
    expect(page.get_by_label("Token", exact=True)).to_be_focused()
    page.keyboard.type(service_token)
    page.keyboard.press("Enter")
    page.locator("#community-list label").first.wait_for(state="attached")
    page.keyboard.type(PROMPT)
    for answer in (ANSWER_A, ANSWER_B):
        page.keyboard.press("Tab")
        page.keyboard.type(answer)
    assert page.evaluate("document.activeElement.id") == "response-b"
    page.keyboard.press("Control+Enter")
    wait_for_answer(page)
    tab_to(page, "Copy link")
    tab_to(page, f"Weight of {names(page)[0]}")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    before = page.locator("#rows .share").first.inner_text()
    page.keyboard.press("ArrowRight")
    assert share(page.locator("#rows .share").first.inner_text()) > share(before)


def tab_to(page, name):
    label = "document.activeElement.ariaLabel ?? document.activeElement.textContent"
    for _ in range(100):
        page.keyboard.press("Tab")
        if page.evaluate(label) == name:
            return
    pytest.fail(f"no Tab leads to {name}")


def test_every_input_and_button_has_a_name(page):
    compare(page)
    nameless = """[...document.querySelectorAll("input, textarea, button, summary")].filter((field) =>
        !(field.ariaLabel || [...field.labels ?? []].some((label) => label.textContent.trim()) || field.textContent.trim())
    ).map((field) => field.outerHTML)"""
    assert page.evaluate(nameless) == []


def test_waiting_is_shown(page):
    held = []

    def hold(route):
        held.append(route)

    page.route("**/v1/compare", hold)
    write(page)
    button = page.get_by_role("button", name="Compare")
    button.click()
    page.locator("#results[aria-busy=true]").wait_for(state="attached")
    assert button.is_disabled()
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    assert page.locator("#status").inner_text() == "Comparing…"
    assert len(held) == 1, "one question at a time"
    held[0].continue_()
    wait_for_answer(page)
    assert button.is_enabled()


def test_a_refusal_of_the_service_is_shown(page):
    write(page, answer_a="a bell\x07")
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("alert")).to_contain_text("control character U+0007")
    assert not page.locator("#answer").is_visible()


def test_an_unknown_error_is_shown_with_what_the_server_says(page):
    refusals = [
        (503, {"Retry-After": "7"}, '{"error": "no replica yet"}', "no replica yet (try again in 7 s)"),
        (500, {}, "<h1>Internal Server Error</h1>", "HTTP 500, and no reason given"),
        (500, {}, json.dumps({"error": HOSTILE}), HOSTILE),
    ]
    write(page)
    for status, headers, body, shown in refusals:
        page.unroute_all()
        answer = {"status": status, "headers": headers, "body": body}
        page.route("**/v1/compare", lambda route, *_, answer=answer: route.fulfill(**answer))
        page.get_by_role("button", name="Compare").click()
        expect(page.get_by_role("alert")).to_have_text(shown)
        assert page.get_by_role("button", name="Compare").is_enabled()


def test_facts_of_every_model_are_there(page, api):
    communities = api("/v1/communities")["communities"]
    models = page.locator("#models details")
    assert models.locator("bdi").all_text_contents() == [community["name"] for community in communities]
    for community, model in zip(communities, models.all(), strict=True):
        terms, facts = model.locator("dt").all_text_contents(), model.locator("dd").all_text_contents()
        described = dict(zip(terms, facts, strict=True))
        assert described["Kind"] == community["kind"] and described["Weights"] == community["model"]
        pairs = community["num_validation_pairs"]
        assert described["Validation pairs"] == ("none" if pairs is None else str(pairs))
        assert community["facts"].items() <= described.items()
        if community["temperature"] is not None:
            shown = float(described["Temperature"].split(" ")[0])
            assert shown == pytest.approx(community["temperature"], rel=1e-3)


def test_the_page_is_served_under_a_strict_policy(service_url):
    for path in ("/", "/page.css", "/page.js"):
        policy = httpx.get(service_url + path, timeout=60).raise_for_status().headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
