import base64
import csv
import hashlib
import math
import re
from html import unescape
from io import StringIO

import pyarrow as pa
import pytest
from rich.console import Console

from scpo_ray.artifacts import Recipe, RunDirectory
from scpo_ray.config import Config, TuneConfig
from scpo_ray.errors import ArtifactError
from scpo_ray.evaluation.comparisons import COMPARISONS
from scpo_ray.evaluation.distances import DISTANCES
from scpo_ray.evaluation.matrices import TRANSFER
from scpo_ray.evaluation.measures import DIAGNOSTICS, METRICS
from scpo_ray.evaluation.opinions import OPINIONS
from scpo_ray.records import ATLAS_PAIR_TRUTH, DECISIONS, EVALUATION, PAIRS, REJECTED_ROWS, RESPONSES, ModelName, table
from scpo_ray.stages import recipes, report
from scpo_ray.training.model_card import LIMITS, MEASURED

NAN = math.nan
SCRIPT = "<script>alert('from the data')</script>"
UP = (0.022, 0.004, 0.040)
DOWN = (-0.031, -0.050, -0.012)
FLAT = (0.003, -0.010, 0.016)
MAIN = "filter_weight"
TAU_AND_BETA = ("0.7", "1.1")
CALDER = "Calder <Isles>"


@pytest.fixture
def config(tmp_path) -> Config:
    return Config.model_validate(
        {
            "run_dir": str(tmp_path / "run"),
            "format": {"max_tokens": 64},
            "select": {"controls": ["none"]},
            "report": {"title": f"A & B {SCRIPT}"},
        }
    )


@pytest.fixture
def run_directory(config) -> RunDirectory:
    directory = RunDirectory(config.run_dir)
    _write_prepared(config, directory)
    _write(recipes.global_model(config, directory), directory, statistics={"wall_time_s": 93.4})
    _write(recipes.scores(config, directory), directory)
    _write_decisions(config, directory)
    trained = {}
    arms = {arm.name: arm for arm in config.select.arms}
    for name in (ModelName(MAIN, "Brevia"), ModelName(MAIN, CALDER), ModelName("none", "Brevia")):
        recipe = recipes.reward_model(config, directory, arms[name.arm], name)
        counts = {
            "num_pairs": 2,
            "num_steps": 51,
            "num_tokens": 102036,
            "num_padded_tokens": 105627,
            "num_non_embedding_parameters": 1000,
            "wall_time_s": 2.17,
        }
        _write(recipe, directory, statistics=counts)
        trained[name] = directory.require(recipe.name, job="train")
    _write(
        recipes.evaluation(config, directory, trained),
        directory,
        tables=_evaluation_tables(),
        jsons={"communities.json": {}},
    )
    return directory


def _evaluation_tables() -> dict[str, pa.Table]:
    comparison = {"arm": MAIN, "against": "global", "community": CALDER, "metric": "overall", "difference": 0.003}
    comparison |= {"low": -0.01, "high": 0.016, "p_value": 0.6, "p_holm": 1.0, "detectable": 0.062}
    names = ("mean_margin", "adaptive_calibration_error", "temperature", "calibration_error_at_temperature")
    measures = [
        {"arm": MAIN, "community": "Brevia", "replicate": 0, "measure": name, "value": value}
        for name, value in zip(
            (*names, "length_correlation", "share_of_ties", "truncated_share"),
            (-1.5, 0.2, 3, 0.1, NAN, 0, 0.25),
            strict=True,
        )
    ]
    rewards = [
        {"pair_id": f"b{n}", "community": "Brevia", "model": model, "reward_chosen": n / 9, "reward_rejected": 0.3}
        for n in range(9)
        for model in ("global", f"{MAIN}/Brevia")
    ]
    return {
        "metrics.parquet": pa.Table.from_pylist(_metrics(), schema=METRICS),
        "comparisons.parquet": pa.Table.from_pylist([comparison], schema=COMPARISONS),
        "diagnostics.parquet": pa.Table.from_pylist(measures, schema=DIAGNOSTICS),
        "transfer.parquet": TRANSFER.empty_table(),
        "opinions.parquet": OPINIONS.empty_table(),
        "distances.parquet": pa.Table.from_pylist(_distances(), schema=DISTANCES),
        "rewards.parquet": pa.Table.from_pylist(rewards, schema=EVALUATION),
    }


def _write(recipe: Recipe, directory: RunDirectory, *, tables=None, statistics=None, jsons=None) -> None:
    with recipe.making(directory) as draft:
        for name, value in (jsons or {}).items():
            draft.write_json(name, value)
        for name, content in (tables or {}).items():
            draft.write_table(name, content)
        draft.write_json("marker.json", recipe.name)
        (draft.folder / "README.md").write_text(f"# Card\n\n{MEASURED}\n\nNot yet.\n\n{LIMITS}\n\nRead them.\n")
        draft.statistics |= statistics or {}


def _write_prepared(config: Config, directory: RunDirectory) -> None:
    texts = [("r1", SCRIPT), ("r2", "a plain answer")]
    context = [{"role": "user", "content": "Where is <b>north</b>?"}]
    _write(
        recipes.prepared(config),
        directory,
        tables={
            "responses.parquet": table(
                ({"response_id": name, "context": context, "response": text} for name, text in texts), RESPONSES
            ),
            "pairs.parquet": table(_pairs(), PAIRS),
            "pair_truth.parquet": table(
                ({"pair_id": "b1", "kind": "culture"}, {"pair_id": "b2", "kind": "noise"}), ATLAS_PAIR_TRUTH
            ),
            "rejected_rows.parquet": table(
                [{"source": "files", "file": "x.jsonl", "line": 7, "reason": "no chosen", "value": SCRIPT}],
                REJECTED_ROWS,
            ),
            "suspicious_rows.parquet": table([], REJECTED_ROWS),
        },
        statistics={
            "majority": ["Atlas"],
            "communities": {
                "Atlas": {"train": 4000, "validation": 500, "test": 1000},
                "Brevia": {"train": 3, "validation": 0, "test": 2},
                CALDER: {"train": 1, "validation": 0, "test": 1},
            },
            "sources": {
                "files": {
                    "rows_read": 12,
                    "rows_used": 11,
                    "rejected": {"no chosen": 1},
                    "excluded": {"ties (pairs)": 310},
                    "suspicious": 0,
                    "responses_mentioned": 22,
                    "merged_duplicates": 2,
                    "responses": 20,
                }
            },
            "leakage": {
                split: {
                    "annotator_in_train": 0.0,
                    "prompt_in_train": 1.0,
                    "prompt_group_in_train": 1.0,
                    "both_responses_in_train": 0.125,
                }
                for split in ("validation", "test")
            },
        },
    )


def _pairs() -> list[dict]:
    rows = [("b1", "Brevia", "train"), ("b2", "Brevia", "train"), ("b3", "Brevia", "train"), ("b4", "Brevia", "test")]
    return [
        {
            "pair_id": name,
            "interaction_id": f"i-{name}",
            "community": community,
            "annotator_id": None if community == CALDER else f"annotator-{name}",
            "chosen_id": "r1",
            "rejected_id": "r2",
            "score_chosen": 81.0,
            "score_rejected": 12.0,
            "split": split,
        }
        for name, community, split in (*rows, ("c1", CALDER, "train"), ("c2", CALDER, "test"))
    ]


def _write_decisions(config: Config, directory: RunDirectory) -> None:
    agreements = {"b1": 0.1, "b2": 0.6, "b3": 0.75, "b4": 0.4, "c1": 0.2, "c2": 0.3}
    weights = {"b1": 0.2, "b2": 1.0, "b3": 0.0, "b4": 0.8, "c1": 0.4, "c2": 0.6}
    for arm in config.select.arms:
        strategy = arm.name
        rows = [
            {
                "pair_id": pair["pair_id"],
                "community": pair["community"],
                "split": pair["split"],
                "global_reward_chosen": -1.5,
                "global_reward_rejected": 0.25,
                "agreement": agreements[pair["pair_id"]],
                "kept": strategy == "none" or agreements[pair["pair_id"]] < 0.7,
                "weight": 1.0 if strategy == "none" else weights[pair["pair_id"]],
            }
            for pair in _pairs()
        ]
        constants = {"agreement_threshold": 0.7, "weight_temperature": 1.1, "margin_temperature": 1.0}
        if strategy == "none":
            constants |= {"agreement_threshold": None, "weight_temperature": None}
        constants |= {"bias": -0.0234, "information": 0.51}
        share = {"num_kept": 2, "kept_share": {"train": 0.6667, "test": 1.0}, "effective_sample_size": 1.4}
        none = {"num_kept": 0, "kept_share": {"train": None, "test": None}, "effective_sample_size": 0.0}
        none |= {"constants": constants | {"bias": None, "information": None}}
        share |= {"constants": constants}
        names = ("Brevia", CALDER)
        _write(
            recipes.decisions(config, directory, arm),
            directory,
            tables={"decisions.parquet": table(rows, DECISIONS)},
            statistics={
                "communities": {"Brevia": share, CALDER: none},
                "content_hashes": {name: f"{strategy}-{name}" for name in names},
            },
        )


def _metrics() -> list[dict]:
    def rows(community: str, arm: str, **estimates) -> list[dict]:
        keys = ("value", "low", "high", "num_pairs", "num_clusters")
        return [
            {
                "community": community,
                "arm": arm,
                "metric": metric,
                "num_seeds": 1,
                **dict(zip(keys, values, strict=True)),
            }
            for metric, values in estimates.items()
        ]

    return [
        *rows("Brevia", "global", overall=(0.612, 0.58, 0.64, 474, 22), majority=(0.771, 0.76, 0.78, 1000, 40)),
        *rows(CALDER, "global", overall=(0.5, NAN, NAN, 6, 1), majority=(0.771, 0.76, 0.78, 1000, 40)),
        *rows(
            "Brevia",
            "filter_weight",
            overall=(0.634, 0.60, 0.67, 474, 22),
            overall_gain=(*UP, 474, 22),
            acquisition=(0.253, 0.2, 0.3, 184, 22),
            retention=(0.875, 0.85, 0.9, 290, 22),
            majority=(0.74, 0.72, 0.76, 1000, 40),
            majority_gain=(*DOWN, 1000, 40),
        ),
        *rows(
            "Brevia",
            "none",
            overall=(0.615, 0.58, 0.65, 474, 22),
            overall_gain=(*FLAT, 474, 22),
            acquisition=(0.303, 0.25, 0.35, 184, 22),
            retention=(0.813, 0.79, 0.83, 290, 22),
            majority=(0.6, 0.58, 0.62, 1000, 40),
            majority_gain=(-0.171, -0.19, -0.15, 1000, 40),
        ),
        *rows(
            CALDER,
            "filter_weight",
            overall=(0.333, NAN, NAN, 6, 1),
            overall_gain=(-0.166, NAN, NAN, 6, 1),
            acquisition=(NAN, NAN, NAN, 0, 0),
            retention=(0.5, NAN, NAN, 4, 1),
            majority=(0.74, 0.72, 0.76, 1000, 40),
            majority_gain=(*DOWN, 1000, 40),
        ),
    ]


def _distances() -> list[dict]:
    keys = ("community", "value", "low", "high", "num_pairs", "num_clusters")
    rows = [("Brevia", 0.159, 0.114, 0.207, 474, 22), (CALDER, 0.271, NAN, NAN, 6, 1)]
    return [dict(zip(keys, row, strict=True)) for row in rows]


def page_of(config: Config, failures=None) -> str:
    path = report.run(config, failures or {})
    assert path == f"{config.run_dir}/report.html"
    with open(path, encoding="utf-8") as file:
        return file.read()


def cells(html: str, start: str) -> list[list[str]]:
    """The body of the first table after `start`, as texts."""
    body = html[html.index(start) :].split("<tbody>", 1)[1].split("</tbody>", 1)[0]
    return [
        [
            " ".join(unescape(re.sub(r"<[^>]+>", " ", cell)).split())
            for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)
        ]
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.S)
    ]


@pytest.mark.usefixtures("run_directory")
class TestPage:
    def test_texts_from_data_are_shown_and_never_run(self, config):
        html = page_of(config, {ModelName("none", CALDER): SCRIPT})
        assert html.count("<script") == 1
        script = html.split("<script>")[1].split("</script>")[0]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in html, "the page's own script, and no other, may run"
        assert html.count("&lt;script&gt;alert(") >= 4  # title, failure, rejected row, response
        assert "Where is &lt;b&gt;north&lt;/b&gt;?" in html
        assert "Calder &lt;Isles&gt;" in html
        assert "Calder <Isles>" not in html

    def test_nothing_is_loaded_from_elsewhere(self, config):
        html = page_of(config)
        assert "default-src 'none'" in html
        assert not re.search(r"(src|href|url)\s*[=(]", html.replace("default-src", ""))

    def test_headline_numbers(self, config):
        assert cells(page_of(config), "<h2>Gains and losses") == [
            ["Brevia", "SCPO (filter + weight)", "474", "22", "61.2%", "63.4%", "+2.2 [+0.4, +4.0]", "above zero",
             "74.0%", "−3.1 [−5.0, −1.2]"],
            ["", "full fine-tuning", "474", "22", "61.2%", "61.5%", "+0.3 [−1.0, +1.6]", "spans zero",
             "60.0%", "−17.1 [−19.0, −15.0]"],
            ["Calder <Isles>", "SCPO (filter + weight)", "6", "1 prompts", "50.0%", "33.3%", "−16.6 —", "no interval",
             "74.0%", "−3.1 [−5.0, −1.2]"],
        ]  # fmt: skip

    def test_the_global_models_majority_accuracy_is_said_once(self, config):
        assert page_of(config).count("The global model itself gets 77.1% of the majority's 1,000 pairs right.") == 1

    def test_acquisition_and_retention(self, config):
        assert cells(page_of(config), "<h2>Acquisition and retention") == [
            ["Brevia", "SCPO (filter + weight)", "25.3% [20.0, 30.0]", "184", "87.5% [85.0, 90.0]", "290"],
            ["", "full fine-tuning", "30.3% [25.0, 35.0]", "184", "81.3% [79.0, 83.0]", "290"],
            ["Calder <Isles>", "SCPO (filter + weight)", "— —", "0", "50.0% —", "4"],
        ]

    def test_summary_and_warnings(self, config):
        html = unescape(page_of(config))
        assert (
            "SCPO (filter + weight) raised overall accuracy in 1 of 2 communities beyond what chance in the sample "
            "explains (interval above zero), and for 1 there is no interval (test pairs of fewer than two annotators "
            "or prompts)."
        ) in html
        assert (
            "Averaged over communities, the change is −7.2 points; the largest loss is Calder <Isles>'s with −16.6."
            in html
        )
        assert "<p>1 model is missing; the reasons are listed below.</p>" in html
        assert "<p>In 12.5% of the test pairs both responses also occur in training pairs" in html

    def test_missing_models_carry_the_reason_or_the_remedy(self, config):
        given = page_of(config, {ModelName("none", CALDER): "0 training pairs left"})
        assert cells(given, "<h2>Missing models") == [[CALDER, "full fine-tuning", "0 training pairs left"]]
        assert "jobs/train.py" in cells(page_of(config), "<h2>Missing models")[0][2]

    def test_selection_splits_and_planted_kinds(self, config):
        html = page_of(config)
        assert "learned in this run from the training pairs of Atlas, and never from a test pair" in html
        assert cells(html, "<h2>Selection")[0] == [
            "Brevia",
            "SCPO (filter + weight)",
            "66.7%",
            "100.0%",
            "2",
            "1",
            *TAU_AND_BETA,
            "-0.02",
            "51.0%",
        ]
        assert cells(html, "<h2>Selection")[2] == [
            CALDER,
            "SCPO (filter + weight)",
            "—",
            "—",
            "0",
            "0",
            *TAU_AND_BETA,
            "—",
            "—",
        ]
        assert cells(html, "<h2>Selection")[1][-4:-2] == ["—", "—"], "full fine-tuning has neither"
        assert cells(html, "<h3>Pairs per split")[0] == ["Atlas majority", "4,000", "500", "1,000"]
        assert cells(html, "<h3>What became of the planted pairs") == [
            ["SCPO (filter + weight)", "culture", "1", "100.0%", "0.200", "12.5%"],
            ["", "noise", "1", "100.0%", "1.000", "62.5%"],
            ["full fine-tuning", "culture", "1", "100.0%", "1.000", "25.0%"],
            ["", "noise", "1", "100.0%", "1.000", "25.0%"],
        ]

    def test_every_row_is_accounted_for(self, config):
        html = page_of(config)
        assert cells(html, "<h3>Every source row") == [["files", "12", "11", "1", "0", "22", "2", "20", "yes"]]
        assert "files. Rejected: 1 × no chosen. Left out by design: 310 × ties (pairs)." in html
        assert cells(html, "<h3>Rejected rows") == [["files", "x.jsonl:7", "no chosen", SCRIPT]]
        assert "<h3>Suspicious rows" not in html
        assert cells(html, "<h3>Leakage")[1] == ["test", "0.0%", "100.0%", "100.0%", "12.5%"]

    def test_examples_show_decision_and_planted_kind(self, config):
        html = unescape(page_of(config))
        assert "Brevia: 3 pairs" in html
        assert "<strong>Kept; the global model disagrees most</strong> · planted: culture" in html
        assert "<strong>Dropped, just above the threshold</strong></p>" in html
        assert (
            "agreement 0.100 · weight 0.200 · global reward −1.50 chosen, 0.25 rejected · annotator's score 81 against "
            "12" in html
        )
        without = config.model_copy(update={"report": config.report.model_copy(update={"num_example_pairs": 0})})
        assert "<h2>Example pairs" not in page_of(without)

    def test_provenance(self, config):
        html = page_of(config)
        assert ["format.max_tokens", "64", "512"] in cells(html, "<h3>Settings that differ")
        assert ["select.controls", '["none"]', "[]"] in cells(html, "<h3>Settings that differ")
        assert [row[:2] for row in cells(html, "<h3>Artifacts")][1] == ["global_model", "1 min 33 s"]
        assert cells(html, "<h3>Reward models")[0][:6] == [f"{MAIN}/Brevia", "2", "51", "102,036", "3.4%", "2.2 s"]
        assert "pyarrow " in html
        space = {"select.agreement_threshold": {"choice": [0.6, 0.7]}}
        searched = page_of(config.model_copy(update={"tune": TuneConfig(space=space)}))
        assert "tune.space" in [row[0] for row in cells(searched, "<h3>Settings that differ")], (
            "its keys are the user's"
        )

    def test_model_cards_say_what_was_measured(self, config):
        page_of(config)
        page_of(config)  # a second report replaces the numbers, it does not add them again
        directory = RunDirectory(config.run_dir)
        card = directory.read_text(f"{recipes.model_folder(config, ModelName('none', 'Brevia'))}/README.md")
        assert card.count("| overall | 61.5% | [58.0, 65.0] | 474 (22) |") == 1
        assert "| majority gain | −17.1 points | [−19.0, −15.0] | 1,000 (40) |" in card
        assert "Not yet" not in card and card.endswith(f"{LIMITS}\n\nRead them.\n")
        ruler = directory.read_text(f"{recipes.GLOBAL_MODEL}/README.md")
        assert ruler.count("| Brevia | 61.2% | [58.0, 64.0] | 474 (22) |") == 1
        assert ruler.count("| the majority | 77.1% | [76.0, 78.0] | 1,000 (40) |") == 1 and "Not yet" not in ruler

    def test_whether_arms_took_equal_steps_is_said(self, config):
        """A filter that keeps half of the pairs learns for half as long, unless steps are made equal."""
        assert "Arms take equal epochs over what they keep" in page_of(config)
        equal = config.model_copy(update={"train": config.train.model_copy(update={"equal_steps": True})})
        assert report._steps(equal) == "Every arm of a community takes the optimiser steps of full fine-tuning."

    def test_figures_and_tables_as_files(self, config):
        page_of(config)
        directory = RunDirectory(config.run_dir)
        assert {"gains.png", "gains.svg", "frontier.png"} <= set(directory.names("report/figures"))
        headline = directory.read_text("report/tables/headline.md").splitlines()
        assert headline[2] == (
            "| Brevia | SCPO (filter + weight) | 474 (22) | 61.2% | +2.2 [+0.4, +4.0] | 25.3% [20.0, 30.0] | "
            "87.5% [85.0, 90.0] | −3.1 [−5.0, −1.2] |"
        )
        rows = list(csv.DictReader(StringIO(directory.read_text("report/tables/metrics.csv"))))
        assert len(rows) == len(_metrics())
        assert float(rows[0]["value"]) == _metrics()[0]["value"]

    def test_which_communities_differ_from_the_majority(self, config):
        html = page_of(config)
        assert (
            "The global model is less accurate there than on the majority&#39;s test pairs: Brevia by 15.9 points "
            "[11.4, 20.7]. Nothing can be said of Calder &lt;Isles&gt; (no interval). Other preferences lower the accuracy, "
            "and so do annotators who contradict each other." in html
        )
        assert 'id="figure-distances"' in html

    def test_same_run_same_bytes(self, config):
        assert page_of(config) == page_of(config)

    def test_terminal_table(self, config):
        output = StringIO()
        Console(file=output, width=80).print(report.terminal_table(config))
        lines = [" ".join(line.split()) for line in output.getvalue().splitlines()]
        start = lines.index("Brevia")
        assert lines[start + 1 : start + 6] == [
            "global 474 (22) 61.2 — — 77.1",
            "SCPO (F+W) 67/100 63.4 (+2.2) 25.3 87.5 74.0 (−3.1)",
            "[+0.4,+4.0] [−5.0,−1.2]",
            "full 67/100 61.5 (+0.3) 30.3 81.3 60.0 (−17.1)",
            "[−1.0,+1.6] [−19.0,−15.0]",
        ]
        start = lines.index("Calder <Isles>")
        assert lines[start + 1 : start + 4] == [
            "global 6 (1) 50.0 — — 77.1",
            "SCPO (F+W) —/— 33.3 (−16.6) — 50.0 74.0 (−3.1)",
            "— [−5.0,−1.2]",
        ]
        assert "was trained on" not in " ".join(lines), "a ruler that was taken as it is may have seen them"


def test_a_run_in_which_everything_failed_still_reports(config):
    directory = RunDirectory(config.run_dir)
    _write_prepared(config, directory)
    _write(recipes.global_model(config, directory), directory)
    _write(recipes.scores(config, directory), directory)
    _write_decisions(config, directory)
    failures = {
        ModelName(strategy, name): "too few" for strategy in config.select.strategies for name in ("Brevia", CALDER)
    }
    html = page_of(config, failures)
    assert "4 models are missing; the reasons are listed below." in html
    assert "so this run says nothing about gains or losses." in html
    assert "<h2>Gains and losses" not in html
    with pytest.raises(ArtifactError, match=r"evaluation: no such artifact; run jobs/evaluate.py first"):
        report.run(config)


def test_another_configs_evaluation_is_refused(config, run_directory):
    other = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"num_resamples": 100})})
    with pytest.raises(ArtifactError, match=r"evaluate.num_resamples = 2000, this config has 100"):
        report.run(other)
