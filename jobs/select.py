"""Choose which pairs each community learns from, and how strongly.

ray job submit --working-dir . -- python jobs/select.py --config jobs/experiments/prism.yaml --run_dir /shared/prism
python jobs/select.py --config jobs/experiments/prism.yaml
"""

from scpo_ray.cli import load_config, run


def main() -> None:
    config = load_config(description=__doc__)
    from scpo_ray.stages import preflight  # deferred: a bad config fails in milliseconds

    if preflight.passed(config, "select"):
        from scpo_ray.stages import select

        print(*select.run(config), sep="\n")


if __name__ == "__main__":
    run(main)
