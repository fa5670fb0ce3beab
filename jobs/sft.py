"""Make the start policy: supervised learning of the responses that people chose.

ray job submit --working-dir . -- python jobs/sft.py --config jobs/experiments/ppo_atlas.yaml --run_dir /shared/ppo
python jobs/sft.py --config jobs/experiments/ppo_atlas.yaml
"""

from scpo_ray.cli import load_config, run


def main() -> None:
    config = load_config(description=__doc__)
    from scpo_ray.stages import preflight  # deferred: a bad config fails in milliseconds

    if preflight.passed(config, "sft"):
        from scpo_ray.stages import sft

        print(sft.run(config))


if __name__ == "__main__":
    run(main)
