"""benchmarks/gpu.py, on the CPU: its ways do the same work, its numbers are right, it needs neither Ray nor DeepSpeed, and where
Ray is the stages take part."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scpo_ray.artifacts import RunDirectory

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
for name in ("ray", "deepspeed", "vllm"):
    sys.modules[name] = None  # as if it were not installed
from benchmarks import gpu, gpu_work
gpu_work.STEPS, gpu_work.INTERACTIONS_PER_STEP = 2, 4
gpu.main(sys.argv[1], "tiny", "1", "9", "cpu")
"""


def test_it_measures_all_ways_and_compares_numbers(tmp_path):
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, check=True, timeout=300)
    scoring, training = (
        json.loads((tmp_path / f"gpu_{part}_tiny.json").read_text()) for part in ("scoring", "training")
    )
    assert list(scoring["rounds"]) == [
        "ceiling, bfloat16",
        "scpo_ray, bfloat16",
        "plain loop, bfloat16",
        "as published",
    ]
    assert {*training["rounds"]} >= {*scoring["rounds"]}
    amounts = {way: rounds[0]["amount"] for way, rounds in scoring["rounds"].items()}
    assert len({amounts[way] for way in amounts if "ceiling" not in way}) == 1, "the same tokens"
    assert 0.98 < amounts["ceiling, bfloat16"] / amounts["as published"] < 1.02, "as many tokens, up to rounding"
    assert len({rounds[0]["amount"] for way, rounds in training["rounds"].items() if "ceiling" not in way}) == 1
    wide, narrow = (float(one) for one in re.findall(r"by ([\d.]+) of their standard deviation", scoring["workload"]))
    assert wide < 1e-4 < narrow < 0.1
    wide, narrow = (float(one) for one in re.findall(r"cosine of (\d\.\d+)", training["workload"]))
    assert 0.99 < narrow < wide


def test_where_ray_is_installed_the_stages_take_part(ray_cluster, tmp_path, monkeypatch):
    from benchmarks import gpu, gpu_work

    monkeypatch.setattr(gpu_work, "STEPS", 2)
    monkeypatch.setattr(gpu_work, "INTERACTIONS_PER_STEP", 4)
    gpu.main(str(tmp_path), "tiny", "2", "9", "cpu")
    scores = RunDirectory(str(tmp_path / "model_tiny_stages")).require("scores", job="score").statistics
    assert scores["num_cached"] == 0, "every round scores anew"
    scoring, training = (
        json.loads((tmp_path / f"gpu_{part}_tiny.json").read_text())["rounds"] for part in ("scoring", "training")
    )
    whole, inside = (scoring[way][0] for way in ("scpo_ray, whole stage, bfloat16", "scpo_ray, bfloat16"))
    assert whole["amount"] == inside["amount"], "the same texts, in the same tokens"
    assert whole["seconds"] > inside["seconds"]
    steps, stage = (training[f"scpo_ray on Ray, {part}bfloat16"][-1] for part in ("", "whole stage, "))
    metrics = RunDirectory(str(tmp_path / "model_tiny_trained")).read_json("global_model/metrics.json")
    assert steps["seconds"] == metrics["wall_time_s"] < stage["seconds"]
    assert metrics["num_steps"] == 2
    work = gpu_work.prepared(tmp_path, "tiny", 9, gpu.torch.device("cpu"))
    tokens = sum(len(work.sequences[index].input_ids) for index in gpu_work.seen(work))
    per_pair = tokens / gpu_work.num_pairs(work)
    assert steps["amount"] == stage["amount"] == pytest.approx(metrics["num_tokens"] / per_pair)
