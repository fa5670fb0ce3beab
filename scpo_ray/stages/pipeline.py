"""All stages of a run in order; what is made already is found, not made again."""

import calendar
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from scpo_ray.artifacts import Manifest, RunDirectory
from scpo_ray.cli import dump_yaml
from scpo_ray.config import Config
from scpo_ray.errors import TrainingError
from scpo_ray.runtime import console
from scpo_ray.stages import evaluate, preflight, prepare, report, score, select, train, train_global
from scpo_ray.training.task import check_checkpoint_dir


@dataclass(frozen=True)
class StageLine:
    """One line of the closing table. `num_tokens` is None for stages that run no model."""

    stage: str
    wall_time_s: float
    was_made: bool
    num_tokens: int | None = None
    num_padded_tokens: int | None = None
    note: str = ""


def run(config: Config) -> str:
    """Prepare, train the global model, score, select, train, evaluate, report; show a summary, return the report's path.

    Raises:
        ScpoError: a stage cannot go on.
        ConfigError: no device has the memory for a model; raised, as the next, before anything is trained.
        DataError: there are no test pairs to measure anything with.
        TrainingError: communities failed to train; raised at the very end, when the others are in the report.
    """
    directory = RunDirectory(config.run_dir)
    for section in ("train_global", "train"):
        check_checkpoint_dir(config.run_dir, getattr(config, section).checkpoint_dir, section)
    lines: list[StageLine] = []
    prepared = _timed(lines, "prepare", lambda: prepare.run(config))
    directory.write_file("config.yaml", dump_yaml(config).encode())
    console.print(Text(_prepared_line(prepared)))
    _check_test_pairs(config, prepared)
    if lines[0].was_made:
        preflight.after_prepare(config, "pipeline")
    _timed(lines, "train_global", lambda: train_global.run(config))
    _timed(lines, "score", lambda: score.run(config))
    _timed(lines, "select", lambda: select.run(config)[0])
    outcome = _train(lines, config)
    for name, reason in outcome.failed.items():
        console.print(Text.assemble(("failed", "bold red"), f" {name}: {reason}"))
    if outcome.trained:
        _timed(lines, "evaluate", lambda: evaluate.run(config))
    path = report.run(config, failures=outcome.failed)
    if outcome.trained:
        console.print(report.terminal_table(config))
    console.print(summary_table(lines))
    if outcome.failed:
        raise TrainingError(
            f"{', '.join(map(str, outcome.failed))}: not trained, for the reasons above; everything else is in {path}"
        )
    return str(path)


def _check_test_pairs(config: Config, prepared: Manifest) -> None:
    """What evaluation would refuse at the end, when all is trained."""
    known, majority = prepared.statistics["communities"], prepared.statistics["majority"]
    assert isinstance(known, dict) and isinstance(majority, list)
    counts = {community: splits["test"] for community, splits in known.items()}
    communities = train.communities_to_train(config, RunDirectory(config.run_dir))
    evaluate.check_test_pairs(counts, communities, of_majority=sum(counts[name] for name in majority))


def summary_table(lines: Sequence[StageLine]) -> Table:
    """Time, tokens per second and padding share of each stage."""
    table = Table(title="Stages", title_justify="left")
    for name in ("stage", "time", "tokens", "tokens/s", "padding", ""):
        table.add_column(name, justify="left" if name in ("stage", "") else "right")
    for line in lines:
        speed = padding = tokens = "-"
        if line.num_tokens:
            tokens = f"{line.num_tokens:,}"
            speed = f"{line.num_tokens / max(line.wall_time_s, 1e-9):,.0f}"
            if line.num_padded_tokens:
                padding = f"{1 - line.num_tokens / line.num_padded_tokens:.1%}"
        table.add_row(line.stage, f"{line.wall_time_s:.1f} s", tokens, speed, padding, line.note)
    return table


def _timed(lines: list[StageLine], stage: str, make: Callable[[], Manifest]) -> Manifest:
    """Run one stage and note what it cost; a stage that found its artifact is marked as reused."""
    start, started = time.monotonic(), time.time()
    manifest = make()
    elapsed = time.monotonic() - start
    was_made = _age_s(manifest) <= time.time() - started + 1
    tokens = manifest.statistics.get("num_tokens") if was_made else None
    padded = manifest.statistics.get("num_padded_tokens") if was_made else None
    lines.append(
        StageLine(
            stage,
            elapsed,
            was_made,
            tokens if isinstance(tokens, int) else None,
            padded if isinstance(padded, int) else None,
            "" if was_made else "reused",
        )
    )
    return manifest


def _age_s(manifest: Manifest) -> float:
    return time.time() - calendar.timegm(time.strptime(manifest.created, "%Y-%m-%dT%H:%M:%SZ"))


def _train(lines: list[StageLine], config: Config) -> train.TrainOutcome:
    start = time.monotonic()
    outcome = train.run(config)
    made = [manifest for name, manifest in outcome.trained.items() if name in outcome.made]
    tokens = sum(int(str(manifest.statistics["num_tokens"])) for manifest in made)
    padded = sum(int(str(manifest.statistics["num_padded_tokens"])) for manifest in made)
    note = f"{len(made)} trained, {len(outcome.trained) - len(made)} reused, {len(outcome.failed)} failed"
    lines.append(StageLine("train", time.monotonic() - start, bool(made), tokens or None, padded or None, note))
    return outcome


def _prepared_line(manifest: Manifest) -> str:
    statistics = manifest.statistics
    communities, majority = statistics["communities"], statistics["majority"]
    assert isinstance(communities, dict) and isinstance(majority, list)
    return (
        f"{statistics['num_pairs']:,} pairs over {statistics['num_responses']:,} responses from {len(communities)} "
        f"communities; majority: {', '.join(majority)}"
    )
