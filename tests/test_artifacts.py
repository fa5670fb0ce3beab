"""Artifacts: whole or not at all, recognised or refused."""

import json
import stat
import subprocess
import sys
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from scpo_ray.artifacts import Draft, Manifest, Recipe, RunDirectory
from scpo_ray.errors import ArtifactError, StorageError
from scpo_ray.folders import MANIFEST, hash_folder, private_copies, storage_errors
from scpo_ray.records import SCHEMA_VERSION

REPOSITORY = Path(__file__).parents[1]
TABLE = pa.table({"name": ["a", "b"], "value": [1.5, -2.0]})
RECIPE = Recipe("scored/global", "score", {"format.max_tokens": 512, "select.name": None}, {"prepared": "abc"}, seed=3)


def _remote() -> RunDirectory:
    """A run directory in fsspec's memory, which pyarrow reaches as it reaches s3://."""
    memory = pytest.importorskip("fsspec.implementations.memory")
    run = RunDirectory("/nowhere")
    run.address = run.absolute_address = run._root = f"/{uuid.uuid4().hex}"
    run._filesystem, run.is_local = pafs.PyFileSystem(pafs.FSSpecHandler(memory.MemoryFileSystem())), False
    return run


@pytest.fixture(params=["path", "uri", "remote"])
def run(request, tmp_path):
    if request.param == "remote":
        return _remote()
    return RunDirectory(f"file://{tmp_path}" if request.param == "uri" else str(tmp_path))


def _make(run: RunDirectory, recipe: Recipe = RECIPE, value: object = 1) -> None:
    with recipe.making(run) as draft:
        draft.write_table("rows.parquet", TABLE)
        (draft.folder / "inner").mkdir()
        draft.write_json("inner/value.json", {"value": value})
        draft.statistics["num_rows"] = 2


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_is_made_is_found_and_read(run):
    assert run.find(RECIPE.name) is None
    assert RECIPE.is_made(run, rebuild=False) is None
    _make(run)
    manifest = RECIPE.is_made(run, rebuild=False)
    assert isinstance(manifest, Manifest)
    assert manifest == run.find(RECIPE.name) == run.require(RECIPE.name, job="score")
    assert (manifest.name, manifest.stage, manifest.seed) == ("scored/global", "score", 3)
    assert (manifest.identity, manifest.inputs) == (RECIPE.identity, RECIPE.inputs)
    assert manifest.statistics == {"num_rows": 2}
    assert manifest.schema_version == SCHEMA_VERSION
    assert manifest.packages["pyarrow"] == pa.__version__
    assert 0 <= manifest.wall_time_s < 60
    assert run.read_table("scored/global/rows.parquet") == TABLE
    assert run.read_table("scored/global/rows.parquet", columns=["value"]).column_names == ["value"]
    assert run.read_json("scored/global/inner/value.json") == {"value": 1}
    assert run.names("scored/global") == ["inner", MANIFEST, "rows.parquet"]
    assert run.names("scored") == ["global"]
    assert run.names("nothing") == []


def test_fetch_gives_a_local_copy(run, tmp_path, monkeypatch):
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "copies"))
    _make(run)
    local = run.fetch(RECIPE.name)
    assert run.fetch(RECIPE.name) == local
    assert json.loads((local / "inner" / "value.json").read_text()) == {"value": 1}
    assert hash_folder(local) == run.find(RECIPE.name).content_hash


def test_copies_are_nobody_elses(tmp_path, monkeypatch):
    """Whoever could write there could plant a model."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = private_copies()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and folder.parent == tmp_path
    folder.chmod(0o777)
    with pytest.raises(StorageError, match=r"open to others, who could change models there; remove it"):
        private_copies()
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=r"a link"):
        private_copies()
    folder.unlink()
    folder.write_text("")
    with pytest.raises(StorageError, match=r"scpo_ray-copies-\d+: File exists"):
        private_copies()


def test_an_exception_leaves_nothing(run, tmp_path):
    with pytest.raises(ZeroDivisionError), RECIPE.making(run) as draft:  # noqa: PT012
        draft.write_table("rows.parquet", TABLE)
        staging = draft.folder
        raise ZeroDivisionError
    assert run.find(RECIPE.name) is None
    assert run.names("scored") == []
    assert not staging.exists()


def test_an_exception_leaves_the_previous_artifact(run):
    _make(run, value="old")
    before = run.find(RECIPE.name)
    with pytest.raises(ZeroDivisionError), RECIPE.making(run) as draft:  # noqa: PT012
        draft.write_json("other.json", {})
        raise ZeroDivisionError
    assert run.find(RECIPE.name) == before
    assert run.names("scored") == ["global"]
    assert run.read_json("scored/global/inner/value.json") == {"value": "old"}


def test_a_remade_artifact_replaces_all_of_the_old_one(run):
    _make(run)
    with RECIPE.making(run) as draft:
        draft.write_json("other.json", {"value": 2})
    assert run.names("scored/global") == [MANIFEST, "other.json"]
    assert run.names("scored") == ["global"]


def test_nothing_shows_before_the_block_ends(run):
    with RECIPE.making(run) as draft:
        draft.write_json("value.json", {})
        assert run.find(RECIPE.name) is None
        assert "global" not in run.names("scored")
    assert run.find(RECIPE.name) is not None


def test_removed_is_gone(run):
    _make(run)
    run.remove(RECIPE.name)
    assert run.find(RECIPE.name) is None
    assert run.names("scored") == []
    run.remove(RECIPE.name)


def _damage(run: RunDirectory, name: str, content: bytes | None) -> None:
    path = f"{run._root}/{RECIPE.name}/{name}"
    run._filesystem.delete_file(path)
    if content is not None:
        with run._filesystem.open_output_stream(path) as stream:
            stream.write(content)


@pytest.mark.parametrize("content", [None, b"PAR1"], ids=["deleted", "cut short"])
def test_a_file_that_is_not_as_it_was_made_is_refused(run, content):
    _make(run)
    size = run.find(RECIPE.name).files["rows.parquet"]
    _damage(run, "rows.parquet", content)
    said = "is missing" if content is None else f"has 4 bytes, its manifest says {size:,}"
    with pytest.raises(ArtifactError, match=rf"scored/global/rows.parquet: {said}; delete the folder .*scored/global "):
        RECIPE.is_made(run, rebuild=True)
    _make(run)
    assert RECIPE.is_made(run, rebuild=False) is not None


def test_files_below_are_watched_and_others_may_come(run):
    _make(run)
    with run._filesystem.open_output_stream(f"{run._root}/{RECIPE.name}/notes.txt") as stream:
        stream.write(b"mine")
    assert RECIPE.is_made(run, rebuild=False) is not None
    _damage(run, "inner/value.json", b"{}")
    with pytest.raises(ArtifactError, match=r"inner/value.json: has 2 bytes"):
        run.require(RECIPE.name, job="score")


KILLED = """
import sys, os, signal
from scpo_ray.artifacts import RunDirectory
with RunDirectory(sys.argv[1]).writing("scored/global") as folder:
    (folder / "half.parquet").write_bytes(b"PAR1")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_swept_and_what_a_running_one_writes_is_not(tmp_path):
    address = str(tmp_path / "runs")
    subprocess.run([sys.executable, "-c", KILLED, address], check=False, timeout=60)
    run = RunDirectory(address)
    (left,) = Path(address, "scored").iterdir()
    assert left.name.endswith(".tmp")
    with run.writing("scored/other"):  # of this process, which runs
        with run.writing("scored/third"):
            assert not left.exists()
            assert len(list(Path(address, "scored").iterdir())) == 2
        assert len(list(Path(address, "scored").iterdir())) == 2


def test_write_file_replaces(run, tmp_path):
    run.write_file("reports/report.html", b"one")
    run.write_file("reports/report.html", b"two")
    with run._filesystem.open_input_stream(f"{run._root}/reports/report.html") as stream:
        assert stream.read() == b"two"
    assert run.names("reports") == ["report.html"]


FULL_DISK = """
import pickle, resource, sys
from scpo_ray.artifacts import Recipe, RunDirectory
from scpo_ray.errors import StorageError
import numpy as np, pyarrow as pa

run, recipe = RunDirectory(sys.argv[1]), Recipe("made", "prepare", {}, {}, seed=0)
with recipe.making(run) as draft:
    draft.write_json("value.json", {"value": "previous"})
run.write_file("config.yaml", b"previous")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = np.random.default_rng(0).bytes(200_000)

def table():
    with recipe.making(run) as draft:
        draft.write_table("rows.parquet", pa.table({"noise": [noise]}))

def text():
    with recipe.making(run) as draft:
        draft.write_json("value.json", {"value": noise.hex()})

for attempt in (table, text, lambda: run.write_file("config.yaml", noise)):
    try:
        attempt()
    except StorageError as error:
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        print(error)
"""


def test_a_full_disk_is_one_line_and_leaves_the_previous_artifact(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stdout
    for line in lines:
        assert str(tmp_path) in line
        assert line.endswith("nothing of it was kept; free space and rerun, finished work is not repeated"), line
    assert _files(tmp_path) == ["config.yaml", "made", f"made/{MANIFEST}", "made/value.json"]
    run = RunDirectory(str(tmp_path))
    assert run.read_json("made/value.json") == {"value": "previous"}
    assert run.find("made") is not None
    assert (tmp_path / "config.yaml").read_bytes() == b"previous"


def test_storage_errors_name_the_place_and_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"check that the path exists and may be read and written") as caught:
        _make(RunDirectory(str(tmp_path / "file")))
    assert str(tmp_path / "file") in str(caught.value)
    with pytest.raises(StorageError, match=r"rows\.parquet"):
        RunDirectory(str(tmp_path)).read_table("missing/rows.parquet")
    (tmp_path / "rows.parquet").write_bytes(b"not Parquet at all")
    with pytest.raises(StorageError) as caught:
        RunDirectory(str(tmp_path)).read_table("rows.parquet")
    assert "\n" not in str(caught.value)
    with pytest.raises(StorageError, match=r"^s3://bucket: "), storage_errors("s3://bucket"):
        raise OSError("first line\nsecond line")
    with pytest.raises(StorageError):
        RunDirectory("nosuchscheme://bucket/run")


def _difference(identity=RECIPE.identity, inputs=RECIPE.inputs):
    manifest = Manifest("scored/global", "score", identity, inputs, content_hash="", seed=3, wall_time_s=0.0)
    return RECIPE.difference(manifest)


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        (RECIPE.identity, None),
        ({**RECIPE.identity, "format.max_tokens": 64}, "made with format.max_tokens = 64, this config has 512"),
        ({**RECIPE.identity, "a": [1]}, 'made with a = [1], this config has "unset"'),
        ({"format.max_tokens": 512, "select.name": "x"}, 'made with select.name = "x", this config has null'),
        ({"select.name": None}, 'made with format.max_tokens = "unset", this config has 512'),
        ({"format.max_tokens": "ü" * 90, "select.name": None}, f'made with format.max_tokens = "{"ü" * 76}..., this config has 512'),  # noqa: E501
    ],
)  # fmt: skip
def test_the_first_different_setting_is_named(identity, message):
    assert _difference(identity) == message


@pytest.mark.parametrize("inputs", [{"prepared": "xyz"}, {}])
def test_a_changed_input_is_named(inputs):
    assert _difference(inputs=inputs) == "made from another prepared (it has changed since)"
    assert _difference(inputs={**RECIPE.inputs, "a": "1"}) == "made from another a (it has changed since)"


def test_tuples_and_lists_are_the_same_setting():
    recipe = Recipe("x", "s", {"communities": ("a", "b")}, {}, seed=0)
    manifest = Manifest("x", "s", {"communities": ["a", "b"]}, {}, content_hash="", seed=0, wall_time_s=0)
    assert recipe.difference(manifest) is None


def test_another_recipe_is_refused_unless_it_is_rebuilt(run):
    _make(run)
    other = Recipe(RECIPE.name, RECIPE.stage, {**RECIPE.identity, "format.max_tokens": 64}, RECIPE.inputs, seed=3)
    with pytest.raises(ArtifactError) as caught:
        other.is_made(run, rebuild=False)
    assert str(caught.value) == (
        f"{run.address}/scored/global: made with format.max_tokens = 512, this config has 64; use another --run_dir, or "
        "--rebuild true to remake it and what follows"
    )
    assert other.is_made(run, rebuild=True) is None
    _make(run, other)
    assert other.is_made(run, rebuild=False) is not None
    assert RECIPE.is_made(run, rebuild=True) is None


def test_a_missing_artifact_names_its_job(run):
    with pytest.raises(ArtifactError) as caught:
        run.require("prepared", job="prepare")
    assert str(caught.value) == f"{run.address}/prepared: no such artifact; run jobs/prepare.py first"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b'{"name": "x"}', b'{"unknown": 1}', b"\xff\xfe\x00binary"]
)
def test_a_corrupted_manifest_is_refused(tmp_path, content):
    run = RunDirectory(str(tmp_path))
    _make(run)
    (tmp_path / RECIPE.name / MANIFEST).write_bytes(content)
    for rebuild in (False, True):
        with pytest.raises(ArtifactError, match=r"manifest\.json: not a manifest .*; delete the folder and rerun"):
            RECIPE.is_made(run, rebuild=rebuild)


def test_another_schema_version_is_refused(tmp_path):
    run = RunDirectory(str(tmp_path))
    _make(run)
    path = tmp_path / RECIPE.name / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(
        ArtifactError, match=f"schema version 99, this release reads {SCHEMA_VERSION}; delete the folder"
    ):
        run.find(RECIPE.name)


def test_hash_folder_depends_on_names_and_bytes_alone(tmp_path):
    def hash_of(files):
        folder = tmp_path / uuid.uuid4().hex
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        return hash_folder(folder)

    first = hash_of({"a": "1", "b/c": "2"})
    assert hash_of({"b/c": "2", "a": "1"}) == first
    assert hash_of({"a": "1", "b/c": "2", MANIFEST: "anything"}) == first
    others = [{"a": "1"}, {"a": "1", "b/c": "3"}, {"a": "1", "b/d": "2"}, {"a": "12", "b/c": ""}, {"a": "1", "b": "2"}]
    assert len({first, *(hash_of(files) for files in others)}) == 6


def test_a_draft_may_say_its_own_hash(tmp_path):
    run = RunDirectory(str(tmp_path))
    with RECIPE.making(run) as draft:
        assert isinstance(draft, Draft)
        draft.content_hash = "mine"
    assert run.find(RECIPE.name).content_hash == "mine"
