"""Measure on test pairs what each community gained and what was forgotten.

ray job submit --working-dir . -- python jobs/evaluate.py --config jobs/experiments/prism.yaml
python jobs/evaluate.py --config jobs/experiments/prism.yaml
"""

from scpo_ray.cli import load_config, run


def main() -> None:
    config = load_config(description=__doc__)
    from scpo_ray.stages import evaluate  # deferred: a bad config fails in milliseconds

    print(evaluate.run(config))


if __name__ == "__main__":
    run(main)
