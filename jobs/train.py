"""Train one reward model per community, all in one job.

ray job submit --working-dir . -- python jobs/train.py --config jobs/experiments/prism.yaml --run_dir /shared/prism
python jobs/train.py --config jobs/experiments/prism.yaml
"""

from scpo_ray.cli import load_config, run


def main() -> None:
    config = load_config(description=__doc__)
    from scpo_ray.stages import preflight  # deferred: a bad config fails in milliseconds

    if preflight.passed(config, "train"):
        from scpo_ray.stages import train

        print(train.run_job(config))


if __name__ == "__main__":
    run(main)
