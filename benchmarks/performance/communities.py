"""What a further community costs beside its own training.

python -m benchmarks.performance.communities FOLDER [CONVERSATIONS]

LoRA on MiniLM, a few steps for each of the seven minorities of PRISM-shaped data, one worker group, one process after
another. A community's cost is the time between its model's manifest and the one before it, without the steps' own time as its
`metrics.json` says: copying the base, reading and formatting pairs, DeepSpeed's engine, merging, writing.
"""

import json
import statistics
import sys
from pathlib import Path

from benchmarks.performance.workload import prepared
from scpo_ray.artifacts import RunDirectory
from scpo_ray.runtime import connect
from scpo_ray.stages import score, select, train


def main(folder: str, conversations: str = "300") -> None:
    """Prints a line per community, keeps FOLDER/communities.json."""
    place = Path(folder).absolute()
    config = prepared(place, int(conversations))
    lora = {"enabled": True, "rank": 16}
    config = config.model_copy(
        update={
            "select": config.select.model_copy(update={"controls": ()}),
            "train": type(config.train).model_validate({"max_steps": 4, "lora": lora, "learning_rate": 1e-4}),
            "rebuild": True,
        }
    )
    connect()
    for stage in (score, select):
        stage.run(config.model_copy(update={"rebuild": False}))
    train.run(config)
    found = overheads(RunDirectory(config.run_dir))
    for name, (training, overhead) in found.items():
        print(f"{name}: {training:.1f} s of steps, {overhead:.1f} s beside them")
    rest = [overhead for _, overhead in list(found.values())[1:]]
    print(f"second to last: {statistics.median(rest):.2f} s in the median, {max(rest):.2f} s at most")
    (place / "communities.json").write_text(json.dumps(found, indent=1))


def overheads(directory: RunDirectory) -> dict[str, tuple[float, float]]:
    """Model -> (seconds of its steps, seconds between the model before it and itself, beyond that), in the order of making."""
    models = sorted(
        Path(directory.path("reward_models")).glob("*/manifest.json"), key=lambda path: path.stat().st_mtime
    )
    found, before = {}, models[0].stat().st_mtime
    for path in models:
        training = json.loads((path.parent / "metrics.json").read_text())["wall_time_s"]
        made = path.stat().st_mtime
        found[path.parent.name] = (training, max(0.0, made - before - training))
        before = made
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
