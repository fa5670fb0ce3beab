"""What a run found, for people: one table for the terminal and one self-contained `report.html`."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table

from scpo_ray import telemetry
from scpo_ray.artifacts import Manifest, RunDirectory
from scpo_ray.config import Config
from scpo_ray.records import ModelName
from scpo_ray.reporting.evidence import Evidence
from scpo_ray.reporting.examples import Example, PlantedRow, choose_examples, planted_rows, shortened
from scpo_ray.reporting.exports import exports, global_markdown, model_markdown
from scpo_ray.reporting.page import Page, Provenance, render
from scpo_ray.reporting.results import Kept, ModelResult, results_from
from scpo_ray.reporting.summary import leakage_warnings
from scpo_ray.reporting.terminal import headline_table
from scpo_ray.stages import recipes
from scpo_ray.stages.report_evidence import load_evidence
from scpo_ray.stages.train import communities_to_train, load_trained, model_names
from scpo_ray.training.model_card import with_measurements

REPORT = "report.html"
_NO_FAILURES: Mapping[ModelName, str] = MappingProxyType({})
_NUM_LISTED_ROWS = 20
_OTHER_RULER_CARD = (
    "Not measured by itself: it is the ruler of the control `other_ruler`, and no model starts from it.\n"
)
_TRAINING_KEYS = ("num_pairs", "num_steps", "num_tokens", "num_padded_tokens", "wall_time_s")


def run(config: Config, failures: Mapping[ModelName, str] = _NO_FAILURES) -> str:
    """Write `report.html`, and its figures and tables below `report/`, into the run directory; return the page's path.

    Args:
        failures: why a model is not there. Models that are missing otherwise are listed as well.

    Raises:
        ArtifactError: an artifact is missing, or another config or other inputs made it.
    """
    directory = RunDirectory(config.run_dir)
    with telemetry.stage(directory.absolute_address, "report"):
        page = gather(config, failures)
        for name, content in exports(page):
            directory.write_file(f"report/{name}", content)
        if page.results:
            _fill_model_cards(config, directory, page)
        directory.write_file(REPORT, render(page).encode())
    return directory.path(REPORT)


def _fill_model_cards(config: Config, directory: RunDirectory, page: Page) -> None:
    """Put each model's results into the card beside it; the card is no part of the model's content hash."""
    for name, manifest in load_trained(config, directory).items():
        card = directory.read_text(f"{manifest.name}/README.md")
        table = model_markdown(page, arm=name.arm, community=name.community)
        directory.write_file(f"{manifest.name}/README.md", with_measurements(card, table).encode())
    rulers = {recipes.GLOBAL_MODEL: global_markdown(page), recipes.OTHER_RULER: _OTHER_RULER_CARD}
    for name, table in rulers.items():
        if "README.md" in directory.names(name):
            card = directory.read_text(f"{name}/README.md")
            directory.write_file(f"{name}/README.md", with_measurements(card, table).encode())


def terminal_table(config: Config) -> Table:
    """The headline of every trained model, for rich to print.

    Raises:
        ArtifactError: the evaluation is missing, or another config or other inputs made it.
    """
    directory = RunDirectory(config.run_dir)
    return headline_table(_results(config, directory, load_trained(config, directory)), title=config.report.title)


def gather(config: Config, failures: Mapping[ModelName, str] = _NO_FAILURES) -> Page:
    """Everything that the page shows, read from the run's artifacts."""
    directory = RunDirectory(config.run_dir)
    prepared: Mapping[str, Any] = recipes.checked(directory, recipes.prepared(config)).statistics
    trained = load_trained(config, directory)
    # A run in which every community failed has no evaluation, and deserves its report most.
    results = _results(config, directory, trained) if trained or not failures else []
    rejected = directory.read_table("prepared/rejected_rows.parquet")
    suspicious = directory.read_table("prepared/suspicious_rows.parquet")
    return Page(
        title=config.report.title,
        strategies=config.select.strategies,
        results=results,
        failures=_missing(config, directory, trained, failures),
        majority=prepared["majority"],
        splits=prepared["communities"],
        kept=_kept(config, directory),
        ruler=_ruler(config, prepared["majority"]),
        steps=_steps(config),
        sources=prepared["sources"],
        leakage=prepared["leakage"],
        leakage_warnings=leakage_warnings(prepared["leakage"], split_by=config.prepare.split_by),
        rejected=rejected.slice(0, _NUM_LISTED_ROWS).to_pylist(),
        suspicious=suspicious.slice(0, _NUM_LISTED_ROWS).to_pylist(),
        num_rejected=len(rejected),
        num_suspicious=len(suspicious),
        planted=_planted(config, directory),
        examples=_examples(config, directory),
        settings={
            "agreement_threshold": config.select.agreement_threshold,
            "weight_temperature": config.select.weight_temperature,
            "test_threshold": config.evaluate.test_threshold,
        },
        provenance=_provenance(config, directory, trained),
        evidence=load_evidence(config, directory, trained) if trained else Evidence(),
    )


def _results(config: Config, directory: RunDirectory, trained: dict[ModelName, Manifest]) -> list[ModelResult]:
    recipes.checked(directory, recipes.evaluation(config, directory, trained))
    return results_from(
        directory.read_table("evaluation/metrics.parquet").to_pylist(),
        strategies=config.select.strategies,
        kept=_kept(config, directory),
        cluster_units=_cluster_units(directory),
    )


def _kept(config: Config, directory: RunDirectory) -> dict[tuple[str, str], Kept]:
    found = {}
    for arm in config.select.arms:
        statistics: Mapping[str, Any] = recipes.checked(directory, recipes.decisions(config, directory, arm)).statistics
        for community, of_community in statistics["communities"].items():
            shares, constants = of_community["kept_share"], of_community["constants"]
            found[arm.name, community] = Kept(
                train_share=shares["train"],
                test_share=shares["test"],
                num_kept=of_community["num_kept"],
                effective_sample_size=of_community["effective_sample_size"],
                threshold=constants["agreement_threshold"],
                temperature=constants["weight_temperature"],
                bias=constants["bias"],
                information=constants["information"],
            )
    return found


def _cluster_units(directory: RunDirectory) -> dict[str, str]:
    """By community, what the evaluation's intervals resample, as `evaluate` chooses it."""
    pairs = directory.read_table(
        "prepared/pairs.parquet", columns=["community", "annotator_id"], filters=pc.field("split") == "test"
    )
    counts = pairs.group_by("community").aggregate(
        [("annotator_id", "count", pc.CountOptions("only_valid")), ([], "count_all")]
    )
    return {
        row["community"]: "annotators"
        if row["annotator_id_count"] == row["count_all"]
        else "annotators or prompts"
        if row["annotator_id_count"]
        else "prompts"
        for row in counts.to_pylist()
    }


def _missing(
    config: Config,
    directory: RunDirectory,
    trained: Mapping[ModelName, Manifest],
    failures: Mapping[ModelName, str],
) -> dict[str, str]:
    """The given failures, and the configured models that are not there for another reason."""
    unknown = "no reward model in the run directory; jobs/train.py trains it, or says why it cannot"
    missing = {
        name: unknown for _, name in model_names(config, directory) if name not in trained and name not in failures
    }
    return {str(name): reason for name, reason in (dict(failures) | missing).items()}


def _ruler(config: Config, majority: list[str]) -> str:
    train = config.train_global
    if train.epochs == 0:
        return (
            "The ruler, the global model, was taken as it is: this run trained it on none of these pairs, training or "
            "test. What it had seen before is not known here."
        )
    general = config.prepare.general_preferences.community
    has_general = "general_preferences" in config.prepare.datasets
    names = train.communities or [*majority, *([general] if has_general else [])]
    return (
        f"The ruler, the global model, learned in this run from the training pairs of {', '.join(names)}, and never "
        "from a test pair. It agrees more with pairs that it learned from, so the share of test pairs is the one to "
        "compare."
    )


def _steps(config: Config) -> str:
    if config.train.equal_steps:
        return "Every arm of a community takes the optimiser steps of full fine-tuning."
    return "Arms take equal epochs over what they keep: one that keeps half of the pairs takes half of the steps."


def _planted(config: Config, directory: RunDirectory) -> list[PlantedRow]:
    """What each strategy made of the planted kinds, over the training pairs of the communities to train."""
    kind_of = _planted_kinds(directory)
    if not kind_of:
        return []
    communities = communities_to_train(config, directory)
    rows = []
    for strategy in config.select.strategies:
        rows += planted_rows(
            kind_of, _training_decisions(directory, strategy, communities).to_pylist(), strategy=strategy
        )
    return rows


def _planted_kinds(directory: RunDirectory) -> dict[str, str]:
    if "pair_truth.parquet" not in directory.names(recipes.PREPARED):
        return {}
    truth = directory.read_table("prepared/pair_truth.parquet", columns=["pair_id", "kind"])
    return dict(zip(truth["pair_id"].to_pylist(), truth["kind"].to_pylist(), strict=True))


def _training_decisions(directory: RunDirectory, strategy: str, communities: list[str]) -> pa.Table:
    return directory.read_table(
        f"decisions/{strategy}/decisions.parquet",
        filters=pc.field("community").isin(communities) & (pc.field("split") == "train"),
    )


def _examples(config: Config, directory: RunDirectory) -> dict[str, list[Example]]:
    """The main strategy's telling training pairs per community, with texts."""
    number = config.report.num_example_pairs
    if not number:
        return {}
    kind_of = _planted_kinds(directory)
    picked = {}
    for community in communities_to_train(config, directory):
        decisions = _training_decisions(directory, config.select.strategy, [community])
        pairs = directory.read_table(
            "prepared/pairs.parquet", filters=(pc.field("community") == community) & (pc.field("split") == "train")
        )
        interactions = dict(zip(pairs["pair_id"].to_pylist(), pairs["interaction_id"].to_pylist(), strict=True))
        chosen = choose_examples(decisions.to_pylist(), number=number, interaction_of=interactions)
        wanted = pa.array([decision["pair_id"] for _, decision in chosen], pa.string())
        picked[community] = (chosen, pairs.filter(pc.field("pair_id").isin(wanted)).to_pylist())
    texts = _texts(directory, [pair for _, pairs in picked.values() for pair in pairs])
    found: dict[str, list[Example]] = defaultdict(list)
    for community, (chosen, pairs) in picked.items():
        pair_of = {pair["pair_id"]: pair for pair in pairs}
        for why, decision in chosen:
            pair = pair_of[decision["pair_id"]]
            found[community].append(_example(why, decision, pair, texts, kind_of.get(pair["pair_id"])))
    return dict(found)


def _texts(directory: RunDirectory, pairs: list[dict]) -> dict[str, dict]:
    wanted = sorted({identifier for pair in pairs for identifier in (pair["chosen_id"], pair["rejected_id"])})
    responses = directory.read_table(
        "prepared/responses.parquet",
        columns=["response_id", "context", "response"],
        filters=pc.field("response_id").isin(pa.array(wanted, pa.string())),
    )
    return {row["response_id"]: row for row in responses.to_pylist()}


def _example(why: str, decision: Mapping, pair: Mapping, texts: Mapping[str, dict], kind: str | None) -> Example:
    chosen, rejected = texts[pair["chosen_id"]], texts[pair["rejected_id"]]
    return Example(
        why=why,
        context=tuple((message["role"], shortened(message["content"])) for message in chosen["context"]),
        chosen=shortened(chosen["response"]),
        rejected=shortened(rejected["response"]),
        decision=decision,
        pair=pair,
        kind=kind,
    )


def _provenance(config: Config, directory: RunDirectory, trained: Mapping[ModelName, Manifest]) -> Provenance:
    decisions = [f"decisions/{strategy}" for strategy in config.select.strategies]
    names = [recipes.PREPARED, recipes.GLOBAL_MODEL, recipes.SCORES, *decisions, recipes.EVALUATION]
    manifests = [manifest for name in names if (manifest := directory.find(name)) is not None]
    return Provenance(
        created=manifests[-1].created,
        run_dir=config.run_dir,
        seed=config.seed,
        settings=list(_differences(config.model_dump(mode="json"), Config.model_validate({}).model_dump(mode="json"))),
        packages=manifests[-1].packages,
        stages=[(manifest.name, _wall_time_s(manifest), manifest.content_hash) for manifest in manifests],
        trainings=[
            {key: manifest.statistics.get(key) for key in _TRAINING_KEYS}
            | {"name": str(name), "content_hash": manifest.content_hash}
            for name, manifest in trained.items()
        ],
        searches=[name for name in directory.names("tune") if directory.find(f"tune/{name}/result") is not None],
    )


def _wall_time_s(manifest: Manifest) -> float:
    """A trained model's manifest times the writing alone; the training's own time is among its statistics."""
    seconds = manifest.statistics.get("wall_time_s", manifest.wall_time_s)
    assert isinstance(seconds, int | float)
    return seconds


def _differences(given: Mapping, default: Mapping, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted key, value, default) of every setting that is not its default; one whose keys the user names, as a whole."""
    for key, value in given.items():
        if isinstance(value, Mapping) and default[key]:
            yield from _differences(value, default[key], f"{prefix}{key}.")
        elif value != default[key]:
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False), json.dumps(default[key], ensure_ascii=False)
