"""Metrics as Prometheus gets them from Ray's agents, log lines as a collector gets them, and the dashboard that draws them."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from scpo_ray import telemetry
from scpo_ray.artifacts import RunDirectory
from scpo_ray.errors import DataError
from scpo_ray.stages.train import load_trained
from tests.conftest import TINY

ROOT = Path(__file__).parents[1]
DASHBOARD = json.loads((ROOT / "clusters/grafana/scpo_ray.json").read_text())
EXPORT_S = 30
"""Within which an agent has a number; Ray hands them on every few seconds."""


def exported(ray_cluster, run: str) -> dict[tuple[str, str, str, str], float]:
    """(metric, stage, name, community) -> value, of a run."""
    (port,) = (node["MetricsExportPort"] for node in ray_cluster.nodes() if node["Alive"])
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        (
            sample.name.removeprefix("ray_scpo_"),
            *(sample.labels[label] for label in ("stage", "name", "community")),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("ray_scpo_") and sample.labels.get("run") == run
    }


def eventually(ray_cluster, run: str, wanted: dict[tuple[str, str, str, str], float]) -> dict:
    """What is exported once all of `wanted` is, at its value."""
    end = time.monotonic() + EXPORT_S
    while True:
        found = exported(ray_cluster, run)
        if found.items() >= wanted.items() or time.monotonic() > end:
            return found
        time.sleep(0.5)


def test_prometheus_gets_what_the_manifests_say(ray_cluster, controlled_run):
    """Long after the stages have ended, while the process lives that ran them."""
    directory = RunDirectory(controlled_run.run_dir)
    scores = [directory.require(name, job="score").statistics for name in ("scores", "other_scores")]
    decided = directory.require("decisions/filter_weight", job="select").statistics["communities"]
    wanted = {
        ("responses_total", "score", "", ""): sum(one["num_responses"] for one in scores),
        ("tokens_total", "score", "", ""): sum(one["num_tokens"] for one in scores),
        ("padded_tokens_total", "score", "", ""): sum(one["num_padded_tokens"] for one in scores),
        ("stage_running", "train", "", ""): 0,
        ("queue_depth", "train", "", ""): 0,
        ("stage_running", "report", "", ""): 0,
    }
    for community, of_community in decided.items():
        wanted["kept_share", "select", "filter_weight", community] = of_community["kept_share"]["train"]
    for name, model in load_trained(controlled_run, directory).items():
        metrics = directory.read_json(f"{model.name}/metrics.json")
        wanted["loss", "train", str(name), name.community] = metrics["losses"][-1]
        wanted["tokens_total", "train", str(name), name.community] = metrics["num_tokens"]
        wanted["completed", "train", str(name), name.community] = len(metrics["losses"])
    found = eventually(ray_cluster, directory.absolute_address, wanted)
    assert {key: found.get(key) for key in wanted} == pytest.approx(wanted)
    margins = [value for (metric, stage, *_), value in found.items() if (metric, stage) == ("margin", "train")]
    assert len(set(margins)) > 3
    stages = {stage for (_, stage, *_) in found}
    assert stages - {"prepare"} == {
        "train_global",
        "score",
        "select",
        "train",
        "evaluate",
        "report",
    }  # prepare may know no Ray yet


def test_a_total_that_begins_again_goes_on_growing(ray_cluster):
    """A training that was resumed from its checkpoint has seen fewer tokens than were computed."""
    told = telemetry.Stage("/begins/again", "train")
    for tokens in (10, 30, 20, 25):
        told.measure({"tokens_total": tokens}, name="one")
    again = telemetry.Stage("/begins/again", "train")  # the stage runs once more
    again.measure({"tokens_total": 25}, name="one")
    wanted = {("tokens_total", "train", "one", ""): 80.0}
    assert eventually(ray_cluster, "/begins/again", wanted) == wanted


def test_communities_of_any_name_are_told_apart(ray_cluster):
    told = telemetry.Stage("/日本", "select")
    names = {"日本": r"\u65e5\u672c", "Côte d'Ivoire": r"C\xf4te d'Ivoire", r"C\xf4te d'Ivoire": r"C\\xf4te d'Ivoire"}
    for share, name in enumerate(names):
        told.measure({"kept_share": share}, community=name)
    wanted = {("kept_share", "select", "", label): float(share) for share, label in enumerate(names.values())}
    assert eventually(ray_cluster, r"/\u65e5\u672c", wanted) == wanted


def test_an_unknown_metric_is_refused(ray_cluster):
    with pytest.raises(KeyError, match="tokens_tota"):
        telemetry.Stage("/run", "train").measure({"tokens_tota": 1.0})


def test_log_lines_are_json_with_run_stage_community_and_rank(tmp_path):
    """Of the driver on stderr, of every worker in Ray's session."""
    run_dir = tmp_path / "run"
    program = (
        "import sys, ray; from scpo_ray import cli, runtime; from scpo_ray.stages import prepare, sft, train_global\n"
        "config = cli.load_config(sys.argv[1:]); runtime.connect(config.log_format)\n"
        "prepare.run(config); train_global.run(config); sft.run(config)\n"
        "print(ray._private.worker.global_worker.node.get_session_dir_path())"
    )
    options = [
        "--run_dir",
        str(run_dir),
        "--log_format",
        "json",
        "--train_global.max_steps",
        "4",
        "--train_global.epochs",
        "1",
    ]
    options += ["--train_global.checkpoint_every_steps", "2", "--train_global.num_workers", "2"]
    options += ["--sft.max_steps", "2", "--sft.num_learners", "2", "--sft.checkpoint_every_steps", "1"]
    options += [f"--prepare.atlas.{key}={value}" for key, value in TINY["prepare"]["atlas"].items()]
    done = subprocess.run(
        [sys.executable, "-c", program, *options], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "steps" not in done.stderr, "no progress bar"
    lines = [
        json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")
    ]  # beside Ray's core and DeepSpeed
    own = [line for line in lines if line["name"] == "scpo_ray"]
    address = str(run_dir)
    assert all(line["run"] == address for line in own)
    told = [(line["stage"], line["message"]) for line in own]
    assert told[:3] == [("prepare", "started"), ("prepare", "finished"), ("train_global", "started")]
    assert ("train_global", "finished") in told and told[-1] == ("sft", "finished")
    progress = [line for line in own if (line["stage"], line["message"]) == ("train_global", "progress")][-1]
    assert (progress["completed"], progress["planned"]) == (4, 4) and progress["loss"] > 0
    logs = Path(done.stdout.strip().splitlines()[-1], "logs")
    assert lines_of_ranks(logs.glob("train/ray-train-app-worker-*.log")) == {
        rank: [("train_global", "training", "Atlas", address), ("train_global", "checkpoint saved", "Atlas", address)]
        for rank in (0, 1)
    }
    assert lines_of_ranks(logs.glob("worker-*.err")) == {
        rank: [("sft", "begun", "Atlas", address), ("sft", "checkpoint saved", "Atlas", address)] for rank in (0, 1)
    }


def lines_of_ranks(files: Iterable[Path]) -> dict[int, list[tuple[str, str, str, str]]]:
    """Rank -> (stage, message, community, run) of its lines."""
    found = defaultdict(list)
    for file in files:
        for line in file.read_text().splitlines():
            if line.startswith("{") and '"rank"' in line:
                record = json.loads(line)
                told = (record["stage"], record["message"], record["community"], record["run"])
                found[record["rank"]].append(told)
    return dict(found)


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def test_the_dashboard_draws_every_metric_and_no_other():
    drawn = {name for text in expressions() for name in re.findall(r"\bray_scpo_(\w+)", text)}
    assert drawn == set(telemetry.METRICS)


def test_the_dashboard_draws_only_what_the_service_and_ray_export(ray_cluster):
    from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels

    rays = Path(default_dashboard_panels.__file__).read_text()
    service = Path(ROOT, "scpo_ray/serving/metrics.py").read_text()
    for text in expressions():
        for name in re.findall(r"\b(?<!ray_)scpo_[a-z_]+", text):
            assert f'"{re.sub("_(total|bucket)$", "", name)}"' in service, name
        for name in re.findall(r"\bray_(?!scpo_)[a-z_]+", text):
            assert re.search(rf"\b{name}\b", rays), name


def test_the_dashboard_can_be_imported():
    """Grafana's own rules that an import trips over."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for target in panel.get("targets", ()):
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= names
            assert target["datasource"]["uid"] == "${datasource}"


def test_why_a_stage_stopped_is_in_its_last_line(caplog):
    caplog.set_level("INFO", "scpo_ray")
    with pytest.raises(DataError), telemetry.stage("/run", "train"):
        raise DataError("Chile: no pairs")
    assert (caplog.records[-1].message, caplog.records[-1].error) == ("stopped", "Chile: no pairs")
