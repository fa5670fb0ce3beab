"""Score the trained models on test pairs and measure gains and losses; or compare models from elsewhere on any pairs.

ray job submit --working-dir . -- python jobs/evaluate.py --config jobs/experiments/demo.yaml --run_dir /shared/demo

python jobs/evaluate.py --run_dir runs/compare --evaluate.models ORG/MODEL_A,path/to/model_b \\
    --prepare.datasets pair_files --prepare.pair_files.paths mine.jsonl --prepare.majority "United States" \\
    --evaluate.model_splits train,test --evaluate.trained_on theirs.jsonl
"""

from scpo_ray.cli import load_config, run


def main() -> None:
    config = load_config(description=__doc__)
    from scpo_ray.stages import preflight  # deferred: a bad config fails in milliseconds

    if not preflight.passed(config, "evaluate"):
        return
    from scpo_ray.stages import evaluate, evaluate_models

    if config.evaluate.models:
        page = evaluate_models.run(config)
        print(evaluate_models.summary(config))
        print(page)
    else:
        print(evaluate.run(config))


if __name__ == "__main__":
    run(main)
