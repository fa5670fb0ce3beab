"""Everything inside the engines works where Ray, DeepSpeed and vLLM cannot be imported."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

PROGRAM = """
import sys, tempfile
from pathlib import Path

for name in ("ray", "deepspeed", "vllm"):
    sys.modules[name] = None  # as if it were not installed: find_spec finds nothing and import raises

try:
    import ray
except ImportError:
    pass
else:
    raise SystemExit("the import was not refused")

import torch
import scpo_ray.cli
from scpo_ray import models, records
from scpo_ray.config import Config, FormatConfig, ModelConfig, OptimizationConfig
from scpo_ray.core import accuracy, agreement, batching, losses, near_duplicates, schedules, splits
from scpo_ray.datasets import atlas
from scpo_ray.formatting import Formatter
from scpo_ray.scoring import RewardScorer
from scpo_ray.strategies.selection import STRATEGIES
from scpo_ray.training.batches import Preference, PreferenceSet
from scpo_ray.training.step import collate_items, normalizers, parameter_groups, part_loss

context = [{"role": "user", "content": "how should i fix the boat ?"}]
texts = ["just start now", "one might look around first", "dear sir or madam", "hey there"]
made = models.make(ModelConfig(hidden_size=32, num_layers=1), texts=texts, max_tokens=32, seed=0)
with tempfile.TemporaryDirectory() as folder:
    models.save(made.model, made.tokenizer, Path(folder))
    scorer = RewardScorer(Path(folder), format_config=FormatConfig(max_tokens=32), tokens_per_batch=128)
    scores = scorer.score([context] * 4, texts)
assert len(scores.rewards) == 4 and scores.cost.num_responses == 4

formatter = Formatter(made.tokenizer, FormatConfig(max_tokens=32))
same = {"interaction_id": "i", "prompt_id": "p", "score_gap": 0.0}
pairs = [Preference(chosen=0, rejected=1, weight=1.0, **same), Preference(chosen=2, rejected=3, weight=0.5, **same)]
data = PreferenceSet(formatter.format([context] * 4, texts), pairs, batching="interactions")
config = OptimizationConfig()
models.prepare_for_training(made.model, dropout=False, gradient_checkpointing=False)
optimizer = torch.optim.AdamW(parameter_groups(made.model, weight_decay=0.0), lr=1e-3)
(batch,) = data.batches(batch_size=4, seed=0, first_step=0, num_steps=1)
normalizer, num_pairs = normalizers(batch, config)
observed = []
for _ in range(2):
    micro = collate_items(batch, data, formatter.pad, config)
    loss = part_loss(made.model, micro, config, normalizer=normalizer, num_pairs=num_pairs).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    observed.append(loss.item())
assert observed[1] < observed[0] - 1e-4, observed
assert all(sys.modules[name] is None for name in ("ray", "deepspeed", "vllm"))
print("lowered", *observed)
"""


def test_score_and_train_without_engines():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("lowered")


def test_a_trial_of_a_search_loads_no_model_library():
    """It selects and waits: with no torch in its process it cannot run the global model, and it starts in half the time."""
    program = "import sys, scpo_ray.stages.trial, scpo_ray.training.queue; raise SystemExit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
