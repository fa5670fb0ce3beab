"""What is refused before a replica starts."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scpo_ray.artifacts import RunDirectory
from scpo_ray.errors import ArtifactError, ConfigError, ModelError
from scpo_ray.serving.catalog import read_catalog
from scpo_ray.serving.settings import settings_of
from scpo_ray.serving.tokens import Tokens

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to serve: give run_dir=FOLDER of a finished run, or models"),
        ({"run_dir": "runs/demo"}, "tokens_file is unset: name a file with one token per line"),
        ({"run_dir": "r", "tokens": "t"}, "tokens: Extra inputs are not permitted; settings are run_dir, models"),
        ({"run_dir": "r", "authentication": "none"}, "authentication: Input should be 'bearer' or 'off'"),
        ({"run_dir": "r", "tokens_file": "t", "deadline_s": "-1"}, "deadline_s: Input should be greater than 0"),
    ],
)
def test_settings_that_cannot_be_meant(arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        settings_of(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["max_mapped_gib=-1"], "max_mapped_gib: Input should be greater than or equal to 0"),
        ([], "{run}/global_model: no such artifact; run jobs/train_global.py first"),
    ],
)
def test_serve_run_refuses_in_one_line(tmp_path, arguments, message):
    command = [Path(sys.executable).with_name("serve"), "run", "serve.reward:app", f"run_dir={tmp_path}"]
    done = subprocess.run(
        [*command, "authentication=off", *arguments], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
    )
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if "scripts.py" not in line]  # Ray's own
    assert told == ["Error: " + message.replace("{run}", str(tmp_path))]


def test_text_from_the_command_line_becomes_numbers():
    config = settings_of({"run_dir": "r", "authentication": "off", "max_queued": "7", "deadline_s": "2.5"})
    assert (config.max_queued, config.deadline_s) == (7, 2.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("# nobody\n\n", "no token in it; write one per line"),
        ("short\n", "token 1 has 5 characters, at least 16 are needed"),
    ],
)
def test_token_files_that_protect_nothing(tmp_path, content, message):
    file = tmp_path / "tokens.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        Tokens(str(file))


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(ArtifactError, match=r"global_model: no such artifact; run jobs/train_global.py first"):
        read_catalog(settings_of({"run_dir": str(tmp_path), "authentication": "off"}))


@pytest.fixture
def copied(controlled_run, tmp_path) -> Path:
    run = tmp_path / "run"
    shutil.copytree(
        controlled_run.run_dir, run, ignore=shutil.ignore_patterns("report*", "logs", "replicates", "controls")
    )
    return run


def catalog_of(run: Path, **settings: object):
    return read_catalog(settings_of({"run_dir": str(run), "authentication": "off"} | settings))


def test_everyone_is_served_or_those_who_are_named(copied):
    assert set(catalog_of(copied).models) == {"Atlas", "Brevia", "Calder Isles"}
    assert set(catalog_of(copied, communities=["Brevia"]).models) == {"Brevia"}
    with pytest.raises(ConfigError, match="communities: 'Chile' has no model; there are Atlas, Brevia, Calder Isles"):
        catalog_of(copied, communities=["Chile"])


def test_an_evaluation_of_other_models_is_not_believed(copied):
    manifest = copied / "evaluation/manifest.json"
    content = json.loads(manifest.read_text())
    content["inputs"]["filter_weight/Brevia"] = "0" * 64
    manifest.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"not of Brevia's present model; run jobs/evaluate.py again"):
        catalog_of(copied)


def without_lengths(run_dir: Path) -> None:
    """As an earlier release left it, whose manifests do not say how long files are."""
    for path in run_dir.rglob("manifest.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"files": {}}))


def test_an_evaluation_without_scales_names_the_job_that_makes_them(copied):
    without_lengths(copied)
    (copied / "evaluation/scales.parquet").unlink()
    with pytest.raises(
        ArtifactError, match=r"no scales.parquet, an earlier release made it; remake it with jobs/evaluate"
    ):
        catalog_of(copied)


def test_pickled_weights_are_never_loaded(copied):
    folder = next(path for path in (copied / "reward_models").iterdir() if path.name.startswith("brevia"))
    without_lengths(copied)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no safetensors weights; services load nothing else"):
        catalog_of(copied)


def test_cut_weights_are_noticed_before_anything_is_served(copied):
    folder = next(path for path in (copied / "reward_models").iterdir() if path.name.startswith("brevia"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(
        ArtifactError, match=r"model.safetensors: has .* bytes, its manifest says .*; delete the folder"
    ):
        catalog_of(copied)
    without_lengths(copied)
    with pytest.raises(ModelError, match=r"model.safetensors: damaged .*; copy it again"):
        catalog_of(copied)


def test_the_digest_changes_with_the_models(copied):
    before = catalog_of(copied).digest
    assert catalog_of(copied).digest == before
    assert catalog_of(copied, precision="bfloat16").digest != before
    path = copied / "reward_models" / RunDirectory(str(copied)).names("reward_models")[0] / "manifest.json"
    content = json.loads(path.read_text())
    name = f"{content['identity']['arm']}/{content['identity']['community']}"
    content["content_hash"] = "f" * 64
    path.write_text(json.dumps(content))
    evaluation = copied / "evaluation/manifest.json"
    evaluated = json.loads(evaluation.read_text())
    evaluated["inputs"][name] = "f" * 64
    evaluation.write_text(json.dumps(evaluated))
    assert catalog_of(copied).digest != before


def test_the_deployments_yaml_is_one_that_ray_serve_and_the_service_take():
    from ray.serve.schema import ServeDeploySchema

    content = yaml.safe_load((ROOT / "serve/reward.yaml").read_text())
    schema = ServeDeploySchema.model_validate(content)
    (application,) = schema.applications
    config = settings_of(application.args)
    (deployment,) = application.deployments
    assert deployment.name == "rewards"
    assert deployment.graceful_shutdown_timeout_s > config.body_timeout_s + config.deadline_s
    assert schema.http_options.request_timeout_s > config.deadline_s
    assert schema.http_options.host == "127.0.0.1"
    assert deployment.autoscaling_config["target_ongoing_requests"] > 1


def test_off_is_off_also_where_yaml_reads_it_as_false():
    assert settings_of(yaml.safe_load("{run_dir: r, authentication: off}")).authentication == "off"


def test_a_mark_of_byte_order_is_no_part_of_a_token(tmp_path):
    """As Windows' editors write it."""
    (tmp_path / "tokens.txt").write_bytes(b"\xef\xbb\xbf" + b"t" * 20)
    assert Tokens(str(tmp_path / "tokens.txt")).admit("Bearer " + "t" * 20)
