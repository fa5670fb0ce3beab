"""benchmarks/gpu.py, on the CPU: its ways do the same work, its numbers are right, and it needs neither Ray nor DeepSpeed."""

import json
import re
import subprocess
import sys
from pathlib import Path

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
