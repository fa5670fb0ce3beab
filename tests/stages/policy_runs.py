"""A small world with reward models and a start policy, for tests of the stages that need both."""

from scpo_ray.config import Config

FIRST, SECOND = "Brevia", "Calder Isles"

SETTINGS: dict[str, dict] = {
    "prepare": {
        "atlas": {
            "num_prompts": 60,
            "majority_annotators": 40,
            "minority_annotators": 20,
            "num_minorities": 2,
            "turned_attributes": 3,
            "disjoint_turns": True,
            "interactions_per_annotator": 10,
        }
    },
    "format": {"max_tokens": 80},
    "train_global": {"epochs": 3, "learning_rate": 2e-3},
    "train": {"epochs": 10, "learning_rate": 1e-3, "num_seeds": 2},
    "sft": {"responses": "chosen", "epochs": 8, "learning_rate": 3e-3, "checkpoint_every_steps": 40},
    "ppo": {
        "num_steps": 10,
        "prompts_per_step": 64,
        "max_response_tokens": 48,
        "learning_rate": 5e-4,
        "critic_learning_rate": 2e-3,
        "warmup_steps": 2,
        "checkpoint_every_steps": 3,
        "held_out_every_steps": 4,
        "evaluation": {"responses_per_prompt": 4},
    },
    "best_of_n": {"num_samples": (1, 4)},
    "evaluate": {"num_resamples": 200},
}
"""Small enough for a test; large enough that ten steps of PPO move a policy."""


def small_config(run_dir: str, **sections: dict) -> Config:
    """The settings with sections merged over them."""
    merged = {name: SETTINGS.get(name, {}) | sections.get(name, {}) for name in {*SETTINGS, *sections}}
    return Config(run_dir=run_dir, **merged)


def with_models(config: Config) -> None:
    """Data, reward models, start policy."""
    from scpo_ray.stages import prepare, score, select, sft, train, train_global

    for stage in (prepare, train_global, score, select, train, sft):
        stage.run(config)


def one_policy(run_dir: str) -> None:
    """One community's policy from nothing to its page; prints how long each stage took."""
    import time

    from scpo_ray.stages import ppo, prepare, score, select, sft, train, train_global

    config = small_config(
        run_dir,
        train=SETTINGS["train"] | {"communities": [FIRST], "num_seeds": 1},
        ppo=SETTINGS["ppo"] | {"communities": [FIRST]},
    )
    begin = start = time.monotonic()
    for stage in (prepare, train_global, score, select, train, sft, ppo):
        stage.run(config)
        print(f"{stage.__name__.rpartition('.')[2]}: {time.monotonic() - start:.0f} s")
        start = time.monotonic()
    print(f"together: {start - begin:.0f} s")


if __name__ == "__main__":
    import sys

    one_policy(sys.argv[1])
