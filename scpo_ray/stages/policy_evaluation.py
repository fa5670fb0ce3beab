"""Policies on prompts that none was trained on: what they write, and what every community's model makes of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from scpo_ray.artifacts import Manifest, Recipe, RunDirectory
from scpo_ray.config import Config
from scpo_ray.evaluation.policies import Judgements, gain
from scpo_ray.models import load_tokenizer
from scpo_ray.ppo import prompts as prompt_sets
from scpo_ray.ppo.crew import Crew
from scpo_ray.ppo.learner import LearnerTask
from scpo_ray.ppo.learners import LearnerDied
from scpo_ray.ppo.objective import Scale
from scpo_ray.ppo.records import Answer, Prompt, Rollout, Sequences
from scpo_ray.records import POLICY_JUDGEMENTS, POLICY_RESPONSES, table
from scpo_ray.runtime import progress_bar
from scpo_ray.stages import recipes
from scpo_ray.stages.policy_plan import Plan, held_out_name

START = "start"


@dataclass(frozen=True)
class Written:
    """What one policy wrote to the test prompts, prompt after prompt."""

    policy: str
    rollouts: list[Rollout]
    kl: list[float]
    """Of each response, nats."""


def recipe_of(config: Config, directory: RunDirectory, plan: Plan) -> Recipe:
    """The evaluation of the policies that exist."""
    return recipes.policy_evaluation(config, directory, inputs=plan.inputs(directory))


def is_missing(config: Config, directory: RunDirectory, plan: Plan) -> bool:
    """Whether there is something to measure. Measurements of fewer policies are made anew, not refused."""
    manifest = directory.find(recipes.POLICY_EVALUATION)
    return manifest is None or recipe_of(config, directory, plan).difference(manifest) is not None


def run(config: Config, directory: RunDirectory, plan: Plan, crew: Crew, scales: Mapping[str, Scale]) -> Manifest:
    """Measure the start policy and every trained one; write `policy_evaluation`."""
    recipe = recipe_of(config, directory, plan)
    prompts = test_prompts(config, plan)
    addresses = {START: plan.start_address} | {
        target.name: directory.shared_address(each.name) for target, each in plan.recipes.items()
    }
    responses, judgements = [], []
    with (
        progress_bar("policy_evaluation", unit="policies", run=directory.absolute_address) as bar,
        recipe.making(directory) as draft,
    ):
        for number, (name, address) in enumerate(addresses.items(), 1):
            written = write(
                config, plan, crew, name, address, prompts, per_prompt=config.ppo.evaluation.responses_per_prompt
            )
            responses += _response_rows(written, config.ppo.evaluation.responses_per_prompt)
            for judged in judge(config, plan, crew, scales, written, config.ppo.evaluation.responses_per_prompt):
                judgements += _judgement_rows(name, prompts, judged)
            bar.update(number, len(addresses), note=name)
        draft.write_table("responses.parquet", table(responses, POLICY_RESPONSES))
        draft.write_table("judgements.parquet", table(judgements, POLICY_JUDGEMENTS))
        draft.statistics |= {
            "num_policies": len(addresses),
            "num_prompts": len(prompts),
            "num_prompts_too_long": plan.prompts.num_too_long,
        }
    return directory.require(recipe.name, job="ppo")


def test_prompts(config: Config, plan: Plan) -> list[Prompt]:
    """The prompts that policies are measured on: every context once, at most `max_prompts`, drawn by the seed."""
    every = prompt_sets.distinct_contexts(plan.prompts.test)
    order = np.random.default_rng([config.seed, 19]).permutation(len(every))[: config.ppo.evaluation.max_prompts]
    return [every[index] for index in sorted(order)]


def write(
    config: Config, plan: Plan, crew: Crew, name: str, address: str, prompts: Sequence[Prompt], *, per_prompt: int
) -> Written:
    """Load a policy into learners and engines, proved as in training, and let it answer; a dead learner starts again."""
    task = LearnerTask(
        name=name,
        start=address,
        config=config.ppo.model_copy(update={"lora": config.ppo.lora.model_copy(update={"enabled": False})}),
        seed=config.seed,
        temperature=config.ppo.temperature,
        reference=plan.start_address,
        run=RunDirectory(config.run_dir).absolute_address,
        stage="policy_evaluation",
    )
    while True:
        try:
            if not crew.learners.actors:
                crew.learners.start()
            crew.learners.begin(task)
            rollouts = _roll_out(config, plan, crew, prompts, per_prompt)
            sequences = Sequences(
                [rollout.prompt.token_ids for rollout in rollouts], [rollout.sample.token_ids for rollout in rollouts]
            )
            found = crew.learners.evaluate(sequences)
            kl = (found["log_probs"] - found["reference_log_probs"]).sum(dim=1).tolist()
            return Written(name, rollouts, kl)
        except LearnerDied:
            crew.failures.note("learner")
            crew.learners.stop()


def judge(
    config: Config, plan: Plan, crew: Crew, scales: Mapping[str, Scale], written: Written, per_prompt: int
) -> list[Judgements]:
    """Every model's normalised reward of every response, and its true utilities where they are known."""
    rollouts = written.rollouts
    rows = [row for row, rollout in enumerate(rollouts) if rollout.text]
    answers = [Answer(rollouts[row].prompt.context, rollouts[row].text) for row in rows]
    rewards = crew.scorers.score(dict.fromkeys(plan.all_models, answers))
    found = []
    for kind, models in (("proxy", plan.models), ("held out", plan.held_out)):
        for community in models:
            name = community if kind == "proxy" else held_out_name(community)
            values = np.full(len(rollouts), config.ppo.empty_reward)
            values[rows] = (np.asarray(rewards[name].values) - scales[name].mean) / scales[name].deviation
            found.append(Judgements(kind, community, values.reshape(-1, per_prompt)))
    if plan.truth is not None:
        for community in plan.truth.preferences:
            values = np.array([plan.truth.utility(rollout.text, community) for rollout in rollouts])
            found.append(Judgements("truth", community, values.reshape(-1, per_prompt)))
    return found


def _roll_out(config: Config, plan: Plan, crew: Crew, prompts: Sequence[Prompt], per_prompt: int) -> list[Rollout]:
    tokenizer = load_tokenizer(plan.start)
    canaries = prompt_sets.canaries(
        prompts,
        number=config.ppo.num_canaries,
        max_tokens=config.format.max_tokens,
        vocab_size=len(tokenizer),
    )
    crew.synchronise(0, canaries)
    asked = [prompt for prompt in prompts for _ in range(per_prompt)]
    seeds = prompt_sets.request_seeds(seed=config.seed, step=2**31, number=len(asked))
    samples = crew.engines.collect(crew.engines.submit([prompt.token_ids for prompt in asked], seeds))
    texts = tokenizer.batch_decode([sample.token_ids for sample in samples], skip_special_tokens=True)
    return [Rollout(*row[:2], row[2].strip()) for row in zip(asked, samples, texts, strict=True)]


def gains(
    config: Config, judgements: pa.Table, groups: Mapping[str, str]
) -> dict[tuple[str, str, str], tuple[Judgements, Judgements, object]]:
    """(policy, kind, community) -> its judgements, the start policy's, and the gain with its interval.

    Args:
        groups: prompt id -> prompt group.
    """
    values: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in judgements.sort_by([("prompt_id", "ascending"), ("sample", "ascending")]).to_pylist():
        key = (row["policy"], row["kind"], row["community"])
        values.setdefault(key, {}).setdefault(row["prompt_id"], []).append(row["value"])
    judged = {key: Judgements(key[1], key[2], np.array(list(by_prompt.values()))) for key, by_prompt in values.items()}
    clusters = {key: [groups[prompt] for prompt in by_prompt] for key, by_prompt in values.items()}
    return {
        key: (
            policy,
            judged[START, *key[1:]],
            gain(
                policy,
                judged[START, *key[1:]],
                groups=clusters[key],
                num_resamples=config.evaluate.num_resamples,
                seed=config.seed,
            ),
        )
        for key, policy in judged.items()
        if key[0] != START
    }


def _response_rows(written: Written, per_prompt: int) -> list[dict]:
    return [
        {
            "policy": written.policy,
            "prompt_id": rollout.prompt.prompt_id,
            "prompt_group": rollout.prompt.prompt_group,
            "community": rollout.prompt.community,
            "context": list(rollout.prompt.context),
            "sample": place % per_prompt,
            "response": rollout.text,
            "num_tokens": len(rollout.sample.token_ids),
            "is_finished": rollout.sample.is_finished,
            "kl": kl,
        }
        for place, (rollout, kl) in enumerate(zip(written.rollouts, written.kl, strict=True))
    ]


def _judgement_rows(policy: str, prompts: Sequence[Prompt], judged: Judgements) -> list[dict]:
    return [
        {
            "policy": policy,
            "prompt_id": prompt.prompt_id,
            "sample": sample,
            "kind": judged.kind,
            "community": judged.community,
            "value": float(value),
        }
        for prompt, values in zip(prompts, judged.values, strict=True)
        for sample, value in enumerate(values)
    ]
