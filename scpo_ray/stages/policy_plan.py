"""What a run of policies is to make, and of what: known, and refused, before an actor starts."""

from dataclasses import dataclass
from pathlib import Path

from scpo_ray import model_files, policies
from scpo_ray.artifacts import Recipe, RunDirectory
from scpo_ray.config import Config, PpoConfig
from scpo_ray.datasets.atlas import World, world
from scpo_ray.formatting import Formatter
from scpo_ray.models import load_tokenizer
from scpo_ray.ppo import objective
from scpo_ray.ppo import prompts as prompt_sets
from scpo_ray.ppo.objective import Target
from scpo_ray.ppo.records import Prompt
from scpo_ray.stages import recipes
from scpo_ray.stages.community_models import CommunityModel, community_models, held_out_models, policy_recipe


@dataclass(frozen=True)
class Plan:
    """What a run is to make, and of what."""

    start_address: str
    """Of the start policy, for actors on any node."""
    start: Path
    """The same on this machine."""
    models: dict[str, CommunityModel]
    held_out: dict[str, CommunityModel]
    prompts: prompt_sets.PromptSet
    recipes: dict[Target, Recipe]
    missing: dict[Target, Recipe]
    truth: World | None
    """Atlas knows what every response is worth."""

    @property
    def all_models(self) -> dict[str, CommunityModel]:
        """The communities' models by community; held-out ones as `held out COMMUNITY`."""
        return self.models | {held_out_name(community): model for community, model in self.held_out.items()}

    def inputs(self, directory: RunDirectory) -> dict[str, str]:
        """Content hashes of what an evaluation reads; of the policies that exist."""
        found = {f"model of {name}": model.content_hash for name, model in self.all_models.items()}
        found["start"] = model_files.content_hash(self.start)
        for target, recipe in self.recipes.items():
            manifest = directory.find(recipe.name)
            if manifest is not None:
                found[f"policy {target.name}"] = manifest.content_hash
        return found


def held_out_name(community: str) -> str:
    """What a community's held-out model is called among scorers."""
    return f"held out {community}"


def target_names(config: Config, directory: RunDirectory) -> list[str]:
    """Of the policies that the config asks for.

    Raises:
        ScpoError: a community's model is missing or foreign, or the config names what there is not.
    """
    return [target.name for target in objective.targets(config.ppo, list(community_models(config, directory)))]


def make_plan(config: Config, directory: RunDirectory, *, trains: bool = True) -> Plan:
    """Everything that can be known, and refused, before an actor starts.

    Args:
        trains: off, for who reads the start policy alone: policies are then neither planned nor compared with this config.

    Raises:
        ScpoError: an input is missing, foreign, or does not fit.
    """
    ppo = config.ppo
    found = community_models(config, directory)
    wanted = objective.targets(ppo, list(found))
    address = start_address(config, directory)
    start = model_files.resolve(address).absolute()
    policies.check(start, num_tokens=config.format.max_tokens)
    policies.stop_token_ids(start, load_tokenizer(start))
    formatter = Formatter(load_tokenizer(start), config.format)
    prompts = prompt_sets.load(
        directory,
        formatter,
        max_prompt_tokens=config.format.max_tokens - ppo.max_response_tokens,
        salt=config.prepare.split_salt,
        test_fraction=ppo.test_prompt_fraction,
    )
    made = {}
    for target in wanted if trains else ():
        training_prompts(ppo, target, prompts)
        made[target] = policy_recipe(config, directory, target, found)
    missing = {
        target: recipe for target, recipe in made.items() if recipe.is_made(directory, rebuild=config.rebuild) is None
    }
    truth = world(config.prepare.atlas, seed=config.seed) if config.prepare.datasets == ("atlas",) else None
    held_out = held_out_models(config, directory, list(found))
    return Plan(address, start, found, held_out, prompts, made, missing, truth)


def start_address(config: Config, directory: RunDirectory) -> str:
    """Where the start policy lies, as `model_files.resolve` understands it on every node."""
    if config.ppo.policy is not None:
        return model_files.for_workers(config.ppo.policy)
    recipes.checked(directory, recipes.start_policy(config, directory))
    return directory.shared_address(recipes.START_POLICY)


def training_prompts(config: PpoConfig, target: Target, prompts: prompt_sets.PromptSet) -> list[Prompt]:
    """What a policy is asked in training.

    Raises:
        DataError: there is no prompt.
    """
    if target.composition == "routed":
        return prompts.of(target.communities)
    return prompt_sets.distinct_contexts(prompts.of(target.communities if config.prompts == "own" else None))
