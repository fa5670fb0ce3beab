"""What a job will compute and hold, counted before it starts; and models that no device, or no node, can hold."""

import re
from dataclasses import replace

import pytest

from scpo_ray.artifacts import RunDirectory
from scpo_ray.attention import LONGEST_BY_PRODUCTS
from scpo_ray.capacity import Capacity
from scpo_ray.errors import ConfigError
from scpo_ray.stages import plan, policy_estimate, preflight
from scpo_ray.stages.estimate import read_data
from scpo_ray.stages.needs import needs_of
from scpo_ray.stages.plan import estimate
from scpo_ray.stages.train import model_names
from tests.stages.conftest import GPU_CLUSTER, LAPTOP


def test_a_model_that_no_device_can_hold(prepared):
    """70B from scratch: 16 bytes for each of its parameters, on the one worker there is."""
    huge = {"hidden_size": 8192, "num_layers": 80, "num_heads": 64}
    config = prepared.with_settings({"train_global.scratch": huge, "train_global.zero_stage": 3})
    message = (
        r"^train_global: weights, gradients and optimiser states take [\d.]+ GiB for each worker, and the largest node has "
        r"[\d.]+ GiB; take larger devices, a smaller model, train_global.zero_stage 3 over more train_global.num_workers"
    )
    with pytest.raises(ConfigError, match=message):
        preflight.passed(config, "train_global")
    (line,) = plan.make(config, RunDirectory(config.run_dir), ("train_global",), set(), GPU_CLUSTER)
    on_gpus = replace(line, needs=needs_of(config.with_settings({"train_global.use_gpu": True}), "train_global"))
    with pytest.raises(ConfigError, match=r"GiB for each worker, and an H100 has 74\.5 GiB"):
        plan.check_memory(on_gpus, GPU_CLUSTER)
    enough = replace(on_gpus, estimate=replace(on_gpus.estimate, least_bytes=80e9))
    plan.check_memory(enough, GPU_CLUSTER)


def test_memory_is_that_of_nodes_which_can_hold_the_worker(prepared):
    """A head that takes no work is none; nodes that do not run yet may not say what they have."""
    huge = {"hidden_size": 8192, "num_layers": 80, "num_heads": 64}
    config = prepared.with_settings({"train_global.scratch": huge})
    (line,) = plan.make(config, RunDirectory(config.run_dir), ("train_global",), set(), LAPTOP)
    head = {"CPU": 0.0, "memory": 1e15}
    with pytest.raises(ConfigError, match=r"and the largest node has 64\.0 GiB"):
        plan.check_memory(line, Capacity((head, {"CPU": 16.0, "memory": 64 * 2**30}), "x"))
    plan.check_memory(line, Capacity(({"CPU": 0.0, "memory": 2**30}, {"CPU": 16.0}), "x"))


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_a_policy_that_no_device_can_hold(tmp_path, prepared, stage):
    """80 layers, 8192 wide: 4 times 4 bytes a parameter for the policy alone."""
    wide = {"hidden_size": 8192, "num_layers": 80, "num_heads": 64}
    settings = {f"sft.scratch.{name}": value for name, value in wide.items()}
    config = prepared.with_settings(settings | {f"{stage}.gpus_per_learner": 1})
    (line,) = plan.make(config, RunDirectory(config.run_dir), (stage,), set(), GPU_CLUSTER)
    parameters = 80 * 12 * 8192**2  # at least: what a plain layer has
    assert line.estimate.least_bytes > 16 * parameters
    with pytest.raises(ConfigError, match=rf"{stage}: .*and an H100 has 74\.5 GiB.*over more {stage}.num_learners"):
        plan.check_memory(line, GPU_CLUSTER)
    shared = config.with_settings({f"{stage}.zero_stage": 3, f"{stage}.num_learners": 64})
    (line,) = plan.make(shared, RunDirectory(config.run_dir), (stage,), set(), GPU_CLUSTER)
    assert line.estimate.least_bytes > (16 if stage == "sft" else 16 + 16 + 4) * parameters / 64
    plan.check_memory(line, GPU_CLUSTER)  # engines, without a GPU, are no reason


def test_gpu_workers_read_the_model_into_main_memory_first(prepared):
    """Eight of them on a node, with two copies each: more than it has, however their states are partitioned."""
    large = {"hidden_size": 4096, "num_layers": 32, "num_heads": 32}
    config = prepared.with_settings(
        {"train.use_gpu": True, "train.num_workers": 8, "train.zero_stage": 3, "train_global.scratch": large}
    )

    def check(memory: float | None, num_nodes: int = 1) -> None:
        node = {"CPU": 64.0, "GPU": 8.0, "accelerator_type:H100": 1.0} | ({"memory": memory} if memory else {})
        has = Capacity((node,) * num_nodes, "x")
        (line,) = plan.make(config, RunDirectory(config.run_dir), ("train",), set(), has)
        plan.check_memory(line, has)

    refusal = (
        r"^train: every worker reads the model into main memory, 8 x (\d\d\.\d) GiB on a node, and that has 256\.0 GiB"
    )
    with pytest.raises(ConfigError, match=refusal) as raised:
        check(256 * 2**30)
    each = float(re.search(refusal, str(raised.value))[1])
    with pytest.raises(ConfigError, match=refusal):
        check(256 * 2**30, num_nodes=4)  # a group is packed on one of them
    check((8 * each + 1) * 2**30)
    check(None)


def test_a_pass_without_padding_has_a_limit(prepared):
    """Of one worker: a batch ten times as large is cut into more passes; padded, it takes ten times as much."""

    def kept(**settings: object) -> float:
        config = prepared.with_settings({f"train_global.{name}": value for name, value in settings.items()})
        (line,) = plan.make(config, RunDirectory(config.run_dir), ("train_global",), set(), LAPTOP)
        return line.estimate.memory_bytes - line.estimate.least_bytes

    large = {"batch_size": 10_000}
    assert kept(**large) == kept(batch_size=100_000) > 0
    padded = large | {"attention": "sdpa"}
    assert kept(**padded | {"batch_size": 100_000}) == pytest.approx(10 * kept(**padded))
    assert kept(**padded | {"gradient_checkpointing": True}) < kept(**padded)


def test_scores_are_kept_of_short_texts_alone(prepared):
    """Where products are the faster attention (scpo_ray/attention.py): a pass of as many tokens takes more with the length of
    texts up to theirs, and no more beyond."""

    def kept(length: int, **settings: object) -> float:
        changes = {f"train_global.{name}": value for name, value in (settings | {"batch_size": 10_000}).items()}
        config = prepared.with_settings({"format.max_tokens": length, **changes})
        (line,) = plan.make(config, RunDirectory(config.run_dir), ("train_global",), set(), LAPTOP)
        return line.estimate.memory_bytes - line.estimate.least_bytes

    longest = LONGEST_BY_PRODUCTS["bfloat16"]
    short, long, longer = (kept(length, precision="bfloat16") for length in (longest // 2, longest, longest + 100))
    assert 1.05 * short < long == pytest.approx(longer)
    assert kept(longest // 2, precision="float32") == pytest.approx(kept(longest, precision="float32"))


def test_tokens_are_counted_from_the_data(controlled_run):
    """What training and scoring are said to take, against what their manifests say that they took."""
    directory = RunDirectory(controlled_run.run_dir)
    data = read_data(controlled_run, directory, batching="interactions")
    assert data is not None and data.is_measured
    rulers = [directory.require(name, job="train_global").statistics for name in ("global_model", "other_ruler")]
    found = estimate(controlled_run, directory, "train_global", LAPTOP)
    assert found is not None
    assert found.num_tokens == pytest.approx(sum(trained["num_tokens"] for trained in rulers), rel=0.1)
    scored = directory.read_table("scores/scores.parquet")["num_tokens"].to_pylist()  # by both
    assert estimate(controlled_run, directory, "score", LAPTOP).num_tokens == pytest.approx(2 * sum(scored))
    of_names = [name.community for _, name in model_names(controlled_run, directory)]
    responses = sum(  # of two steps: a curve's points have one seed each
        2 * controlled_run.train.batch_size * data.training_responses[name] / data.training_items[name]
        for name in of_names
    )
    trained = estimate(controlled_run, directory, "train", LAPTOP)
    assert trained is not None and trained.num_tokens == pytest.approx(responses * data.mean_tokens)
    read = directory.require("evaluation", job="evaluate").statistics["num_responses"]
    assert estimate(controlled_run, directory, "evaluate", LAPTOP).num_tokens == pytest.approx(read * data.mean_tokens)


def test_trials_and_the_best_of_n_are_counted(prepared):
    """A search trains every community (trials + 2) times, and each model reads two communities' validation responses."""
    config = prepared.with_settings(
        {"select.controls": (), "select.strategy": "filter_weight", "tune.num_trials": 5, "train.num_seeds": 1}
    )
    directory = RunDirectory(config.run_dir)
    data = read_data(config, directory, batching=config.train.batching)
    training, search = (estimate(config, directory, stage, LAPTOP) for stage in ("train", "tune"))
    pairs = directory.read_table("prepared/pairs.parquet").to_pandas()
    of = {
        name: len({*rows.chosen_id, *rows.rejected_id})
        for name, rows in pairs[pairs.split == "validation"].groupby("community")
    }
    read = 7 * sum(of.get(name, 0) + of["Atlas"] for name in data.training_items if name != "Atlas")
    assert search.num_tokens == pytest.approx(7 * training.num_tokens + read * data.mean_tokens)
    assert search.flops > 7 * training.flops and search.seconds > 7 * training.seconds
    assert search.memory_bytes == training.memory_bytes
    settings = {"best_of_n.num_samples": (1, 8), "ppo.evaluation.max_prompts": 10, "ppo.max_response_tokens": 32}
    found = estimate(config.with_settings(settings), directory, "best_of_n", LAPTOP)
    length = min(32 + data.mean_context_tokens, config.format.max_tokens)
    assert found.num_tokens == pytest.approx(10 * 8 * length)


def test_a_policys_tokens_are_at_least_those_that_it_took(policy_run):
    """Every response is counted as long as it may be: true of untrained policies, less so later."""
    directory, ppo = RunDirectory(policy_run.run_dir), policy_run.ppo
    data = read_data(policy_run, directory, batching=policy_run.train.batching)
    found = policy_estimate.policy_training(policy_run, directory, data, LAPTOP)
    names = [name for name in directory.names("policies") if name.startswith(("brevia", "calder"))]  # others are tests'
    steps = [row for name in names for row in directory.read_json(f"policies/{name}/metrics.json")["steps"]]
    number = ppo.prompts_per_step * ppo.responses_per_prompt
    written = sum(row["length"] * number for row in steps)
    at_most = len(steps) * number * ppo.max_response_tokens
    assert written <= at_most < found.num_tokens
    assert written / at_most > 0.1
    longest = policy_run.format.max_tokens
    assert found.num_tokens <= len(steps) * number * longest
    measured = policy_estimate.policy_evaluation(policy_run, directory, data, LAPTOP)
    rows = directory.read_table("policy_evaluation/responses.parquet").num_rows
    assert 0.1 * rows * ppo.max_response_tokens < measured.num_tokens
    most = (len(names) + 1) * ppo.evaluation.max_prompts * ppo.evaluation.responses_per_prompt
    assert rows <= most and measured.num_tokens <= most * longest
    both = estimate(policy_run, directory, "ppo", LAPTOP)
    assert both.num_tokens == found.num_tokens + measured.num_tokens and both.seconds > found.seconds
    sft = estimate(policy_run, directory, "sft", LAPTOP)
    taught = directory.require("start_policy", job="sft").statistics
    assert sft.num_tokens >= 0.9 * taught["num_tokens"]


def test_measuring_policies_grows_with_the_square_of_the_communities(prepared):
    """Every policy's answers are read by every community's models, held-out ones too where there are seeds."""
    directory = RunDirectory(prepared.run_dir)

    def flops(*communities: str, num_seeds: int = 1) -> float:
        config = prepared.with_settings({"ppo.communities": communities, "train.num_seeds": num_seeds})
        data = read_data(config, directory, batching="interactions")
        return policy_estimate.policy_evaluation(config, directory, data, LAPTOP).flops

    one, two = flops("Brevia"), flops("Brevia", "Calder Isles")
    of_one_reader = flops("Brevia", num_seeds=2) - one  # of the answers of two: the start's and the policy's
    assert two == pytest.approx(3 / 2 * one + 3 / 2 * of_one_reader)
    assert of_one_reader > 0


def test_items_are_what_the_trainings_own_batching_says(prepared):
    """Communities that are trained on together share prompts, and each of four responses stands in three pairs."""
    directory = RunDirectory(prepared.run_dir)
    everyone = {"train_global.communities": ["Atlas", "Brevia", "Calder Isles"]}
    tokens = {
        kind: estimate(
            prepared.with_settings(everyone | {"train_global.batching": kind}), directory, "train_global", LAPTOP
        ).num_tokens
        for kind in ("interactions", "prompts", "pairs")
    }
    assert tokens["prompts"] <= tokens["interactions"]
    assert tokens["pairs"] == pytest.approx(3 * tokens["interactions"], rel=0.05)
