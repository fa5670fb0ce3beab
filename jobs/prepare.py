"""Read the data sets, pair the responses and split the pairs.

ray job submit --working-dir . -- python jobs/prepare.py --config jobs/experiments/prism.yaml --run_dir /shared/prism
python jobs/prepare.py --config jobs/experiments/prism.yaml
"""

from scpo_ray.cli import load_config, run


def main() -> None:
    config = load_config(description=__doc__)
    from scpo_ray.stages import preflight  # deferred: a bad config fails in milliseconds

    if preflight.passed(config, "prepare"):
        from scpo_ray.stages import prepare

        print(prepare.run(config))


if __name__ == "__main__":
    run(main)
