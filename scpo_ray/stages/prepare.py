"""From source rows to responses, pairs and splits, every row accounted for."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scpo_ray import telemetry
from scpo_ray.artifacts import Draft, Manifest, Recipe, RunDirectory
from scpo_ray.config import Config, PrepareConfig
from scpo_ray.core.near_duplicates import near_duplicate_groups
from scpo_ray.core.splits import assign_splits
from scpo_ray.datasets import atlas, general_preferences, global_opinions, pair_files, prism
from scpo_ray.datasets.base import Dataset
from scpo_ray.errors import ConfigError, DataError
from scpo_ray.records import OPTION_SHARES, REJECTED_ROWS, RESPONSES, content_id, table
from scpo_ray.stages import recipes
from scpo_ray.stages.turns import turn

_CONTEXTS_AT_ONCE = 16_384
DEFAULT_MAJORITY = ("United States", "United Kingdom", atlas.MAJORITY)


def run(config: Config) -> Manifest:
    """Read, pair, group, split; write `prepared`. Returns its manifest, from disk when it is already made.

    Raises:
        DataError: a source is missing, malformed beyond `max_rejected_share`, or empty.
        ConfigError: a configured community does not occur.
    """
    directory = RunDirectory(config.run_dir)
    recipe = recipes.prepared(config)
    made = recipe.is_made(directory, rebuild=config.rebuild)
    if made is not None:
        known = made.statistics["communities"]
        assert isinstance(known, dict)
        _check_training_communities(config, known)
        return made
    with turn(directory, "prepare", config.train.checkpoint_dir):
        return recipe.is_made(directory, rebuild=config.rebuild) or _make(config, directory, recipe)


def _make(config: Config, directory: RunDirectory, recipe: Recipe) -> Manifest:
    with telemetry.stage(directory.absolute_address, "prepare"), recipe.making(directory) as draft:
        datasets = [_read(name, config) for name in config.prepare.datasets]
        pairs = pa.concat_tables([dataset.pairs for dataset in datasets])
        majority, pairs = _choose_communities(pairs, config.prepare)
        _check_unique(pairs)
        _check_training_communities(config, pc.unique(pairs["community"]).to_pylist())
        responses = _unique_responses([dataset.responses for dataset in datasets])
        with ThreadPoolExecutor(1) as writer:
            written = writer.submit(draft.write_table, "responses.parquet", responses)
            prompts, num_responses = _prompts(pairs, responses), len(responses)
            datasets = [replace(dataset, responses=RESPONSES.empty_table()) for dataset in datasets]
            del responses  # most of what is held; it goes when it is written
            pairs = _with_groups_and_splits(pairs, prompts, config.prepare)
            written.result()
        draft.write_table("pairs.parquet", pairs)
        _write_ledgers(draft, datasets)
        _write_truth(draft, datasets)
        _write_option_shares(draft, datasets, pairs)
        draft.write_json("majority.json", majority)  # part of the content: the global model and the metrics follow it
        leakage = count_leakage(pairs)
        draft.write_json("leakage.json", leakage)
        draft.statistics |= _statistics(datasets, pairs, num_responses, majority) | {"leakage": leakage}
    return directory.require(recipe.name, job="prepare")


def count_leakage(pairs: pa.Table) -> dict[str, dict[str, float]]:
    """For validation and test: share of pairs whose annotator, prompt, prompt group or response occurs in training."""
    train = pairs.filter(pc.equal(pairs["split"], "train"))
    seen = {column: pc.unique(train[column]).drop_null() for column in ("annotator_id", "prompt_id", "prompt_group")}
    responses = pc.unique(pa.chunked_array([*train["chosen_id"].chunks, *train["rejected_id"].chunks], pa.string()))
    leakage = {}
    for split in ("validation", "test"):
        rows = pairs.filter(pc.equal(pairs["split"], split))
        found = {
            f"{column.removesuffix('_id')}_in_train": pc.is_in(rows[column], values) for column, values in seen.items()
        }
        both = (pc.is_in(rows[column], responses) for column in ("chosen_id", "rejected_id"))
        found["both_responses_in_train"] = pc.and_(*both)
        leakage[split] = {
            name: round((pc.sum(is_there).as_py() or 0) / max(len(rows), 1), 6) for name, is_there in found.items()
        }
    return leakage


def _check_training_communities(config: Config, known: Iterable[str]) -> None:
    """Before anything expensive starts: both trainings' communities occur."""
    check_known("train.communities", config.train.communities, known)
    check_known("train_global.communities", config.train_global.communities, known)
    check_known("per_community", tuple(config.per_community), known)


def _check_unique(pairs: pa.Table) -> None:
    repeated = len(pairs) - len(pc.unique(pairs["pair_id"]))
    if repeated:
        raise DataError(f"{repeated} pairs occur twice; this is a fault of an adapter, please report it")


def check_known(key: str, communities: Sequence[str] | None, known: Iterable[str]) -> None:
    """Refuse communities that the data does not have.

    Raises:
        ConfigError: names the key, the communities, and those that exist.
    """
    available = sorted(set(known))
    unknown = [community for community in communities or () if community not in available]
    if unknown:
        shown = ", ".join(available[:40]) + (", ..." if len(available) > 40 else "")
        raise ConfigError(f"{key}: no pairs from {', '.join(map(repr, unknown))}; the data has: {shown}")


def _read(name: str, config: Config) -> Dataset:
    prepare = config.prepare
    gap = prepare.min_score_gap
    readers: dict[str, Callable[[], Dataset]] = {
        "atlas": lambda: atlas.read(prepare.atlas, seed=config.seed, min_score_gap=gap),
        "prism": lambda: prism.read(prepare.prism, min_score_gap=gap),
        "global_opinions": lambda: global_opinions.read(prepare.global_opinions, min_score_gap=gap),
        "pair_files": lambda: pair_files.read(prepare.pair_files, min_score_gap=gap),
        "general_preferences": lambda: general_preferences.read(prepare.general_preferences, min_score_gap=gap),
    }
    dataset = readers[name]()
    dataset.ledger.check(prepare.max_rejected_share)
    return dataset


def _unique_responses(tables: Sequence[pa.Table]) -> pa.Table:
    """One row per response id; the first source that has it wins."""
    responses = pa.concat_tables(tables)
    identifiers = responses["response_id"]
    if pc.count_distinct(identifiers).as_py() == len(responses):
        return responses
    numbered = pa.table({"response_id": identifiers, "row": pa.array(range(len(responses)))})
    first = numbered.group_by("response_id").aggregate([("row", "min")])["row_min"]
    return responses.take(first.take(pc.array_sort_indices(first.combine_chunks())))


def _choose_communities(pairs: pa.Table, config: PrepareConfig) -> tuple[list[str], pa.Table]:
    """The majority, and the pairs of the communities that the config keeps."""
    if not len(pairs):
        raise DataError("no pair is left: every response pair was a tie or was filtered; see prepare.min_score_gap")
    available = set(pc.unique(pairs["community"]).to_pylist())
    check_known("prepare.majority", config.majority, available)
    check_known("prepare.communities", config.communities, available)
    majority = sorted(available & set(DEFAULT_MAJORITY if config.majority is None else config.majority))
    if not majority:
        raise ConfigError(
            f"prepare.majority: the data has none of {', '.join(DEFAULT_MAJORITY)}; name the communities that the global "
            f"model stands for (the data has: {', '.join(sorted(available)[:40])})"
        )
    if config.communities is not None:
        kept = pa.array([*majority, *config.communities, config.general_preferences.community])
        pairs = pairs.filter(pc.is_in(pairs["community"], kept))
    return majority, pairs


def _with_groups_and_splits(pairs: pa.Table, prompts: Mapping[str, str], config: PrepareConfig) -> pa.Table:
    """Fill `prompt_group` and `split`."""
    numbers = near_duplicate_groups(list(prompts.values()), similarity=config.near_duplicate_similarity)
    members: dict[int, str] = {}
    group_of = {
        prompt_id: members.setdefault(number, content_id("group", text))
        for (prompt_id, text), number in zip(prompts.items(), numbers, strict=True)
    }
    groups = [group_of[prompt_id] for prompt_id in pairs["prompt_id"].to_pylist()]
    units = _split_units(pairs, groups, config.split_by)
    counts: dict[str, Counter[str]] = {}
    for unit, community in zip(units, pairs["community"].to_pylist(), strict=True):
        counts.setdefault(unit, Counter())[community] += 1
    split_of = assign_splits(
        counts,
        validation_fraction=config.validation_fraction,
        test_fraction=config.test_fraction,
        salt=config.split_salt,
        stratify=config.stratify,
    )
    for name, values in (("prompt_group", groups), ("split", [split_of[unit] for unit in units])):
        pairs = pairs.set_column(pairs.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return pairs


def _prompts(pairs: pa.Table, responses: pa.Table) -> dict[str, str]:
    """prompt_id -> what its user said, all turns, in the order of the first pair of each."""
    encoded = pairs["prompt_id"].combine_chunks().dictionary_encode()
    first_pairs = np.unique(encoded.indices.to_numpy(), return_index=True)[1]  # codes are given in order of appearance
    chosen = pairs["chosen_id"].take(pa.array(first_pairs))
    rows = pc.index_in(chosen, responses["response_id"].combine_chunks()).to_numpy()
    is_wanted = np.zeros(len(responses), dtype=bool)
    is_wanted[rows] = True
    texts: list[str] = []
    passed = 0
    for batch in responses.select(["context"]).to_batches(max_chunksize=_CONTEXTS_AT_ONCE):
        wanted = pa.array(is_wanted[passed : passed + len(batch)])
        texts += _of_users(batch["context"].filter(wanted)).to_pylist()
        passed += len(batch)
    place = np.cumsum(is_wanted) - 1
    return {
        prompt_id: texts[row]
        for prompt_id, row in zip(encoded.dictionary.to_pylist(), place[rows].tolist(), strict=True)
    }


def _of_users(contexts: pa.ListArray) -> pa.StringArray:
    """Each context's messages of the user, with a blank between two."""
    messages = contexts.flatten()
    is_user = pc.equal(messages.field("role"), "user")
    context_of = pc.list_parent_indices(contexts).filter(is_user)
    counts = np.bincount(context_of.to_numpy(), minlength=len(contexts))
    ends = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    return pc.binary_join(pa.ListArray.from_arrays(ends, messages.field("content").filter(is_user)), " ")


def _split_units(pairs: pa.Table, groups: Sequence[str], split_by: str) -> list[str]:
    """What stays on one side: per pair, an annotator, a prompt group, or the pair itself."""
    annotators = pairs["annotator_id"].to_pylist()
    if split_by == "pair":
        return pairs["pair_id"].to_pylist()
    if split_by == "prompt":
        return list(groups)
    if split_by == "annotator" and None in annotators:
        raise ConfigError("prepare.split_by: annotator, but some pairs have no annotator_id; use auto or prompt")
    communities = pairs["community"].to_pylist()
    without = {community for community, annotator in zip(communities, annotators, strict=True) if annotator is None}
    return [
        group if community in without else f"annotator {annotator}"
        for community, annotator, group in zip(communities, annotators, groups, strict=True)
    ]


def _write_ledgers(draft: Draft, datasets: Sequence[Dataset]) -> None:
    draft.write_table(
        "rejected_rows.parquet",
        table((asdict(row) for dataset in datasets for row in dataset.ledger.rejected), REJECTED_ROWS),
    )
    draft.write_table(
        "suspicious_rows.parquet",
        table((asdict(row) for dataset in datasets for row in dataset.ledger.suspicious), REJECTED_ROWS),
    )


def _write_truth(draft: Draft, datasets: Sequence[Dataset]) -> None:
    for dataset in datasets:
        if dataset.pair_truth is not None:
            draft.write_table("pair_truth.parquet", dataset.pair_truth)


def _write_option_shares(draft: Draft, datasets: Sequence[Dataset], pairs: pa.Table) -> None:
    """Shares of the questions whose pairs are all on one side of the split, whatever the community."""
    tables = [dataset.option_shares for dataset in datasets if dataset.option_shares is not None]
    if not tables:
        return
    sides = pairs.group_by(["prompt_id", "prompt_group", "split"]).aggregate([]).to_pylist()
    count = Counter(row["prompt_id"] for row in sides)
    side_of = {row["prompt_id"]: row for row in sides if count[row["prompt_id"]] == 1}
    communities = set(pc.unique(pairs["community"]).to_pylist())
    rows = (
        row | {key: side_of[row["prompt_id"]][key] for key in ("prompt_group", "split")}
        for row in pa.concat_tables(tables).to_pylist()
        if row["prompt_id"] in side_of and row["community"] in communities
    )
    draft.write_table("option_shares.parquet", table(rows, OPTION_SHARES))


def _statistics(
    datasets: Sequence[Dataset], pairs: pa.Table, num_responses: int, majority: Sequence[str]
) -> dict[str, object]:
    sources = {
        dataset.ledger.source: {
            "rows_read": dataset.ledger.rows_read,
            "rows_used": dataset.ledger.rows_used,
            "rejected": dict(Counter(row.reason for row in dataset.ledger.rejected)),
            "excluded": dict(dataset.ledger.excluded),
            "suspicious": len(dataset.ledger.suspicious),
            "responses_mentioned": dataset.ledger.responses_mentioned,
            "merged_duplicates": dataset.ledger.merged_duplicates,
            "responses": dataset.ledger.responses,
        }
        for dataset in datasets
    }
    numbers = pairs.group_by(["community", "split"]).aggregate([([], "count_all")]).to_pylist()
    counts = Counter({(row["community"], row["split"]): row["count_all"] for row in numbers})
    communities = sorted({community for community, _ in counts})
    return {
        "majority": list(majority),
        "communities": {
            community: {split: counts[community, split] for split in ("train", "validation", "test")}
            for community in communities
        },
        "num_responses": num_responses,
        "num_pairs": len(pairs),
        "sources": sources,
    }
