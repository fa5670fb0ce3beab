"""The baseline that needs no training: the best of n responses under each community's reward model.

ray job submit --working-dir . -- python jobs/best_of_n.py --config jobs/experiments/ppo_atlas.yaml --run_dir /shared/ppo
python jobs/best_of_n.py --config jobs/experiments/ppo_atlas.yaml
"""

from scpo_ray.cli import load_config, run


def main() -> None:
    config = load_config(description=__doc__)
    from scpo_ray.stages import preflight  # deferred: a bad config fails in milliseconds

    if preflight.passed(config, "best_of_n"):
        from scpo_ray.stages import best_of_n

        best_of_n.run(config)
        print(best_of_n.summary(config))


if __name__ == "__main__":
    run(main)
