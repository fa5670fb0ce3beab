"""PPO on real vLLM and DeepSpeed: it raises what it should, and goes on as if nothing had happened when actors are killed."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scpo_ray import policies
from scpo_ray.artifacts import RunDirectory
from scpo_ray.cli import dump_yaml
from scpo_ray.config import Config, LoraConfig
from scpo_ray.errors import ModelError, SynchronizationError, TrainingError
from scpo_ray.ledger import records
from scpo_ray.ppo.crew import Crew, at_work
from scpo_ray.ppo.forward import collate, log_probs_of, response_logits
from scpo_ray.ppo.objective import Target
from scpo_ray.ppo.records import Answer, Sequences
from scpo_ray.scoring import RewardScorer
from scpo_ray.stages import ppo, recipes
from scpo_ray.stages.community_models import scales
from scpo_ray.stages.policy_plan import Plan, make_plan
from scpo_ray.stages.ppo_controller import Controller
from tests.stages.policy_runs import FIRST, SECOND

SAME = ("reward", "kl", "length", "utility of Brevia", "policy_loss", "critic_loss", "entropy")
"""What two runs that asked the same prompts and drew the same responses have in common."""


@pytest.fixture(scope="module")
def config(policy_run) -> Config:
    return policy_run


@pytest.fixture(scope="module")
def shown(config) -> str:
    """What the job prints when both communities' policies are trained and measured."""
    return ppo.run(config)


@pytest.fixture(scope="module")
def plan(config, shown) -> Plan:
    return make_plan(config, RunDirectory(config.run_dir))


@pytest.fixture(scope="module")
def known_scales(config, plan):
    return scales(config, RunDirectory(config.run_dir), plan.all_models)


@pytest.fixture(scope="module")
def crew(config, plan):
    with _crew(config, plan) as found:
        yield found


def _crew(config: Config, plan: Plan, **models: str):
    return at_work(
        config.ppo,
        policy=plan.start_address,
        reward_models={name: model.address for name, model in plan.all_models.items()} | models,
        format_config=config.format,
        score_config=config.score.model_copy(update={"precision": recipes.score_precision(config)}),
    )


def controller(config, plan, crew, known_scales, name: str, *, kind=Controller, **settings) -> Controller:
    """One for the first community with other settings, under a name of its own."""
    changed = config.model_copy(update={"ppo": config.ppo.model_copy(update=settings)})
    target = Target(name, (FIRST,), "each")
    recipe = replace(plan.recipes[Target(FIRST, (FIRST,), "each")], name=f"policies/{name}", identity={"name": name})
    return kind(changed, RunDirectory(config.run_dir), plan, target, recipe, crew, known_scales)


def steps_of(config: Config, name: str) -> list[dict]:
    return RunDirectory(config.run_dir).read_json(f"policies/{name}/metrics.json")["steps"]


def folder_of(config: Config, community: str) -> str:
    return next(
        name for name in RunDirectory(config.run_dir).names("policies") if name.startswith(community.lower()[:6])
    )


def judgements(config: Config):
    table = RunDirectory(config.run_dir).read_table(f"{recipes.POLICY_EVALUATION}/judgements.parquet")
    return table.to_pandas().groupby(["policy", "kind", "community"]).value.mean()


def test_each_policy_gains_true_utility_for_its_own_community_and_not_for_the_other(config, shown):
    means = judgements(config)
    for own, other in ((FIRST, SECOND), (SECOND, FIRST)):
        assert means[own, "proxy", own] - means["start", "proxy", own] > 0.5
        assert means[own, "held out", own] - means["start", "held out", own] > 0.3
        assert means[own, "truth", own] - means["start", "truth", own] > 0.2
        assert means[own, "truth", other] - means["start", "truth", other] < 0


def test_the_page_tells_it(config, shown):
    directory = RunDirectory(config.run_dir)
    page = directory.read_text("ppo.html")
    assert shown.splitlines()[-1] == directory.path("ppo.html")
    for text in (
        "compared with it on",
        f"policy {FIRST} gained",
        f"policy {SECOND} gained",
        "true utility",
        "held-out",
    ):
        assert text in page
    assert all(line in page.replace("&#39;", "'") for line in shown.splitlines()[:-1])


def test_no_policy_saw_a_test_prompt(config, plan):
    directory = RunDirectory(config.run_dir)
    tested = set(directory.read_table(f"{recipes.POLICY_EVALUATION}/responses.parquet")["prompt_group"].to_pylist())
    assert tested == {prompt.prompt_group for prompt in plan.prompts.test}
    assert not tested & {prompt.prompt_group for prompt in plan.prompts.train}
    from scpo_ray.stages.sft import read_lesson

    lesson = read_lesson(config, directory, plan.start)
    taught = {tuple(prompt) for prompt in lesson.sequences.prompts}
    assert taught and not taught & {prompt.token_ids for prompt in plan.prompts.test}


def test_what_is_there_is_not_made_again(config, shown, monkeypatch):
    monkeypatch.setattr(ppo, "at_work", None)  # whoever starts an actor fails
    assert ppo.run(config) == shown


def test_the_saved_policy_is_the_one_that_was_trained(config, plan, crew, known_scales):
    """What the learners hold at the end gives every response the probability that the artifact gives it."""
    controller(config, plan, crew, known_scales, "saved", num_steps=3).run()
    prompts = [prompt.token_ids for prompt in plan.prompts.test[:8]]
    sequences = Sequences(prompts, [prompt[::-1] for prompt in prompts])
    trained = crew.learners.evaluate(sequences)
    saved = policies.load(Path(config.run_dir) / "policies/saved").model
    batch = collate(sequences, range(8), pad_token_id=0)
    with torch.no_grad():
        found = log_probs_of(response_logits(saved, batch, temperature=1.0), batch)
    torch.testing.assert_close(found, trained["log_probs"], atol=2e-5, rtol=0)
    assert (trained["log_probs"] - trained["reference_log_probs"]).abs().max() > 0.01


def test_rewards_are_those_of_the_pipelines_scorer(config, plan, crew):
    prompt = plan.prompts.train[0]
    answers = [Answer(prompt.context, text) for text in ("do this at once .", "hey there .", "do this at once .")]
    found = crew.scorers.score({FIRST: answers})[FIRST].values
    scorer = RewardScorer(
        Path(plan.models[FIRST].address),
        format_config=config.format,
        tokens_per_batch=8192,
        precision=recipes.score_precision(config),
    )
    expected = scorer.score([prompt.context] * 2, ["do this at once .", "hey there ."]).rewards.tolist()
    assert found == pytest.approx([*expected, expected[0]], abs=2e-3)
    assert found[0] == found[2]


def test_at_learning_rate_zero_engine_and_learner_agree_for_the_whole_run(config, plan, crew, known_scales):
    still = controller(config, plan, crew, known_scales, "still", learning_rate=0.0, num_steps=4, overlap=True)
    still.run()
    for row in steps_of(config, "still"):
        assert row["engine_difference"] < 2e-5
        assert abs(row["importance_max"] - 1) < 2e-5
        assert row["canary_difference"] < 2e-5
        assert row["kl"] == 0.0


@pytest.mark.slow  # tests/ppo/test_learner.py has two learners and adapters, tests/ppo/test_rollout.py engines
def test_a_larger_crew_with_adapters(config, plan, known_scales):
    """Two engines, two learners under ZeRO-3 with LoRA: a policy for one community, one by max-min, one routed by the prompts'
    communities. These want opposite things, so that the last two policies have nothing to gain, and rewards to be composed."""
    settings = {
        "num_engines": 2,
        "cpus_per_engine": 0.1,
        "cpus_per_scorer": 0.1,
        "num_learners": 2,
        "cpus_per_learner": 0.1,
        "zero_stage": 3,
        "lora": LoraConfig(enabled=True, rank=8),
        "placement": "colocated",
        "learning_rate": 3e-3,
    }
    directory, both = RunDirectory(config.run_dir), (FIRST, SECOND)
    known = plan.recipes[Target(FIRST, (FIRST,), "each")]

    def with_steps(number: int) -> Config:
        return config.model_copy(update={"ppo": config.ppo.model_copy(update=settings | {"num_steps": number})})

    with _crew(with_steps(1), plan) as crew:
        for composition, communities, number in (("each", (FIRST,), 5), ("max_min", both, 2), ("routed", both, 2)):
            larger = with_steps(number)
            recipe = replace(known, name=f"policies/{composition}", identity={"name": composition})
            target = Target(composition, communities, composition)
            Controller(larger, directory, plan, target, recipe, crew, known_scales).run()
            steps = steps_of(config, composition)
            assert max(row["canary_difference"] for row in steps) < 1e-4
            assert max(abs(row["importance_max"] - 1) for row in steps) < 1e-3
            rewards = [steps[0][f"reward of {community}"] for community in communities]
            if composition == "each":
                assert steps[-1]["reward"] > steps[0]["reward"] + 0.3
            elif composition == "max_min":
                assert steps[0]["reward"] == pytest.approx(min(rewards), abs=0.05)
            else:
                assert min(rewards) < steps[0]["reward"] < max(rewards)
            saved = policies.load(Path(config.run_dir) / f"policies/{composition}").model
            assert not any("lora" in name for name, _ in saved.named_parameters())


class Killing(Controller):
    """Kills an engine, a scorer and a learner, each as its step begins."""

    def run_step(self):
        victims = {2: self.crew.engines.pool.actors, 4: self.crew.scorers._pool.actors, 5: self.crew.learners.actors}
        victim = victims.get(self.step)
        if victim and self.step not in self.killed:
            import ray

            self.killed.append(self.step)
            os.kill(ray.get(victim[0].pid.remote()), signal.SIGKILL)
        return super().run_step()


@pytest.mark.slow  # tests/chaos kills the same, and more
def test_killed_actors_change_nothing(config, shown, plan, crew, known_scales):
    """An engine, a scorer, a learner: the next prompts, responses and losses are those of the undisturbed run."""
    killed = controller(config, plan, crew, known_scales, "killed", kind=Killing)
    killed.killed = []
    killed.run()
    assert killed.killed == [2, 4, 5]
    assert crew.failures.seen == ["rollout engine 0", "reward scorer 0", "learner"]
    crew.failures.seen.clear()
    _same(steps_of(config, "killed"), steps_of(config, folder_of(config, FIRST)))


def _same(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        assert {key: row[key] for key in SAME} == pytest.approx({key: other[key] for key in SAME}, abs=1e-5, rel=1e-4)


class Interrupted(Controller):
    """Gives up after five steps, as Ctrl-C does."""

    def run_step(self):
        if self.step == 5:
            raise KeyboardInterrupt
        return super().run_step()


@pytest.mark.slow  # for its length alone
def test_overlap_is_one_step_behind_and_resumes_exactly(config, plan, crew, known_scales):
    """What was written ahead is in the checkpoint: the weights that wrote it are gone."""
    controller(config, plan, crew, known_scales, "overlapped", overlap=True, num_steps=7).run()
    undisturbed = steps_of(config, "overlapped")
    RunDirectory(config.run_dir).remove("policies/overlapped")
    with pytest.raises(KeyboardInterrupt):
        controller(config, plan, crew, known_scales, "overlapped", kind=Interrupted, overlap=True, num_steps=7).run()
    resumed = controller(config, plan, crew, known_scales, "overlapped", overlap=True, num_steps=7)
    resumed.run()
    _same(steps_of(config, "overlapped"), undisturbed)
    assert undisturbed[0]["importance_max"] == pytest.approx(1.0, abs=2e-5)
    assert all(row["engine_difference"] > 1e-3 for row in undisturbed[2:])  # a step off policy


class Skipping(Controller):
    """Forgets to synchronise once."""

    def synchronise(self):
        return 0.0 if self.step == 1 else super().synchronise()


def test_a_skipped_synchronisation_stops_the_run(config, plan, crew, known_scales):
    with pytest.raises(SynchronizationError, match=r"step 2 was written by weights of version \[1\], 2 was to write"):
        controller(config, plan, crew, known_scales, "skipping", kind=Skipping).run()


class Damaging(Controller):
    """One published tensor is 1% larger than the learner's, its checksum taken before."""

    def _publish(self, version):
        if version != 2:
            return super()._publish(version)
        import ray

        update = self.crew.learners.publish(version, self.canaries, self.crew.engine_precision)
        (name, tensor), *others = ray.get(update.chunks[0])
        damaged = ray.put([(name, tensor * 1.01), *others])
        return self.crew.engines.synchronise(replace(update, chunks=(damaged, *update.chunks[1:])))


def test_a_damaged_tensor_stops_the_run(config, plan, crew, known_scales):
    with pytest.raises(SynchronizationError, match="weights of version 2 came in with checksum"):
        controller(config, plan, crew, known_scales, "damaged", kind=Damaging).run()


@pytest.mark.slow  # for its length alone
@pytest.mark.parametrize("advantage", ["rloo", "grpo"])
def test_critic_free_estimators_raise_the_reward_too(config, plan, crew, known_scales, advantage):
    settings = {"advantage": advantage, "responses_per_prompt": 4, "prompts_per_step": 16, "num_steps": 6}
    controller(config, plan, crew, known_scales, advantage, **settings).run()
    steps = steps_of(config, advantage)
    assert "critic_loss" not in steps[0]
    assert steps[-1]["reward"] - steps[0]["reward"] > 0.3


@pytest.mark.slow  # for its length alone
def test_a_budget_holds_the_divergence(config, plan, crew, known_scales):
    """The coefficient rises while the policy is beyond its budget, and holds it back beside the undisturbed run."""
    settings = {"kl_budget": 0.05, "kl_horizon": 100.0, "kl_coefficient": 0.2, "num_steps": 6}
    controller(config, plan, crew, known_scales, "budget", **settings).run()
    steps = steps_of(config, "budget")
    for row, after in itertools.pairwise(steps):
        change = 1 + min(max(row["kl"] / 0.05 - 1, -0.2), 0.2) * 64 / 100
        assert after["kl_coefficient"] == pytest.approx(row["kl_coefficient"] * change)
    assert steps[-1]["kl_coefficient"] > 0.2
    assert steps[-1]["kl"] < 0.8 * steps_of(config, folder_of(config, FIRST))[5]["kl"]


def test_a_reward_model_that_gives_no_number_stops_the_run_with_the_response(
    config, plan, crew, known_scales, tmp_path
):
    """Its weights are damaged after the run has started."""
    broken = tmp_path / "broken"
    shutil.copytree(plan.models[FIRST].address, broken)
    weights = load_file(broken / "model.safetensors")
    save_file({name: tensor * float("nan") for name, tensor in weights.items()}, broken / "model.safetensors")
    import ray

    from scpo_ray.ppo.actors import Failures, Pool
    from scpo_ray.ppo.reward import RewardActor, Scorers

    pool = Pool(
        "reward scorer",
        1,
        lambda index: (
            ray.remote(RewardActor)
            .options(num_cpus=0.1)
            .remote({FIRST: str(broken)}, config.format, config.score, threads=1)
        ),
        Failures(0),
    )
    others = Crew(crew.engines, Scorers(pool, [FIRST]), crew.learners, crew.failures, crew.engine_precision)
    with pytest.raises(ModelError, match=r"broken: reward nan for response '.+'; the checkpoint is damaged"):
        controller(config, plan, others, known_scales, "broken").run()
    pool.stop()


def test_a_policy_that_fails_does_not_take_the_others(config, crew, tmp_path, monkeypatch):
    """The first of two, in the middle of a step; what is there of the other is measured and shown, and a rerun mends it."""
    run = tmp_path / "run"
    for name in ("run", "score_cache"):  # the crew holds the CPUs that scoring would need
        ignored = shutil.ignore_patterns("pol*", "logs", "ppo.html")
        shutil.copytree(Path(config.run_dir).parent / name, tmp_path / name, ignore=ignored)
    again = config.with_settings(
        {"run_dir": str(run), "ppo.num_steps": 1, "ppo.evaluation.max_prompts": 4, "ppo.overlap": True}
    )
    monkeypatch.setattr(ppo, "at_work", lambda *arguments, **options: contextlib.nullcontext(crew))
    update = Controller.update

    def explodes(self, batch):
        if self.target.name == FIRST:
            raise TrainingError("policy_loss is inf")
        return update(self, batch)

    monkeypatch.setattr(Controller, "update", explodes)
    with pytest.raises(
        TrainingError, match=rf"1 of 2 policies not trained: {FIRST}: policy_loss is inf \(the others .*html"
    ):
        ppo.run(again)
    assert RunDirectory(str(run)).names("policies") == [folder_of(again, SECOND)]
    tables = RunDirectory(str(run)).read_table(f"{recipes.POLICY_EVALUATION}/judgements.parquet")
    assert set(tables["policy"].to_pylist()) == {"start", SECOND}
    page = (run / "ppo.html").read_text()  # what one step gained on four prompts is chance; that it is told is not
    assert f"policy {SECOND} " in page and f"policy {FIRST} " not in page
    (record,) = (one for one in records(str(run)) if one.stage == "ppo")
    assert (record.status, record.num_missing, record.num_failed) == ("failed", 1, 1)
    monkeypatch.setattr(Controller, "update", update)
    assert f"policy {FIRST} " in ppo.run(again)
    (record,) = (one for one in records(str(run)) if one.stage == "ppo")
    assert (record.status, record.num_missing) == ("made", 0)


@pytest.mark.slow  # tests/chaos kills the same, and more
def test_a_killed_controller_asks_the_next_prompts_that_it_would_have_asked(config, shown, tmp_path):
    """-9 after the checkpoint of step 3: the rerun ends where the undisturbed run ended, step by step."""
    for name in ("run", "score_cache"):
        shutil.copytree(
            Path(config.run_dir).parent / name, tmp_path / name, ignore=shutil.ignore_patterns("pol*", "logs")
        )
    again = config.model_copy(
        update={
            "run_dir": str(tmp_path / "run"),
            "ppo": config.ppo.model_copy(update={"communities": (FIRST,)}),
        }
    )
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(again))
    command = [sys.executable, "jobs/ppo.py", "--config", str(file)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    driver = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        while not list((tmp_path / "run/policy_checkpoints").glob("*/step_00000003")):
            assert driver.poll() is None, "it ended before it could be killed"
            time.sleep(0.2)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    assert RunDirectory(again.run_dir).names("policies") == []
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    _same(steps_of(again, folder_of(again, FIRST)), steps_of(config, folder_of(config, FIRST)))
    assert RunDirectory(again.run_dir).names("policy_checkpoints") == []
    assert f"policy {FIRST} gained" in done.stdout
