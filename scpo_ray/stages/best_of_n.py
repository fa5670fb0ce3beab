"""The baseline that needs no training: of n responses of the start policy, the one that a community's model likes best."""

import numpy as np
import pyarrow as pa

from scpo_ray import nodes
from scpo_ray.artifacts import Manifest, RunDirectory
from scpo_ray.config import Config
from scpo_ray.core.bootstrap import Estimate
from scpo_ray.errors import ConfigError
from scpo_ray.evaluation.policies import Judgements, best_of, best_of_kl_bound, gain
from scpo_ray.ppo import placement
from scpo_ray.ppo.crew import at_work
from scpo_ray.runtime import connect, console
from scpo_ray.stages import recipes
from scpo_ray.stages.community_models import scales
from scpo_ray.stages.policy_evaluation import START, judge, test_prompts, write
from scpo_ray.stages.policy_plan import Plan, make_plan
from scpo_ray.stages.turns import turn

TABLE = pa.schema(
    [
        ("community", pa.string()),  # whose model chose
        ("kind", pa.string()),  # proxy | held out | truth: who judges what was chosen
        ("n", pa.int32()),
        ("mean", pa.float64()),
        ("gain", pa.float64()),  # over one response
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("num_responses", pa.int64()),
        ("num_groups", pa.int64()),
    ]
)


def run(config: Config) -> Manifest:
    """Write `best_of_n`: for each community and n, how good the chosen responses are. ppo.html shows it beside PPO.

    All n share the responses of the largest one, so that nothing is generated or scored twice.

    Raises:
        ConfigError: no n, or the cluster is too small.
        ArtifactError: the start policy or a reward model is missing.
    """
    directory = RunDirectory(config.run_dir)
    if not config.best_of_n.num_samples:
        raise ConfigError("best_of_n.num_samples: names no n; give at least one")
    with turn(directory, "best_of_n", config.ppo.checkpoint_dir):
        return _make(config, directory)


def _make(config: Config, directory: RunDirectory) -> Manifest:
    plan = make_plan(config, directory, trains=False)
    inputs = {name: value for name, value in plan.inputs(directory).items() if not name.startswith("policy ")}
    recipe = recipes.best_of_n(config, directory, inputs=inputs)
    made = recipe.is_made(directory, rebuild=True)  # a baseline of other models is replaced, not refused
    if made is not None:
        return made
    connect(config.log_format)
    placement.check(placement.layout(config.ppo), nodes.totals())
    known_scales = scales(config, directory, plan.all_models)
    number = max(config.best_of_n.num_samples)
    prompts = test_prompts(config, plan)
    with (
        at_work(
            config.ppo,
            policy=plan.start_address,
            reward_models={name: model.address for name, model in plan.all_models.items()},
            format_config=config.format,
            score_config=config.score.model_copy(update={"precision": recipes.score_precision(config)}),
        ) as crew,
        console.status(f"best of n: {len(prompts)} prompts, {number} responses each"),
        recipe.making(directory) as draft,
    ):
        written = write(config, plan, crew, START, plan.start_address, prompts, per_prompt=number)
        judged = judge(config, plan, crew, known_scales, written, number)
        rows = chosen_rows(config, plan, judged, groups=[prompt.prompt_group for prompt in prompts])
        draft.write_table("best_of_n.parquet", pa.Table.from_pylist(rows, schema=TABLE))
        draft.statistics |= {"num_prompts": len(prompts), "num_samples": number}
    return directory.require(recipe.name, job="best_of_n")


def chosen_rows(config: Config, plan: Plan, judged: list[Judgements], *, groups: list[str]) -> list[dict]:
    """Every judge of the same community on what its model chose, for each n."""
    found = []
    for community in plan.models:
        own = {each.kind: each for each in judged if each.community == community}
        for kind, judge_of in own.items():
            for n in sorted(config.best_of_n.num_samples):
                best = Judgements(kind, community, best_of(judge_of.values, own["proxy"].values, n))
                estimate: Estimate = gain(
                    best,
                    judge_of,
                    groups=groups,
                    num_resamples=config.evaluate.num_resamples,
                    seed=config.seed,
                )
                found.append(
                    {
                        "community": community,
                        "kind": kind,
                        "n": n,
                        "mean": float(np.mean(best.values)),
                        "gain": estimate.value,
                        "low": estimate.low,
                        "high": estimate.high,
                        "num_responses": estimate.num_pairs,
                        "num_groups": estimate.num_clusters,
                    }
                )
    return found


def summary(config: Config) -> str:
    """One line per community: what the largest n gains, by whom, at what bound on the divergence."""
    rows = RunDirectory(config.run_dir).read_table(f"{recipes.BEST_OF_N}/best_of_n.parquet").to_pylist()
    n = max(row["n"] for row in rows)
    return "\n".join(
        f"{row['community']}, {row['kind']}: best of {n} gains {row['gain']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}], "
        f"at most {best_of_kl_bound(n):.2f} nats away"
        for row in rows
        if row["n"] == n
    )
