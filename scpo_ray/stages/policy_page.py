"""`ppo.html`: policies and their measurements, from the run directory to the page."""

import pyarrow.compute as pc

from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config
from scpo_ray.evaluation.policies import best_of_kl_bound
from scpo_ray.reporting.ppo_page import BestOfN, Measurement, PpoPage, SampleRow, TrainedPolicy, render_ppo
from scpo_ray.stages import recipes
from scpo_ray.stages.policy_evaluation import START, gains
from scpo_ray.stages.policy_plan import Plan

PAGE = "ppo.html"


def write(config: Config, directory: RunDirectory, plan: Plan) -> str:
    """Write the page and the tables behind it; return what to show in the terminal."""
    manifest = directory.require(recipes.POLICY_EVALUATION, job="ppo")
    responses = directory.read_table(f"{recipes.POLICY_EVALUATION}/responses.parquet")
    judgements = directory.read_table(f"{recipes.POLICY_EVALUATION}/judgements.parquet")
    groups = dict(zip(responses["prompt_id"].to_pylist(), responses["prompt_group"].to_pylist(), strict=True))
    measured = [
        Measurement(policy, kind, community, float(start.values.mean()), float(judged.values.mean()), estimate)
        for (policy, kind, community), (judged, start, estimate) in gains(config, judgements, groups).items()
    ]
    divergence = responses.group_by("policy").aggregate([("kl", "mean")])
    page = PpoPage(
        title=config.report.title,
        run_dir=config.run_dir,
        seed=config.seed,
        created=manifest.created,
        start=config.ppo.policy or "the run's start policy",
        policies=[
            TrainedPolicy(
                target.name,
                target.composition,
                target.communities,
                directory.read_json(f"{recipe.name}/metrics.json")["steps"],
            )
            for target, recipe in plan.recipes.items()
        ],
        measured=measured,
        kl=dict(zip(divergence["policy"].to_pylist(), divergence["kl_mean"].to_pylist(), strict=True)),
        samples=_samples(config, responses, judgements),
        best_of_n=best_of_n_rows(config, directory, plan),
        num_prompts=int(str(manifest.statistics["num_prompts"])),
        responses_per_prompt=config.ppo.evaluation.responses_per_prompt,
        num_left_out=plan.prompts.num_too_long,
    )
    directory.write_file(PAGE, render_ppo(page).encode())
    return "\n".join([*page.sentences, directory.path(PAGE)])


def best_of_n_rows(config: Config, directory: RunDirectory, plan: Plan) -> list[BestOfN]:
    """The baseline's results, where jobs/best_of_n.py has made them from the same policy and models."""
    manifest = directory.find(recipes.BEST_OF_N)
    if manifest is None:
        return []
    inputs = {name: value for name, value in plan.inputs(directory).items() if not name.startswith("policy ")}
    if recipes.best_of_n(config, directory, inputs=inputs).difference(manifest) is not None:
        return []
    from scpo_ray.core.bootstrap import Estimate

    return [
        BestOfN(
            row["community"],
            row["kind"],
            row["n"],
            row["mean"],
            Estimate(row["gain"], row["low"], row["high"], row["num_responses"], row["num_groups"]),
            best_of_kl_bound(row["n"]),
        )
        for row in directory.read_table(f"{recipes.BEST_OF_N}/best_of_n.parquet").to_pylist()
    ]


def _samples(config: Config, responses, judgements) -> list[SampleRow]:
    """The first response of every policy to some prompts, with every community's proxy reward."""
    first = responses.filter(pc.field("sample") == 0).to_pylist()
    values = judgements.filter((pc.field("sample") == 0) & (pc.field("kind") == "proxy")).to_pylist()
    rewards: dict[str, dict[str, dict[str, float]]] = {}
    for row in values:
        of_policy = rewards.setdefault(row["prompt_id"], {}).setdefault(row["policy"], {})
        of_policy[row["community"]] = row["value"]
    by_prompt: dict[str, dict[str, dict]] = {}
    for row in first:
        by_prompt.setdefault(row["prompt_id"], {})[row["policy"]] = row
    chosen = sorted(by_prompt)[: config.ppo.evaluation.num_samples]
    return [
        SampleRow(
            prompt=by_prompt[prompt][START]["context"][-1]["content"],
            responses={policy: row["response"] for policy, row in by_prompt[prompt].items()},
            rewards=rewards[prompt],
        )
        for prompt in chosen
    ]
