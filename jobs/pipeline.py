"""Run every stage in order, from data to report; finished stages are not repeated.

ray job submit --working-dir . -- python jobs/pipeline.py --config jobs/experiments/demo.yaml --run_dir /shared/demo
python jobs/pipeline.py --config jobs/experiments/demo.yaml
"""

from scpo_ray.cli import load_config, run


def main() -> None:
    config = load_config(description=__doc__)
    from scpo_ray.stages import preflight  # deferred: a bad config fails in milliseconds

    if preflight.passed(config, "pipeline"):
        from scpo_ray.stages import pipeline

        print(pipeline.run(config))


if __name__ == "__main__":
    run(main)
