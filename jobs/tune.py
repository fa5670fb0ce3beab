"""Search settings of select and train by what trained models do on validation pairs; the chosen ones become an experiment.

ray job submit --working-dir . -- python jobs/tune.py --config jobs/experiments/tune_global_opinions.yaml --run_dir /shared/tune
python jobs/tune.py --config jobs/experiments/tune_demo.yaml
"""

from scpo_ray.cli import load_config, run


def main() -> None:
    config = load_config(description=__doc__)
    from scpo_ray.stages import preflight  # deferred: a bad config fails in milliseconds

    if preflight.passed(config, "tune"):
        from scpo_ray.stages import tune

        tune.run(config)
        print(tune.summary(config))


if __name__ == "__main__":
    run(main)
