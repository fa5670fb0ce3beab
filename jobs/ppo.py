"""Train policies for communities by PPO, measure them on unseen prompts, write ppo.html. Needs jobs/train.py and jobs/sft.py.

ray job submit --working-dir . -- python jobs/ppo.py --config jobs/experiments/ppo_atlas.yaml --run_dir /shared/ppo
python jobs/ppo.py --config jobs/experiments/ppo_atlas.yaml
"""

from scpo_ray.cli import load_config, run


def main() -> None:
    config = load_config(description=__doc__)
    from scpo_ray.stages import preflight  # deferred: a bad config fails in milliseconds

    if preflight.passed(config, "ppo"):
        from scpo_ray.stages import ppo

        print(ppo.run(config))


if __name__ == "__main__":
    run(main)
