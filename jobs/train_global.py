"""Train the global reward model: the ruler, and where every community's model starts.

ray job submit --working-dir . -- python jobs/train_global.py --config jobs/experiments/prism.yaml --run_dir /shared/prism
python jobs/train_global.py --config jobs/experiments/prism.yaml
"""

from scpo_ray.cli import load_config, run


def main() -> None:
    config = load_config(description=__doc__)
    from scpo_ray.stages import preflight  # deferred: a bad config fails in milliseconds

    if preflight.passed(config, "train_global"):
        from scpo_ray.stages import train_global

        print(train_global.run(config))


if __name__ == "__main__":
    run(main)
