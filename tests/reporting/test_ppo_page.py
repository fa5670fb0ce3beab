"""The page of policies: what it says of runs that were written by hand, and what it draws."""

import math
import re
from html import unescape

import pytest

from scpo_ray.core.bootstrap import Estimate
from scpo_ray.reporting import ppo_figures
from scpo_ray.reporting.figures import to_svg
from scpo_ray.reporting.ppo_page import (
    BestOfN,
    Measurement,
    PpoPage,
    SampleRow,
    TrainedPolicy,
    render_ppo,
    signed,
    signed_interval,
)

HERE, THERE = "Here", "<b>There</b>"


def estimate(value: float, half_width: float = 0.1) -> Estimate:
    return Estimate(value, value - half_width, value + half_width, 64, 16)


def measurement(policy: str, kind: str, community: str, gain: float, *, start: float = 0.0, half_width: float = 0.1):
    return Measurement(policy, kind, community, start, start + gain, estimate(gain, half_width))


def step(number: int, **others: float) -> dict[str, float]:
    shares = {"generation_share": 0.5, "scoring_share": 0.125, "training_share": 0.25, "synchronising_share": 0.0625}
    return {
        "reward": 0.1 * number,
        "kl": 0.5 * number,
        "kl_coefficient": 0.05,
        "length": 20.0 + number,
        "unfinished_share": 0.25,
        "empty_share": 0.0,
        "entropy": 2.0,
        "clipped_share": 0.1,
        "engine_difference": 0.001 * number,
        "importance_max": 1.0 + number / 100,
        "canary_difference": 0.0001,
        "seconds": 2.0,
        "tokens_per_second": 100.0,
        **shares,
        **others,
    }


def trained(name: str, *communities: str, composition: str = "each", num_steps: int = 4, kinds: tuple[str, ...] = ()):
    """Its steps hold the rewards of its communities, and of `kinds`: "utility of", "held out reward of" (odd steps)."""
    steps = []
    for number in range(num_steps):
        measured = {f"reward of {community}": 0.2 * number for community in communities}
        if "utility of" in kinds:
            measured |= {f"utility of {community}": -0.3 * number for community in communities}
        if "held out reward of" in kinds and number % 2:
            measured |= {f"held out reward of {community}": 0.1 * number for community in communities}
        steps.append(step(number, **measured))
    return TrainedPolicy(name, composition, communities, steps)


LONE = trained(HERE, HERE)


def page(**changes) -> PpoPage:
    """One policy for one community, measured under its own model and by nothing else."""
    values = {
        "title": "Policies",
        "run_dir": "runs/here",
        "seed": 0,
        "created": "2026-01-01T00:00:00Z",
        "start": "runs/here/start_policy",
        "policies": [LONE],
        "measured": [measurement(HERE, "proxy", HERE, 0.5)],
        "kl": {},
        "samples": [],
        "best_of_n": [],
        "num_prompts": 16,
        "responses_per_prompt": 4,
        "num_left_out": 0,
    }
    return PpoPage(**(values | changes))


def full_page() -> PpoPage:
    """Two communities' policies and a composed one, everything measured."""
    both = (HERE, THERE)
    kinds = ("utility of", "held out reward of")
    policies = [trained(name, name, kinds=kinds) for name in both]
    policies.append(trained("max_min", *both, composition="max_min", kinds=kinds))
    return page(
        policies=policies,
        measured=[
            measurement(policy.name, kind, community, 0.25 if community in policy.communities else -0.75)
            for policy in policies
            for kind in ("proxy", "held out", "truth")
            for community in both
        ],
        kl={policy.name: 3.0 for policy in policies},
        samples=[
            SampleRow(
                "Is <i>this</i> a prompt?",
                {"start": "<script>alert(1)</script>", HERE: "a word " * 300, "max_min": ""},
                {"start": {HERE: -0.5, THERE: 0.25}, HERE: {HERE: 1.5}},
            )
        ],
        best_of_n=[
            BestOfN(HERE, kind, n, 0.1 * n, estimate(0.1 * n), math.log(n) - (n - 1) / n)
            for n in (1, 4)
            for kind in ("proxy", "truth")
        ],
        num_left_out=3,
    )


def story(*measured: Measurement, **changes) -> str:
    """What is said of the first policy."""
    return page(measured=measured, **changes).sentences[1]


def headings(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


def rows_below(html: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, tags taken out."""
    body = html.split(f"<h2>{heading}</h2>")[1].split("<tbody>")[1].partition("</tbody>")[0]
    return [
        [
            " ".join(unescape(re.sub("<[^>]+>", "", cell)).split())
            for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)
        ]
        for row in re.findall("<tr.*?</tr>", body)
    ]


def texts_of(svg: str) -> list[str]:
    return [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def test_what_is_measured_is_said_first():
    assert page().sentences[0] == (
        "1 policy was trained by PPO from runs/here/start_policy and compared with it on 16 test prompts that none was "
        "trained on, responses to each: 4."
    )
    assert full_page().sentences[0].startswith("3 policies were trained by PPO")
    assert full_page().sentences[0].endswith("3 prompts were too long and left out.")
    assert page(num_left_out=1).sentences[0].endswith(" 1 prompt was too long and left out.")


@pytest.mark.parametrize(
    ("gain", "half_width", "said"),
    [
        (0.5, 0.1, "gained for Here (+0.50 [+0.40, +0.60], interval above zero)."),
        (-0.5, 0.1, "lost for Here (−0.50 [−0.60, −0.40], interval below zero)."),
        (0.05, 0.1, "shows no change for Here (+0.05 [−0.05, +0.15], the interval includes zero)."),
        (0.05, math.nan, "shows no change for Here (+0.05, no interval)."),
    ],
)
def test_whether_a_policy_gained(gain, half_width, said):
    told = story(measurement(HERE, "proxy", HERE, gain, half_width=half_width))
    assert told == "Under the reward model that it was trained on, policy Here " + said


def test_what_others_gained_and_lost():
    told = story(
        measurement(HERE, "proxy", HERE, 0.5),
        measurement(HERE, "proxy", "Yonder", -0.3),
        measurement(HERE, "proxy", "Afar", 0.01),
        measurement(HERE, "proxy", "Beyond", -0.2),
        measurement("another policy", "proxy", "Elsewhere", -0.9),
    )
    assert told.endswith(
        " Under the models of others it lost for Yonder (−0.30 [−0.40, −0.20], interval below zero) and Beyond (−0.20 "
        "[−0.30, −0.10], interval below zero); shows no change for Afar (+0.01 [−0.09, +0.11], the interval includes zero)."
    )


@pytest.mark.parametrize(
    ("proxy", "truth", "said"),
    [
        (0.5, 0.3, "The true utility followed: Here +0.30 [+0.20, +0.40]."),
        (
            0.5,
            -0.3,
            "The reward gained and the true utility fell, which is over-optimisation: Here −0.30 [−0.40, −0.20].",
        ),
        (
            0.5,
            0.05,
            "The reward gained and the true utility did not, as far as these prompts can tell (over-optimisation, or too few "
            "prompts to see a gain): Here +0.05 [−0.05, +0.15].",
        ),
        (0.05, 0.3, "Change in true utility, where the reward itself shows no gain: Here +0.30 [+0.20, +0.40]."),
        (-0.5, -0.3, "Change in true utility, where the reward itself shows no gain: Here −0.30 [−0.40, −0.20]."),
    ],
)
def test_whether_truth_followed(proxy, truth, said):
    told = story(measurement(HERE, "proxy", HERE, proxy), measurement(HERE, "truth", HERE, truth))
    assert told.split("zero). ")[1] == said


def test_a_truth_without_an_interval_is_no_gain_either():
    told = story(measurement(HERE, "proxy", HERE, 0.5), measurement(HERE, "truth", HERE, 0.9, half_width=math.nan))
    assert "the true utility did not, as far as these prompts can tell" in told and told.endswith("Here +0.90.")


def test_held_out_and_truth_are_told_apart_and_by_community():
    both = trained("mixture", HERE, "Yonder", composition="mixture")
    told = story(
        *(measurement("mixture", "proxy", community, 0.5) for community in (HERE, "Yonder")),
        *(measurement("mixture", "held out", community, 0.4) for community in (HERE, "Yonder")),
        measurement("mixture", "truth", HERE, 0.3),
        measurement("mixture", "truth", "Yonder", -0.3),
        policies=[both],
    )
    assert told.startswith("Under the reward models that it was trained on, policy mixture gained for Here (+0.50")
    assert (
        "The reward under a held-out model followed: Here +0.40 [+0.30, +0.50] and Yonder +0.40 [+0.30, +0.50]. The true "
        "utility followed: Here +0.30 [+0.20, +0.40]. The reward gained and the true utility fell, which is "
        "over-optimisation: Yonder −0.30 [−0.40, −0.20]."
    ) in told
    assert "Worst off" not in told, "only max_min is for the worst-off"


def test_what_became_of_the_worst_off():
    both = trained("max_min", HERE, "Yonder", composition="max_min")
    here = measurement("max_min", "proxy", HERE, 0.25, start=0.5)
    moved = story(here, measurement("max_min", "proxy", "Yonder", 2.0, start=-1.0), policies=[both])
    assert moved.endswith(
        "Worst off under the start policy was Yonder with a mean of −1.00; its mean is now 1.00; the lowest is now Here's "
        "with 0.75."
    )
    stayed = story(here, measurement("max_min", "proxy", "Yonder", 0.5, start=-1.0), policies=[both])
    assert stayed.endswith("its mean is now −0.50, which is still the lowest.")


def test_the_price_and_what_no_training_gives():
    best = [
        BestOfN(HERE, "proxy", 16, 0.9, estimate(0.8), 1.8351),
        BestOfN(HERE, "proxy", 2, 0.2, estimate(0.1), 0.1931),
        BestOfN(HERE, "truth", 64, 0.2, estimate(0.1), 3.17),
        BestOfN("Yonder", "proxy", 64, 0.2, estimate(0.1), 3.17),
    ]
    assert story(measurement(HERE, "proxy", HERE, 0.5), kl={HERE: 8.314}, best_of_n=best).endswith(
        " It paid a KL divergence of 8.31 nats per response. Without training, the best of 16 responses of the start policy "
        "changes the reward by +0.80 [+0.70, +0.90] at no more than 1.84 nats."
    )


def test_what_is_not_shown_is_said_last():
    once = "Each policy was trained once: what another seed would give is not shown, and no interval holds it."
    assert page().sentences[-1] == (
        f"{once} The rewards are those of the very models that the policies were trained on: what the members themselves "
        "would prefer is not shown."
    )
    held_out = [measurement(HERE, kind, HERE, 0.5) for kind in ("proxy", "held out")]
    assert page(measured=held_out).sentences[-1] == (
        f"{once} A held-out model is a model too: what the members themselves would prefer is not shown."
    )
    assert full_page().sentences[-1] == once
    assert story() == "Policy Here was not measured under the reward model that it was trained on."


def test_the_matrix_holds_its_numbers_and_marks_what_is_clear():
    measured = [
        measurement(HERE, "proxy", HERE, 1.25),
        measurement(HERE, "proxy", "Yonder", -0.75),
        measurement(HERE, "proxy", "Afar", 0.05),
        measurement(HERE, "proxy", "Nowhere", math.nan),
        measurement(HERE, "truth", HERE, -0.33),
    ]
    proxy, truth = (
        texts_of(svg) for caption, svg in page(measured=measured).figures() if caption.startswith("Who gains")
    )
    assert {"+1.25*", "−0.75*", "+0.05"} <= set(proxy) and "−0.33*" not in proxy
    assert "−0.33*" in truth and "+1.25*" not in truth
    assert len([text for text in proxy if re.fullmatch(r"[+−]\d\.\d\d\*?", text)]) == 3, "no number, no cell"


def test_only_what_a_policy_was_trained_for_is_framed():
    rows = [
        {"policy": "p", "community": name, "value": value, "is_clear": True, "is_own": name == HERE}
        for name, value in ((HERE, 0.5), ("Yonder", -2.0))
    ]
    chart = ppo_figures.steerability(rows, unit="Utility")
    assert chart.to_dict()["layer"][0]["encoding"]["color"]["scale"]["domain"] == [-2, 2], "white is zero"
    frames = re.findall(r'<path[^>]*fill-opacity="0"[^>]*stroke="#1b1d1f"[^>]*>', to_svg(chart))
    assert len(frames) == 1


def test_smoothing_keeps_lines_ends_and_means():
    assert ppo_figures.smoothed([1.0, 2.0, 3.0, 4.0, 5.0]) == [1, 2, 3, 4, 5]
    assert ppo_figures.smoothed([0.0, 0.0, 10.0, 0.0, 0.0]) == pytest.approx([0, 10 / 3, 2, 10 / 3, 0])
    spike = [0.0] * 30 + [5.0] + [0.0] * 69
    assert [value > 0 for value in ppo_figures.smoothed(spike)].index(True) == 25, "a twentieth of 100 on each side"
    assert ppo_figures.smoothed([]) == [] and ppo_figures.smoothed([7.0]) == [7.0]


def test_gains_are_over_the_first_steps_that_were_measured():
    assert ppo_figures.over_first([1.0, 2.0, 4.0]) == [0, 1, 3]
    late = ppo_figures.over_first([math.nan, 3.0, math.nan, 5.0])
    assert late[1::2] == [0, 2] and math.isnan(late[0]) and math.isnan(late[2])
    assert ppo_figures.over_first([float(number) for number in range(30)])[0] == -1, "the first three of thirty"
    assert ppo_figures.over_first([float(number) for number in range(100)])[0] == -2, "never more than five"


def test_reward_and_truth_are_drawn_through_the_steps_that_have_them():
    chart = dict(full_page()._charts())
    truth, held_out = (
        next(chart[name] for name in chart if f"and the {words}," in name).to_dict()
        for words in (
            "true utility",
            "reward of a held-out model",
        )
    )
    lines: dict[str, dict[float, float]] = {}
    for row in truth["data"]["values"]:
        if row["policy"] == HERE:
            lines.setdefault(row["line"], {})[row["kl"]] = row["value"]
    assert lines["reward of its community's model"] == pytest.approx({0: 0, 0.5: 0.2, 1: 0.4, 1.5: 0.6})
    assert lines["true utility"] == pytest.approx({0: 0, 0.5: -0.3, 1: -0.6, 1.5: -0.9})
    beside = [row for row in held_out["data"]["values"] if row["line"] == "reward of a held-out model"]
    assert {row["policy"] for row in beside} == {HERE, THERE}, "not where there are several communities"
    ours = {row["step"]: row["value"] for row in beside if row["policy"] == HERE}
    assert ours == pytest.approx({2: 0, 4: 0.2})


def test_best_of_n_stands_at_its_kl_in_its_community():
    drawn = full_page()._charts()[0][1].to_dict()["data"]["values"]
    points = [(row["community"], row["text"], row["kl"], row["value"]) for row in drawn if row["kind"] == "best"]
    assert points == [(HERE, "n = 1", 0, 0.1), (HERE, "n = 4", pytest.approx(math.log(4) - 0.75), 0.4)]
    ends = [(row["community"], row["policy"], row["kl"]) for row in drawn if row["kind"] == "end"]
    assert ends == [(HERE, HERE, 1.5), (THERE, THERE, 1.5), (HERE, "max_min", 1.5), (THERE, "max_min", 1.5)]


def test_a_step_without_a_number_is_left_out():
    """A batch without text has no reward; it must neither shift the others nor reach the SVG."""
    steps = [step(number, **{f"reward of {HERE}": math.nan if number == 1 else float(number)}) for number in range(3)]
    steps[2]["entropy"] = math.nan
    shown = page(policies=[TrainedPolicy(HERE, "each", (HERE,), steps)])
    drawn = shown._charts()[0][1].to_dict()["data"]["values"]
    assert [(row["step"], row["value"]) for row in drawn if row["kind"] == "step"] == [(1, 0), (3, 2)]
    assert "NaN" not in render_ppo(shown)


def test_time_is_shared_by_seconds_and_the_rest_is_named():
    steps = [
        step(0, seconds=1.0, generation_share=0.9, scoring_share=0.0, training_share=0.1, synchronising_share=0.0),
        step(1, seconds=3.0, generation_share=0.1, scoring_share=0.2, training_share=0.5, synchronising_share=0.0),
    ]
    policy = TrainedPolicy(HERE, "each", (HERE,), steps)
    assert policy.over_time("generation_share") == pytest.approx(0.3)
    caption, chart = page(policies=[policy])._charts()[-1]
    assert caption.startswith("Where the time of the steps goes")
    shown = {row["phase"]: (row["share"], row["text"]) for row in chart.to_dict()["data"]["values"]}
    assert {phase: share for phase, (share, _) in shown.items()} == pytest.approx(
        {"generation": 30, "scoring": 15, "training": 40, "synchronising": 0, "the rest": 15}
    )
    assert [text for _, text in shown.values()] == ["30", "15", "40", "", "15"], "no number where there is no room"


def test_which_figures_there_are():
    openings = [caption.split(",")[0].split(":")[0] for caption, _ in page().figures()]
    assert openings == [
        "Reward under a community's model against KL from the start policy",
        "Who gains from whose policy",
        "Training",
        "Where the time of the steps goes",
    ]
    assert "Diamonds" not in page().figures()[0][0] and "Diamonds" in full_page().figures()[0][0]
    assert len(full_page().figures()) == 8, "truth and held out beside the reward, and a matrix of each kind"
    nothing = page(policies=[TrainedPolicy(HERE, "each", (HERE,), [])], measured=[])
    assert nothing.figures() == []


def test_absent_parts_leave_no_heading():
    assert headings(render_ppo(page())) == ["Gains and losses", "Figures", "The runs"]
    assert headings(render_ppo(full_page())) == [
        "Gains and losses",
        "Figures",
        "Best of n",
        "Responses before and after",
        "The runs",
    ]
    assert headings(render_ppo(page(measured=[], policies=[]))) == []
    bare = render_ppo(page())
    assert "Held-out model" not in bare and "True utility" not in bare and "true utility" not in bare


def test_texts_are_escaped_and_nothing_is_loaded():
    html = render_ppo(full_page())
    assert "<script" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert THERE not in html and "&lt;b&gt;There&lt;/b&gt;" in html
    assert "<i>this" not in html and "&lt;i&gt;this" in html
    assert "src=" not in html and "https:" not in html


def test_responses_stand_side_by_side_with_their_rewards():
    html = render_ppo(full_page())
    columns = re.findall(
        r'<div><span class="who">(.*?)</span>\s*<div class="text" dir="auto">(.*?)</div>(.*?)</div>', html, re.S
    )
    assert [name for name, _, _ in columns] == ["start", HERE, "max_min"]
    assert columns[1][1] == "a word " * 300, "long texts are whole"
    assert columns[2][1] == '<span class="range">(no text)</span>'
    rewards = [unescape(re.sub("<[^>]+>", "", below)).strip() for _, _, below in columns]
    assert rewards == [f"{HERE} −0.50 · {THERE} +0.25", "Here +1.50", ""]


def test_the_tables():
    html = render_ppo(full_page())
    gains = rows_below(html, "Gains and losses")
    own, other = ["0.00", "0.25", "+0.25 [+0.15, +0.35]"], ["0.00", "−0.75", "−0.75 [−0.85, −0.65]"]
    assert gains[0] == [HERE, HERE, *own, *own, *own]
    assert gains[1] == ["", THERE, *other, *other, *other]
    assert [row[0] for row in gains] == [HERE, "", THERE, "", "max_min", ""]
    best = rows_below(html, "Best of n")
    assert best[1] == ["", "4", "0.64", *["0.40", "+0.40 [+0.30, +0.50]"] * 2]
    runs = rows_below(html, "The runs")
    time = ["8.0 s", "100", "50.0%", "12.5%", "25.0%", "6.2%"]
    assert runs[2] == ["max_min", f"{HERE}, {THERE} max_min", "4", "3.00", *time, "0.003", "0.0001", "1.03"]
    assert rows_below(render_ppo(page()), "The runs")[0][3] == "—", "its KL was not measured"


def test_a_measurement_that_is_missing_is_a_dash():
    measured = [measurement(HERE, "proxy", HERE, 0.5), measurement(HERE, "truth", "Yonder", 0.1)]
    first, second = rows_below(render_ppo(page(measured=measured)), "Gains and losses")
    assert first[2:] == ["0.00", "0.50", "+0.50 [+0.40, +0.60]", "—", "—", "—"]
    assert second[2:5] == ["—", "—", "—"]


def test_numbers_carry_their_sign():
    assert [signed(value) for value in (0.5, -0.126, 0.0, None, math.nan)] == ["+0.50", "−0.13", "0.00", "—", "—"]
    assert signed_interval(Estimate(0, -0.1, 0.42, 4, 2)) == "[−0.10, +0.42]"
    assert signed_interval(Estimate(0, math.nan, math.nan, 4, 1)) == "—"
