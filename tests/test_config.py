"""What the models themselves promise: immutable, closed, checked, and light to import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from scpo_ray.cli import dump_yaml, load_config
from scpo_ray.config import Config, PrepareConfig, SelectConfig
from scpo_ray.config.section import holds_key

REPOSITORY = Path(__file__).parents[1]


def _sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    below = [field.annotation for field in model.model_fields.values()]
    nested = [kind for kind in below if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [model, *(section for kind in nested for section in _sections(kind))]


def test_every_section_is_frozen_closed_and_described():
    sections = _sections(Config)
    assert len(sections) > 10
    for section in sections:
        assert section.model_config.get("frozen") is True, section
        assert section.model_config.get("extra") == "forbid", section
        assert section.__doc__, section


def test_config_cannot_be_changed():
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError, match="frozen"):
        config.select.agreement_threshold = 0.6  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("values", [{"sed": 1}, {"select": {"tau": 0.7}}, {"train": {"lora": {"r": 8}}}])
def test_unknown_keys_are_refused_at_every_depth(values):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Config.model_validate(values)


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 1.7])
def test_agreement_threshold_is_an_open_interval(threshold):
    with pytest.raises(ValidationError):
        SelectConfig(agreement_threshold=threshold)


def test_published_thresholds_are_the_defaults():
    select = SelectConfig()
    assert (select.strategy, select.agreement_threshold, select.weight_temperature) == ("filter_weight", 0.7, 1.1)


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.9, 0.2)])
def test_splits_must_leave_training_pairs(fractions):
    validation, test = fractions
    with pytest.raises(ValidationError, match=f"validation_fraction {validation} .* lower one of them"):
        PrepareConfig(validation_fraction=validation, test_fraction=test)


@pytest.mark.parametrize(
    "values", [{"controls": ["filter_weight"]}, {"strategy": "none", "controls": ["none"]}, {"controls": ["none"] * 2}]
)
def test_controls_repeat_no_strategy(values):
    with pytest.raises(ValidationError, match="repeat a strategy"):
        SelectConfig.model_validate(values)


def test_strategies_start_with_the_main_one():
    assert SelectConfig(strategy="filter", controls=("none", "weight")).strategies == ("filter", "none", "weight")


def test_config_imports_nothing_heavy():
    code = (
        "import sys, scpo_ray.config; "
        "print(*{'torch', 'ray', 'pyarrow', 'numpy', 'transformers', 'deepspeed', 'vllm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


class TestPerCommunity:
    def test_a_communitys_own_values(self):
        config = Config(
            select={"agreement_threshold": 0.6},
            per_community={"Chile": {"select.weight_temperature": 2.0, "train.lora.enabled": True}},
        )
        chile, others = config.for_community("Chile"), config.for_community("Peru")
        assert (chile.select.agreement_threshold, chile.select.weight_temperature) == (0.6, 2.0)
        assert chile.train.lora.enabled and not others.train.lora.enabled
        assert others is config and others.select.weight_temperature == 1.1

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"select.tau": 0.5}, "Chile: select.tau: unknown key"),
            ({"prepare.test_fraction": 0.5}, "Chile: prepare.test_fraction: only settings of select and train"),
            ({"train.num_workers": 2}, "Chile: train.num_workers: changes cost, not the result"),
            ({"select.strategy": "filter"}, "Chile: select.strategy: all communities of a run have one strategy"),
            ({"select.agreement_threshold": 2}, "Chile: 2: Input should be less than 1"),
        ],
    )
    def test_what_cannot_differ_is_refused(self, settings, message):
        with pytest.raises(ValidationError, match=message):
            Config(per_community={"Chile": settings})


@pytest.mark.parametrize(
    ("address", "holds"),
    [
        ("s3://KEY:SECRET@bucket/x", True),
        ("s3://KEY@bucket/x", True),
        ("--run_dir=s3://KEY:SEC/RET@bucket", True),
        ("a.jsonl,s3://KEY:SECRET@bucket/x.jsonl", True),
        ('["a.jsonl", "s3://KEY:SE/CR+ET@bucket/x.jsonl"]', True),
        ("s3://bucket/x?access_key=KEY&secret_key=SECRET", True),
        ("s3://bucket/x?secret-key=SECRET", True),
        ("https://bucket.example/x?X-Amz-Credential=KEY&X-Amz-Signature=SIGN", True),
        ("az://c/x?sv=2024&sig=SIGN", True),
        ("gs://bucket/x?json_credentials=FILE", True),
        ("s3://bucket/x?password=SECRET", True),
        ("s3://bucket/run@1", False),
        ("s3://bucket/design?region=us-east-1&design=2", False),
        ("http://host:9000/x", False),
        ("s3://one/a,s3://two/b", False),
        ("of http://example.org/a, asked by me@example.org", False),
        ("s3://bucket/x?endpoint_override=http://host:9000", False),
    ],
)
def test_addresses_that_hold_a_key(address, holds):
    assert holds_key(address) == holds


def test_a_config_that_was_written_and_read_is_the_same_to_the_letter(tmp_path):
    """Names of checkpoints are hashes of settings' text: 10000 and 10000.0 are equal, and written differently."""
    config = Config(run_dir="run")
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    again = load_config(["--config", str(tmp_path / "config.yaml")])
    assert json.dumps(again.model_dump(mode="json")) == json.dumps(config.model_dump(mode="json"))
