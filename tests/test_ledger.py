"""`scpo_ray runs`: what manifests say."""

import json
import re

import pytest

from scpo_ray import model_files
from scpo_ray.__main__ import main
from scpo_ray.artifacts import Recipe, RunDirectory
from scpo_ray.errors import ArtifactError
from scpo_ray.ledger import Prices, records, runs_in, verify
from scpo_ray.stages import asked


def test_stages_their_artifacts_times_and_tokens(controlled_run):
    run = RunDirectory(controlled_run.run_dir)
    found = {record.stage: record for record in records(controlled_run.run_dir)}
    assert list(found) == ["prepare", "train_global", "score", "select", "train", "evaluate"]
    assert found["train_global"].num_artifacts == 2  # and the other ruler
    scores = [run.require(name, job="score") for name in ("scores", "other_scores")]
    assert found["score"].num_tokens == sum(int(str(one.statistics["num_tokens"])) for one in scores)
    assert found["score"].wall_time_s == pytest.approx(sum(one.wall_time_s for one in scores))
    assert found["train"].num_artifacts == len(_trained(run))
    assert {(record.status, record.num_missing) for record in found.values()} == {("made", 0)}
    assert set(asked.read(run, "train")[0]) == set(_trained(run)), "what train itself wrote"
    seconds = [one["wall_time_s"] for one in (run.require(name, job="train").statistics for name in _trained(run))]
    cpus = controlled_run.train.num_workers * controlled_run.train.cpus_per_worker
    assert found["train"].hours == pytest.approx({"CPU": cpus * sum(seconds) / 3600, "GPU": 0.0})
    assert found["select"].hours == {"CPU": 0.0, "GPU": 0.0}, "in the job's own process"
    assert Prices(cpu=3.0).of(found["train"]) == pytest.approx(3 * found["train"].hours["CPU"])


def _trained(run: RunDirectory) -> list[str]:
    root = run.fetch("")
    folders = [path.parent.relative_to(root) for path in root.rglob("metrics.json")]
    return [str(folder) for folder in folders if folder.parts[0] not in ("global_model", "other_ruler")]


def test_a_training_that_was_stopped_is_unfinished(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "checkpoints/abc").mkdir(parents=True)
    (record,) = records(str(tmp_path))
    assert (record.stage, record.num_artifacts, record.is_unfinished) == ("train_global", 0, True)
    with Recipe("global_model", "train_global", {}, {}, 0).making(RunDirectory(str(tmp_path))):
        pass
    first, second = records(str(tmp_path))
    assert (first.stage, first.num_artifacts, first.is_unfinished) == ("train_global", 1, False)
    assert (second.stage, second.num_artifacts, second.is_unfinished) == ("train", 0, True)


def test_a_folder_of_runs_and_a_run(tmp_path, capsys, monkeypatch):
    for name in ("one", "two", "none"):
        (tmp_path / name).mkdir()
    for name in ("one", "two"):
        (tmp_path / name / "config.yaml").write_text("")
    assert runs_in(str(tmp_path)) == [str(tmp_path / "one"), str(tmp_path / "two")]
    assert runs_in(str(tmp_path / "two")) == [str(tmp_path / "two")]
    with pytest.raises(ArtifactError, match=r"none: no run there, nor in its folders; give a run directory"):
        runs_in(str(tmp_path / "none"))


def test_the_command(controlled_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main(["runs", controlled_run.run_dir])
    shown = capsys.readouterr().out
    assert re.search(r"prepare\s+│ made\s+│ \d{4}-\d\d-\d\d \d\d:\d\d:\d\d │\s+1 │", shown)


def test_a_folder_that_is_not_there_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["runs", str(tmp_path / "nowhere")])
    assert ended.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_what_was_stopped_is_told_apart(tmp_path):
    """A start policy is no policy, a search has no result yet; what Ray notes down while it works is nothing."""
    (tmp_path / "config.yaml").write_text("")
    for folder in (
        "checkpoints/.ray_train.host.1.tmp",
        "sft_checkpoints/abc",
        "tune/search/trials",
        "tune/again/trials",
    ):
        (tmp_path / folder).mkdir(parents=True)
    with Recipe("tune/again/result", "tune", {}, {}, 0).making(RunDirectory(str(tmp_path))):
        pass
    found = {record.stage: record.is_unfinished for record in records(str(tmp_path))}
    assert found == {"sft": True, "tune": True}


@pytest.fixture
def small_run(tmp_path):
    """An artifact of files, and one that is a model."""
    (tmp_path / "config.yaml").write_text("")
    run = RunDirectory(str(tmp_path))
    with Recipe("prepared", "prepare", {}, {}, 0).making(run) as draft:
        draft.write_json("rows.json", [1, 2, 3])
    with Recipe("global_model", "train_global", {}, {}, 0).making(run) as draft:
        for name in ("config.json", "model.safetensors", "metrics.json"):
            draft.write_json(name, {"of": name})
        draft.content_hash = model_files.content_hash(draft.folder)
    return tmp_path


def test_verify_reads_what_only_has_the_right_length(small_run, capsys):
    main(["verify", str(small_run)])
    assert "2 of 2 artifacts are as they were made" in capsys.readouterr().out
    weights = small_run / "global_model/model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b"m", b"n"))
    assert [record.damage for record in records(str(small_run))] == ["", ""], "no file is read for the ledger"
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(small_run)])
    assert ended.value.code == 1
    shown = capsys.readouterr()
    assert "1 of 2 artifacts" in shown.out
    assert f"{small_run}/global_model: another content than its manifest says; delete" in shown.err


def test_what_is_damaged_is_shown_and_the_others_are_too(small_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (small_run / "prepared/rows.json").unlink()
    main(["runs", str(small_run)])
    shown = capsys.readouterr().out
    assert re.search(r"prepare\s+│ damaged", shown) and re.search(r"train_global\s+│ made", shown)
    with pytest.raises(SystemExit):
        main(["verify", str(small_run)])
    assert "prepared/rows.json: is missing" in capsys.readouterr().err


def test_a_manifest_that_is_none_hides_no_other_stage_or_run(small_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    (small_run / "prepared/manifest.json").write_text("{")
    main(["runs", str(small_run)])
    shown = capsys.readouterr().out
    assert re.search(r"prepare\s+│ damaged", shown) and re.search(r"train_global\s+│ made", shown)
    with pytest.raises(SystemExit):
        main(["verify", str(small_run)])
    ended = capsys.readouterr()
    assert "1 of 2 artifacts" in ended.out and "prepared/manifest.json: not a manifest" in ended.err


@pytest.mark.parametrize(
    "change", [{"wall_time_s": "long"}, {"files": []}, {"statistics": None}, {"reserved": {"CPU": "two"}}]
)
def test_a_manifest_with_other_kinds_of_values_is_damage(small_run, change):
    file = small_run / "prepared/manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    first, second = records(str(small_run))
    assert (first.status, second.status) == ("damaged", "made")
    assert f"prepared/manifest.json: not a manifest ({next(iter(change))}" in first.damage


@pytest.mark.parametrize("name", ["metrics.json", "adapter/adapter_model.safetensors"])
def test_verify_reads_what_a_models_own_hash_leaves_out(small_run, name):
    """The adapter is what services load."""
    run = RunDirectory(str(small_run))
    with Recipe("reward_models/A", "train", {}, {}, 0).making(run) as draft:
        (draft.folder / "adapter").mkdir()
        for file in ("config.json", "metrics.json", "adapter/adapter_model.safetensors"):
            (draft.folder / file).write_text("as it was made")
        draft.content_hash = model_files.content_hash(draft.folder)
    assert verify(str(small_run))[1] == []
    (small_run / "reward_models/A" / name).write_text("as it was, nay")
    assert verify(str(small_run))[1] == [f"{small_run}/reward_models/A: another content than its manifest says"]


def test_a_folder_without_a_manifest_hides_nothing(small_run):
    """As a deletion leaves it that was broken off: what is there counts for nothing, here as for every job."""
    (small_run / "prepared/manifest.json").unlink()
    assert [(one.stage, one.status) for one in records(str(small_run))] == [("train_global", "made")]
    assert verify(str(small_run)) == (1, [])


@pytest.mark.parametrize(("stage", "folder"), [("train", "reward_models"), ("ppo", "policies")])
@pytest.mark.parametrize(("failed", "status"), [("", "unfinished"), ("C", "failed")])
def test_models_that_were_asked_for_and_are_not_there(small_run, capsys, monkeypatch, stage, folder, failed, status):
    monkeypatch.setenv("COLUMNS", "300")
    wanted = [f"{folder}/{name}" for name in "ABC"]
    asked.write(
        RunDirectory(str(small_run)),
        stage,
        wanted,
        {f"{folder}/{name}": "died" for name in failed},
        checkpoint_dir=None,
        adds=False,
    )
    assert records(str(small_run))[-1].num_missing == 3, "killed before the first"
    for name in wanted[:2]:
        with Recipe(name, stage, {}, {}, 0).making(RunDirectory(str(small_run))):
            pass
    main(["runs", str(small_run)])
    assert re.search(rf"{stage}\s+│ {status}\s+│ .*│\s+2 of 3 │", capsys.readouterr().out)
    with Recipe(wanted[2], stage, {}, {}, 0).making(RunDirectory(str(small_run))):
        pass
    assert records(str(small_run))[-1].status == "made", "what failed once was made later"


@pytest.mark.parametrize("text", ["{", "[]", '{"wanted": ["reward_models/A"]}'])
def test_what_says_nothing_of_a_training_is_damage(small_run, text):
    (small_run / asked.FILES["train"]).write_text(text)
    assert [(one.stage, one.status) for one in records(str(small_run))][1:] == [
        ("train_global", "made"),
        ("train", "damaged"),
    ]


def test_verify_reads_a_whole_pipeline(controlled_run, capsys):
    main(["verify", controlled_run.run_dir])
    assert re.search(r": (\d+) of \1 artifacts", capsys.readouterr().out)
