"""Write the terminal table and `report.html`.

ray job submit --working-dir . -- python jobs/report.py --config jobs/experiments/prism.yaml --run_dir /shared/prism
python jobs/report.py --config jobs/experiments/prism.yaml
"""

from scpo_ray.cli import load_config, run


def main() -> None:
    config = load_config(description=__doc__)
    from scpo_ray.stages import preflight  # deferred: a bad config fails in milliseconds

    if preflight.passed(config, "report"):
        from scpo_ray.stages import report

        print(report.run(config))


if __name__ == "__main__":
    run(main)
