"""Policies for communities, by PPO against their reward models.

Three groups of actors do the work for one policy after another: rollout engines (vLLM), reward scorers, learners (DeepSpeed).
"""

from collections.abc import Mapping
from dataclasses import replace

from rich.text import Text

from scpo_ray import nodes
from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config
from scpo_ray.errors import ModelError, SynchronizationError, TrainingError, WorkerError
from scpo_ray.ppo import placement, tracking
from scpo_ray.ppo.checkpoints import checkpoints_in
from scpo_ray.ppo.crew import Crew, at_work
from scpo_ray.ppo.objective import Scale, Target
from scpo_ray.runtime import connect, console
from scpo_ray.stages import asked, policy_evaluation, policy_page, recipes
from scpo_ray.stages.community_models import scales
from scpo_ray.stages.policy_plan import Plan, make_plan, target_names
from scpo_ray.stages.ppo_controller import Controller
from scpo_ray.stages.turns import turn
from scpo_ray.training.task import check_checkpoint_dir


def run(config: Config) -> str:
    """Train every policy that is missing, measure all of them on prompts that none has seen, write `ppo.html`; its path.
    Another job in this stage is waited for.

    Raises:
        ConfigError: unknown communities, loggers that are not installed, a cluster that is too small.
        ArtifactError: the start policy or a reward model is missing.
        ModelError: the policy cannot be run.
        TrainingError: training cannot go on, or policies failed, in which case the others are trained, measured and shown;
            everything up to the last checkpoint is kept.
    """
    directory = RunDirectory(config.run_dir)
    check_checkpoint_dir(config.run_dir, config.ppo.checkpoint_dir, "ppo")
    with turn(directory, "ppo", config.ppo.checkpoint_dir, of=target_names(config, directory)):
        return _make(config, directory)


def _make(config: Config, directory: RunDirectory) -> str:
    tracking.check(config.ppo.loggers)
    plan = make_plan(config, directory)
    for recipe in plan.missing.values():
        checkpoints_in(directory, recipe, config.ppo).refuse_other_layout(config.ppo, "ppo")
    failed: dict[Target, str] = {}
    if plan.missing or policy_evaluation.is_missing(config, directory, plan):
        connect(config.log_format)
        placement.check(placement.layout(config.ppo), nodes.totals())
        reward_models = {name: model.address for name, model in plan.all_models.items()}
        known_scales = scales(config, directory, plan.all_models)
        with at_work(
            config.ppo,
            policy=plan.start_address,
            reward_models=reward_models,
            format_config=config.format,
            score_config=config.score.model_copy(update={"precision": recipes.score_precision(config)}),
            with_learners=True,
        ) as crew:
            failed = _train(config, directory, plan, crew, known_scales)
            plan = replace(plan, recipes={each: made for each, made in plan.recipes.items() if each not in failed})
            if plan.recipes:
                with turn(directory, "policy_evaluation", config.ppo.checkpoint_dir):
                    policy_evaluation.run(config, directory, plan, crew, known_scales)
    page = ""
    if plan.recipes:
        with turn(directory, "policy_evaluation", config.ppo.checkpoint_dir):
            page = policy_page.write(config, directory, plan)
    if failed:
        reasons = "; ".join(f"{target.name}: {reason}" for target, reason in failed.items())
        raise TrainingError(
            f"{len(failed)} of {len(failed) + len(plan.recipes)} policies not trained: {reasons}"
            + (f" (the others are in {directory.path(policy_page.PAGE)})" if page else "")
        )
    return page


def _train(
    config: Config, directory: RunDirectory, plan: Plan, crew: Crew, known_scales: Mapping[str, Scale]
) -> dict[Target, str]:
    """Every missing policy, one after another; why those failed that did.

    Raises:
        WorkerError: more actors died than `ppo.max_failures` bears.
        SynchronizationError: an engine does not hold what was published, which concerns every policy.
    """
    names = [recipe.name for recipe in plan.recipes.values()]
    failed: dict[Target, str] = {}
    place, adds = config.ppo.checkpoint_dir, config.ppo.communities is not None
    asked.write(directory, "ppo", names, {}, checkpoint_dir=place, adds=adds)
    for target, recipe in plan.missing.items():
        try:
            Controller(config, directory, plan, target, recipe, crew, known_scales).run()
        except (WorkerError, SynchronizationError):
            raise
        except (ModelError, TrainingError) as error:
            failed[target] = str(getattr(error, "cause", error))
            reasons = {plan.recipes[each].name: why for each, why in failed.items()}
            asked.write(directory, "ppo", names, reasons, checkpoint_dir=place, adds=adds)
            crew.learners.stop()  # in the middle of a step, perhaps
            console.print(Text.assemble(("failed", "bold red"), f" {target.name}: {failed[target]}"))
    return failed
