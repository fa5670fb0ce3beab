"""What goes wrong says where, what and what to do, in one line, and leaves nothing behind."""

import gzip
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from scpo_ray import models
from scpo_ray.artifacts import Recipe, RunDirectory
from scpo_ray.config import Config
from scpo_ray.errors import ArtifactError, ConfigError, DataError, ModelError, ScpoError, StorageError, TrainingError
from scpo_ray.records import SCORES, ModelName
from scpo_ray.stages import pipeline, prepare, recipes, score, select, train, train_global
from tests.prism_files import write_jsonl

ROOT = Path(__file__).parents[2]


def row(**changes: object) -> dict:
    return {"prompt": "what now ?", "chosen": "wait", "rejected": "run", "community": "Here"} | changes


def config_for(tmp_path: Path, *paths: Path, **prepare_settings: object) -> Config:
    settings = {
        "datasets": ["pair_files"],
        "pair_files": {"paths": [str(path) for path in paths]},
        "majority": ["Here"],
    }
    return Config(run_dir=str(tmp_path / "runs" / "run"), prepare=settings | prepare_settings)


def refusal(error: type[ScpoError], call: Callable[[], object], tmp_path: Path) -> str:
    """The message: one line, and after it nothing under `runs`."""
    with pytest.raises(error) as raised:
        call()
    assert type(raised.value) is error
    message = str(raised.value)
    assert message and "\n" not in message
    assert files_below(tmp_path / "runs") == []
    assert not (tmp_path / "runs" / "run").exists(), "not even an empty folder"
    return message


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or ".tmp" in path.name)


class TestFiles:
    def test_missing_file(self, tmp_path):
        gone = tmp_path / "gone.jsonl"
        message = refusal(DataError, lambda: prepare.run(config_for(tmp_path, gone)), tmp_path)
        assert message.startswith(f"{gone}: no such file; check the path")

    def test_truncated_gzip(self, tmp_path):
        whole = gzip.compress(b"".join(json.dumps(row(chosen=f"wait {n}")).encode() + b"\n" for n in range(2000)))
        path = tmp_path / "cut.jsonl.gz"
        path.write_bytes(whole[: len(whole) // 2])
        message = refusal(DataError, lambda: prepare.run(config_for(tmp_path, path)), tmp_path)
        assert message.startswith(f"{path}:") and "truncated gzip after line" in message
        assert message.endswith("copy or download it again")

    def test_unknown_column(self, tmp_path):
        path = tmp_path / "pairs.jsonl"
        write_jsonl(path, [row(), row(comunity="There")])
        message = refusal(DataError, lambda: prepare.run(config_for(tmp_path, path)), tmp_path)
        assert message.startswith(f"{path}:2: unknown column 'comunity'; did you mean 'community'?")
        assert message.endswith("rename or drop it")

    @pytest.mark.parametrize(
        ("bad", "reason", "value"),
        [
            ({"prompt": "   "}, "prompt is empty", "'   '"),
            ({"prompt": None}, "no prompt and no messages", "['chosen', 'community', 'prompt', 'rejected']"),
            ({"prompt": None, "messages": []}, "messages is not a list of messages", "[]"),
            ({"chosen": ""}, "chosen is empty", "''"),
            ({"rejected": "\n\t"}, "rejected is empty", r"'\n\t'"),
            ({"score_chosen": float("nan"), "score_rejected": 1}, "score_chosen is not finite", "nan"),
            ({"score_chosen": 1, "score_rejected": 2}, "score_chosen is below score_rejected", "(1, 2)"),
            ({"chosen": "run"}, "chosen and rejected are the same", "'run'"),
            ({"community": " "}, "community is empty", "' '"),
        ],
    )
    def test_malformed_row(self, tmp_path, bad, reason, value):
        path = tmp_path / "pairs.jsonl"
        write_jsonl(path, [row(), row(chosen="think"), row(**bad)])
        message = refusal(DataError, lambda: prepare.run(config_for(tmp_path, path)), tmp_path)
        assert message == (
            f"{path}:3: {reason}: {value} (one of 1 malformed rows of 3); mend them or raise prepare.max_rejected_share"
        )

    def test_one_bad_row_among_many_is_listed_and_the_run_goes_on(self, tmp_path):
        path = tmp_path / "pairs.jsonl"
        rows = [row(prompt=f"question {n} about thing {n * n} ?", annotator_id=f"a{n % 7}") for n in range(60)]
        rows[41]["chosen"] = " "
        write_jsonl(path, rows)
        manifest = prepare.run(config_for(tmp_path, path))
        listed = RunDirectory(str(tmp_path / "runs/run")).read_table("prepared/rejected_rows.parquet").to_pylist()
        assert listed == [
            {"source": "pair_files", "file": str(path), "line": 42, "reason": "chosen is empty", "value": "' '"}
        ]
        source = manifest.statistics["sources"]["pair_files"]
        assert (source["rows_read"], source["rows_used"], source["rejected"]) == (60, 59, {"chosen is empty": 1})
        assert manifest.statistics["num_pairs"] == 59

    def test_only_ties(self, tmp_path):
        path = tmp_path / "pairs.jsonl"
        write_jsonl(path, [row(score_chosen=1, score_rejected=1)] * 3)
        message = refusal(DataError, lambda: prepare.run(config_for(tmp_path, path)), tmp_path)
        assert "tie" in message and "prepare.min_score_gap" in message


@pytest.fixture
def two_communities(tmp_path) -> Path:
    """Here and There, with annotators."""
    path = tmp_path / "pairs.jsonl"
    write_jsonl(
        path,
        [
            row(prompt=f"question {n} about thing {n * n} ?", annotator_id=f"{place} {n % 8}", community=place)
            for place in ("Here", "There")
            for n in range(64)
        ],
    )
    return path


def with_settings(config: Config, **sections: dict) -> Config:
    values = config.model_dump(exclude_unset=True)
    return Config(**{**values, **{name: {**values.get(name, {}), **section} for name, section in sections.items()}})


class TestUnknownCommunities:
    @pytest.mark.parametrize(
        ("section", "key"),
        [
            ("prepare", "majority"),
            ("prepare", "communities"),
            ("train", "communities"),
            ("train_global", "communities"),
        ],
    )
    def test_names_the_key_the_value_and_what_there_is(self, tmp_path, two_communities, section, key):
        config = with_settings(config_for(tmp_path, two_communities), **{section: {key: ["Here", "Hree"]}})
        message = refusal(ConfigError, lambda: prepare.run(config), tmp_path)
        assert message == f"{section}.{key}: no pairs from 'Hree'; the data has: Here, There"

    def test_no_majority_at_all(self, tmp_path, two_communities):
        config = config_for(tmp_path, two_communities, majority=None)
        message = refusal(ConfigError, lambda: prepare.run(config), tmp_path)
        assert message.startswith("prepare.majority: the data has none of United States, United Kingdom, Atlas; name ")
        assert message.endswith("(the data has: Here, There)")

    def test_refused_also_where_prepare_has_run(self, tmp_path, two_communities):
        """Before the global model is trained, not after."""
        config = config_for(tmp_path, two_communities)
        prepare.run(config)
        for section in ("train", "train_global"):
            with pytest.raises(ConfigError, match=rf"^{section}.communities: no pairs from 'Atlantis'"):
                prepare.run(with_settings(config, **{section: {"communities": ["Atlantis"]}}))

    def test_a_later_stage_refuses_as_well(self, tmp_path, two_communities):
        config = config_for(tmp_path, two_communities)
        prepare.run(config)
        for stage in ("train", "train_global"):
            wrong = with_settings(config, **{stage: {"communities": ["Elsewhere"]}})
            plan = train.plan if stage == "train" else train_global.plan
            with pytest.raises(
                ConfigError, match=f"^{stage}.communities: no pairs from 'Elsewhere'; the data has: Here"
            ):
                plan(wrong, RunDirectory(wrong.run_dir))


def scored(config: Config, tiny_reward_model: Path, margins: dict[str, float]) -> Config:
    """Prepared, with scores in which every pair of a community has this reward margin."""
    config = with_settings(config, train_global={"model": str(tiny_reward_model), "epochs": 0})
    directory = RunDirectory(config.run_dir)
    prepare.run(config)
    train_global.run(config)
    rewards: dict[str, float] = {}
    for pair in directory.read_table("prepared/pairs.parquet").to_pylist():
        rewards[pair["chosen_id"]] = margins[pair["community"]]
        rewards[pair["rejected_id"]] = 0.0
    write_scores(config, rewards)
    return config


def write_scores(config: Config, rewards: dict[str, float]) -> None:
    directory = RunDirectory(config.run_dir)
    with recipes.scores(config, directory).making(directory) as draft:
        columns = {
            "response_id": list(rewards),
            "model_hash": ["by hand"] * len(rewards),
            "reward": np.array(list(rewards.values()), dtype=np.float32),
            "num_tokens": [1] * len(rewards),
            "truncated": [False] * len(rewards),
        }
        draft.write_table("scores.parquet", pa.table(columns, schema=SCORES))


def three_communities(tmp_path: Path) -> Config:
    """Here (the majority), There, and Afar: none of their prompts and responses in common."""
    path = tmp_path / "pairs.jsonl"
    write_jsonl(
        path,
        [
            row(prompt=f"{place} asks {n} about thing {n * n} ?", annotator_id=f"{place} {n % 8}", community=place)
            for place in ("Here", "There", "Afar")
            for n in range(40)
        ],
    )
    return config_for(tmp_path, path)


class TestTooFewPairs:
    def test_a_community_without_pairs_fails_and_the_others_are_planned(self, tmp_path, tiny_reward_model):
        config = scored(three_communities(tmp_path), tiny_reward_model, {"Here": 0.0, "There": -1.0, "Afar": 9.0})
        select.run(config)
        tasks, outcome = train.plan(config, RunDirectory(config.run_dir))
        assert [str(name) for name in tasks] == ["filter_weight/There"]
        assert outcome.trained == {}
        assert outcome.failed == {
            ModelName(
                "filter_weight", "Afar"
            ): "Afar: 0 training pairs left after selection, train.min_pairs asks for 8; raise "
            "select.agreement_threshold, lower train.min_pairs, or drop the community"
        }

    def test_min_pairs_is_a_lower_bound_that_counts(self, tmp_path, tiny_reward_model):
        config = scored(three_communities(tmp_path), tiny_reward_model, {"Here": 0.0, "There": -1.0, "Afar": -1.0})
        (manifest,) = select.run(config)
        kept = manifest.statistics["communities"]["There"]["num_kept"]
        for min_pairs, fails in ((kept, False), (kept + 1, True)):
            _, outcome = train.plan(with_settings(config, train={"min_pairs": min_pairs}), RunDirectory(config.run_dir))
            assert (ModelName("filter_weight", "There") in outcome.failed) is fails


class TestModels:
    def test_two_labels(self, tmp_path, two_communities, tiny_reward_model):
        folder = tmp_path / "two_labels"
        loaded = models.load(tiny_reward_model)
        loaded.model.config.num_labels = 2
        loaded.model.score = torch.nn.Linear(64, 2, bias=False)
        models.save(loaded.model, loaded.tokenizer, folder)
        for epochs in (0, 1):
            config = with_settings(
                config_for(tmp_path, two_communities), train_global={"model": str(folder), "epochs": epochs}
            )
            prepare.run(config)
            before = files_below(tmp_path / "runs")
            with pytest.raises(ModelError) as raised:
                train_global.run(config)
            assert str(raised.value).startswith(f"{folder}: 2 labels, a reward model has 1; give a checkpoint with ")
            assert files_below(tmp_path / "runs") == before

    def test_no_such_model(self, tmp_path, two_communities):
        config = with_settings(
            config_for(tmp_path, two_communities), train_global={"model": str(tmp_path / "gone"), "epochs": 0}
        )
        prepare.run(config)
        with pytest.raises(ModelError, match=r"gone: no config.json there; give a transformers folder or a hub name$"):
            train_global.run(config)

    def test_nothing_to_take(self, tmp_path, two_communities):
        with pytest.raises(ValidationError, match="epochs 0 takes a model as it is, but model is unset; name one"):
            with_settings(config_for(tmp_path, two_communities), train_global={"epochs": 0})

    def test_weights_that_are_not_finite(self, tmp_path, two_communities, tiny_reward_model, ray_cluster):
        folder = tmp_path / "nan"
        loaded = models.load(tiny_reward_model)
        with torch.no_grad():
            loaded.model.score.weight.fill_(torch.nan)
        models.save(loaded.model, loaded.tokenizer, folder)
        config = with_settings(
            config_for(tmp_path, two_communities),
            train_global={"model": str(folder), "epochs": 0},
            format={"max_tokens": 64},
        )
        prepare.run(config)
        train_global.run(config)
        before = files_below(tmp_path / "runs")
        with pytest.raises(ModelError) as raised:
            score.run(config)
        message = str(raised.value)
        assert message.startswith(f"{folder}: reward nan for response '") and "\n" not in message
        assert "the checkpoint is damaged or overflows in this precision (try score.precision float32)" in message
        assert files_below(tmp_path / "runs") == before

    def test_a_checkpoint_that_lacks_weights(self, tmp_path, tiny_reward_model):
        """transformers would fill them with random numbers, and the ruler would measure by chance."""
        folder = tmp_path / "model"
        shutil.copytree(tiny_reward_model, folder)
        weights = load_file(folder / "model.safetensors")
        del weights["score.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"the checkpoint lacks 1 of the model's weights \(score.weight\)"):
            models.load(folder)
        weights = {name: tensor for name, tensor in weights.items() if ".layers.1." not in name}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"lacks 10 of the model's weights \(model.layers.1"):
            models.load(folder)

    def test_longer_sequences_than_the_model_reads(self, tmp_path, two_communities, tiny_reward_model):
        config = with_settings(
            config_for(tmp_path, two_communities),
            train_global={"model": str(tiny_reward_model), "epochs": 0},
            format={"max_tokens": 1024},
        )
        prepare.run(config)
        with pytest.raises(ModelError, match=r"reads at most 512 tokens, format\.max_tokens is 1024; lower format"):
            train_global.run(config)
        assert RunDirectory(config.run_dir).find("global_model") is None

    def test_a_config_of_wrong_types(self, tmp_path, tiny_reward_model):
        folder = tmp_path / "model"
        shutil.copytree(tiny_reward_model, folder)
        stated = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(stated | {"id2label": "x"}))
        with pytest.raises(ModelError, match="not a transformers model"):
            models.check(folder, may_lack_head=False)


class TestResources:
    """More than the cluster has would wait for ever: refused before anything is scheduled."""

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                {"num_scorers": 99},
                "score.num_scorers: 99 actors need 99 CPU, the cluster has {cpus:g}; lower num_scorers or cpus_per_scorer",
            ),
            (
                {"gpus_per_scorer": 64},
                "score.num_scorers: 1 actors need 64 GPU, the cluster has {gpus:g}; lower num_scorers or gpus_per_scorer",
            ),
        ],
    )
    @pytest.mark.timeout(60)
    def test_scoring(self, tmp_path, two_communities, tiny_reward_model, ray_cluster, settings, message):
        config = with_settings(
            config_for(tmp_path, two_communities),
            train_global={"model": str(tiny_reward_model), "epochs": 0},
            score=settings,
        )
        prepare.run(config)
        train_global.run(config)
        before = files_below(tmp_path / "runs")
        with pytest.raises(ConfigError) as raised:
            score.run(config)
        has = ray_cluster.cluster_resources()
        assert str(raised.value) == message.format(cpus=has["CPU"], gpus=has.get("GPU", 0.0))
        assert files_below(tmp_path / "runs") == before

    @pytest.mark.parametrize(
        ("settings", "wanted"), [({"num_workers": 99}, "99 CPU"), ({"cpus_per_worker": 77}, "77 CPU")]
    )
    @pytest.mark.timeout(60)
    def test_training(self, tmp_path, two_communities, ray_cluster, settings, wanted):
        config = with_settings(config_for(tmp_path, two_communities), train_global=settings)
        prepare.run(config)
        has = ray_cluster.cluster_resources()["CPU"]
        with pytest.raises(TrainingError) as raised:
            train_global.run(config)
        assert f"need {wanted}, the cluster has {has:g}; lower num_workers or cpus_per_worker" in str(raised.value)
        assert not (tmp_path / "runs/run/global_model").exists()


class TestForeignRunDirectory:
    def test_refused_with_the_difference_then_rebuilt(self, tmp_path, two_communities):
        config = config_for(tmp_path, two_communities)
        first = prepare.run(config)
        other = config_for(tmp_path, two_communities, test_fraction=0.3)
        before = files_below(tmp_path / "runs")
        with pytest.raises(ArtifactError) as raised:
            prepare.run(other)
        assert str(raised.value) == (
            f"{config.run_dir}/prepared: made with prepare.test_fraction = 0.2, this config has 0.3; use another --run_dir, "
            "or --rebuild true to remake it and what follows"
        )
        assert prepare.run(config) == first
        rebuilt = prepare.run(other.model_copy(update={"rebuild": True}))
        assert rebuilt.identity["prepare.test_fraction"] == 0.3
        assert files_below(tmp_path / "runs") == before
        assert prepare.run(other) == rebuilt

    def test_a_stage_refuses_inputs_of_another_config(self, tmp_path, two_communities, tiny_reward_model):
        config = scored(config_for(tmp_path, two_communities), tiny_reward_model, {"Here": 0.0, "There": -1.0})
        other = with_settings(config, prepare={"test_fraction": 0.3})
        for stage in (score, select):
            with pytest.raises(ArtifactError) as raised:
                stage.run(other)
            assert str(raised.value) == (
                f"{config.run_dir}/prepared: made with prepare.test_fraction = 0.2, this config has 0.3; remake it with "
                "jobs/prepare.py --rebuild true, or use another --run_dir"
            )

    def test_a_missing_input_names_its_job(self, tmp_path):
        config = Config(run_dir=str(tmp_path / "runs/run"))
        message = refusal(ArtifactError, lambda: score.run(config), tmp_path)
        assert message == f"{config.run_dir}/prepared: no such artifact; run jobs/prepare.py first"

    def test_an_unreadable_manifest(self, tmp_path, two_communities):
        config = config_for(tmp_path, two_communities)
        prepare.run(config)
        (tmp_path / "runs/run/prepared/manifest.json").write_text("{")
        with pytest.raises(
            ArtifactError, match=r"prepared/manifest\.json: not a manifest .*; delete the folder and rerun"
        ):
            prepare.run(config)


def prepare_job(
    run_dir: Path, *, file_size_limit: int | None, interactions: int = 8
) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if file_size_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))

    options = ["--run_dir", str(run_dir), "--prepare.atlas.num_prompts", "60"]
    options += ["--prepare.atlas.interactions_per_annotator", str(interactions)]
    return subprocess.run(
        [sys.executable, "jobs/prepare.py", *options],
        cwd=ROOT,
        env={**os.environ, "TERM": "dumb", "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class TestFullDisk:
    def test_where_rows_of_large_data_wait(self, tmp_path):
        run_dir = tmp_path / "runs" / "run"
        full = prepare_job(run_dir, file_size_limit=100_000, interactions=16)
        (line,) = full.stderr.strip().splitlines()
        assert full.returncode == 1 and "rows cannot be put there" in line and "File too large" in line
        assert line.endswith("make room, or name another folder in TMPDIR")
        assert files_below(tmp_path / "runs") == []

    def test_in_mid_write(self, tmp_path):
        run_dir = tmp_path / "runs" / "run"
        full = prepare_job(run_dir, file_size_limit=100_000)
        assert full.returncode == 1, full.stderr
        (line,) = full.stderr.strip().splitlines()
        assert line.startswith("scpo_ray: error: ") and f"{run_dir}/prepared" in line and "File too large" in line
        assert line.endswith("nothing of it was kept; free space and rerun, finished work is not repeated")
        assert full.stdout == ""
        assert files_below(tmp_path / "runs") == []
        again = prepare_job(run_dir, file_size_limit=None)
        assert again.returncode == 0, again.stderr
        assert max(path.stat().st_size for path in (run_dir / "prepared").iterdir()) > 100_000  # the limit was met
        assert (run_dir / "prepared" / "manifest.json").is_file()

    def test_folder_that_cannot_be_made(self, tmp_path, two_communities):
        (tmp_path / "runs").write_text("a file where the folder should be")
        with pytest.raises(StorageError, match="check that the path exists and may be read and written, then rerun"):
            prepare.run(config_for(tmp_path, two_communities))


NAMES = (
    "New Zealand",
    "New_Zealand",
    "new zealand",
    "new-zealand",
    "Korea, Republic of",
    "a/b",
    "a\\b",
    "/etc/passwd",
    "..",
    ".",
    "../../outside",
    "Côte d'Ivoire",
    "[/x] land",
    "[prefer not to say]",
    "Cote d'Ivoire",
    "日本",
    "中国",
    "CON",
    "con",
    "--help",
    "x" * 300,
    "x" * 301,
)


class TestCommunityNames:
    def test_every_name_has_its_own_folder_inside_the_run(self, tmp_path, tiny_reward_model):
        path = tmp_path / "pairs.jsonl"
        write_jsonl(
            path,
            [
                row(prompt=f"{index} asks {n} about {n * n} ?", community=name, annotator_id=f"{index} {n % 6}")
                for index, name in enumerate(("Here", *NAMES))
                for n in range(18)
            ],
        )
        config = scored(config_for(tmp_path, path), tiny_reward_model, {"Here": 0.0} | dict.fromkeys(NAMES, -1.0))
        config = with_settings(config, select={"controls": ["none"]})
        select.run(config)
        tasks, outcome = train.plan(config, RunDirectory(config.run_dir))
        assert not outcome.failed
        assert {str(name) for name in tasks} == {f"{s}/{name}" for s in ("filter_weight", "none") for name in NAMES}
        places = [Path(config.run_dir, task.recipe.name) for task in tasks.values()]
        folders = {Path(config.run_dir, "reward_models"), Path(config.run_dir, "controls/none")}
        assert {place.resolve().parent for place in places} == {folder.resolve() for folder in folders}
        names = [str(place).casefold() for place in places]  # some disks know no case
        assert len(set(names)) == len(names) == 2 * len(NAMES)
        assert all(len(place.name) <= 60 and place.name.isascii() and place.name.strip(".-") for place in places)

    def test_an_artifact_under_such_a_name_can_be_made(self, tmp_path):
        directory = RunDirectory(str(tmp_path / "runs" / "run"))
        for name in NAMES:
            recipe = Recipe(recipes.model_folder(Config(), ModelName("filter_weight", name)), "train", {}, {}, 0)
            with recipe.making(directory) as draft:
                draft.write_json("name.json", {"name": name})
        found = [json.loads(path.read_text())["name"] for path in (tmp_path / "runs").rglob("name.json")]
        assert sorted(found) == sorted(NAMES)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_scores_of_responses_that_are_not_there(tmp_path, two_communities, tiny_reward_model):
    """`scores` is checked by its inputs' hashes, so a run cannot read rewards of another world."""
    config = scored(config_for(tmp_path, two_communities), tiny_reward_model, {"Here": 0.0, "There": -1.0})
    write_jsonl(
        two_communities, [row(prompt=f"other {n} ?", community=c) for c in ("Here", "There") for n in range(20)]
    )
    with pytest.raises(ArtifactError, match=r"prepared: made from another .*pairs\.jsonl \(it has changed since\)"):
        select.run(config)
    assert pq.read_metadata(Path(config.run_dir, "scores/scores.parquet")).num_rows > 0


def test_a_pipeline_without_test_pairs_trains_nothing(tmp_path, two_communities):
    """Evaluation would refuse at the end; what is known after `prepare` is said then."""
    config = config_for(tmp_path, two_communities, test_fraction=1e-9)
    with pytest.raises(DataError, match=r"^the majority has no test pairs.*raise prepare\.test_fraction$"):
        pipeline.run(config)
    assert sorted(path.name for path in Path(config.run_dir).iterdir()) == ["config.yaml", "prepared"]
