"""Score every response with the global reward model.

ray job submit --working-dir . -- python jobs/score.py --config jobs/experiments/prism.yaml --run_dir /shared/prism
python jobs/score.py --config jobs/experiments/prism.yaml
"""

from scpo_ray.cli import load_config, run


def main() -> None:
    config = load_config(description=__doc__)
    from scpo_ray.stages import preflight  # deferred: a bad config fails in milliseconds

    if preflight.passed(config, "score"):
        from scpo_ray.stages import score

        print(score.run(config))


if __name__ == "__main__":
    run(main)
