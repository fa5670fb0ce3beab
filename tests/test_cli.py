"""What a user types and what comes back: values, one-line refusals, exit codes, `--help`."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from scpo_ray.cli import dump_yaml, load_config, run
from scpo_ray.config import Config, PrepareConfig, ReportConfig
from scpo_ray.errors import ConfigError, DataError

REPOSITORY = Path(__file__).parents[1]
JOBS = ("prepare", "train_global", "score", "select", "train", "evaluate", "report", "pipeline")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a YAML file into the current folder; returns its relative path."""
    monkeypatch.chdir(tmp_path)

    def _write(text: str, name: str = "demo.yaml") -> str:
        Path(name).write_text(text, encoding="utf-8")
        return name

    return _write


def _refusal(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


def _run_job(job: str, *argv: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}  # as Ray sets it for a job's working directory
    command = [sys.executable, str(REPOSITORY / "jobs" / f"{job}.py"), *argv]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


# Values and precedence


def test_no_arguments_give_the_defaults():
    config = load_config([])
    assert config == Config()
    assert type(config) is Config


def test_arguments_default_to_the_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jobs/score.py", "--seed", "3"])
    assert load_config().seed == 3


@pytest.mark.parametrize("argv", [["--select.agreement_threshold", "0.6"], ["--select.agreement_threshold=0.6"]])
def test_dotted_override(argv):
    assert load_config(argv).select.agreement_threshold == 0.6


def test_command_line_wins_over_file_wins_over_defaults(write):
    file = write("seed: 5\nrun_dir: runs/file\nselect:\n  agreement_threshold: 0.5\n  weight_temperature: 2.0\n")
    config = load_config(["--config", file, "--run_dir", "runs/line", "--select.agreement_threshold", "0.6"])
    assert (config.seed, config.run_dir) == (5, "runs/line")
    assert (config.select.agreement_threshold, config.select.weight_temperature) == (0.6, 2.0)
    assert config.select.strategy == "filter_weight"


def test_the_order_of_file_and_overrides_does_not_matter(write):
    file = write("seed: 5\n")
    assert load_config(["--seed", "6", "--config", file]).seed == 6


def test_environment_is_not_read(monkeypatch):
    for name in ("SEED", "seed", "CONFIG", "config", "SELECT__AGREEMENT_THRESHOLD", "select.agreement_threshold"):
        monkeypatch.setenv(name, "0.9")
    assert load_config([]) == Config()


def test_an_override_rescues_a_file_that_is_wrong_without_it(write):
    file = write("select: {agreement_threshold: 1.7}\nprepare: {validation_fraction: 0.9}\n")
    config = load_config(["--config", file, "--select.agreement_threshold", "0.6", "--prepare.test_fraction", "0.05"])
    assert (config.select.agreement_threshold, config.prepare.validation_fraction) == (0.6, 0.9)


@pytest.mark.parametrize(
    ("argv", "datasets"),
    [
        (["--prepare.datasets", '["prism"]'], ("prism",)),
        (["--prepare.datasets", "prism"], ("prism",)),
        (["--prepare.datasets", "prism,atlas"], ("prism", "atlas")),
        (["--prepare.datasets", "prism", "--prepare.datasets", "atlas"], ("prism", "atlas")),
        (["--prepare.datasets", '["prism", "atlas"]'], ("prism", "atlas")),
    ],
)
def test_list_styles(argv, datasets):
    assert load_config(argv).prepare.datasets == datasets


def test_a_list_on_the_command_line_replaces_the_file_s(write):
    file = write("prepare: {datasets: [prism, atlas]}\n")
    assert load_config(["--config", file, "--prepare.datasets", "pair_files"]).prepare.datasets == ("pair_files",)


@pytest.mark.parametrize(
    ("text", "communities"),
    [
        ("null", None),
        ("[]", ()),
        ("Kenya", ("Kenya",)),
        ('["Korea, Republic of", "Kenya"]', ("Korea, Republic of", "Kenya")),
        ('["null"]', ("null",)),
        ("Côte d'Ivoire", ("Côte d'Ivoire",)),
    ],
)
def test_optional_list(write, text, communities):
    file = write("prepare: {communities: [Chile]}\n")
    assert load_config(["--config", file, "--prepare.communities", text]).prepare.communities == communities


@pytest.mark.parametrize(
    ("text", "modules"),
    [("all-linear", "all-linear"), ("q_proj", ("q_proj",)), ("q_proj,v_proj", ("q_proj", "v_proj")), ("[]", ())],
)
def test_union_of_a_list_and_a_word(write, text, modules):
    file = write("train: {lora: {target_modules: [k_proj]}}\n")
    assert load_config(["--config", file, "--train.lora.target_modules", text]).train.lora.target_modules == modules


@pytest.mark.parametrize(("text", "max_steps"), [("5", 5), ("null", None)])
def test_optional_number(write, text, max_steps):
    file = write("train: {max_steps: 7}\n")
    assert load_config(["--config", file, "--train.max_steps", text]).train.max_steps == max_steps


@pytest.mark.parametrize(("text", "rate"), [("2e-5", 2e-5), ("0.00002", 2e-5), ("1", 1.0)])
def test_scientific_notation_in_file_and_on_the_line(write, text, rate):
    file = write(f"train: {{learning_rate: {text}}}\n")  # YAML 1.1 reads 2e-5 as a string
    assert load_config(["--config", file]).train.learning_rate == rate
    assert load_config(["--train.learning_rate", text]).train.learning_rate == rate


@pytest.mark.parametrize(("text", "rebuild"), [("true", True), ("false", False), ("True", True)])
def test_boolean(text, rebuild):
    assert load_config(["--rebuild", text]).rebuild is rebuild


def test_a_section_as_json_takes_dotted_overrides_on_top():
    config = load_config(["--select", '{"strategy": "none", "agreement_threshold": 0.5}', "--select.strategy=filter"])
    assert (config.select.strategy, config.select.agreement_threshold) == ("filter", 0.5)


def test_a_number_stays_text_where_text_is_meant():
    assert load_config(["--report.title", "2024", "--prepare.majority", "7"]) == Config(
        report=ReportConfig(title="2024"), prepare=PrepareConfig(majority=("7",))
    )


@pytest.mark.parametrize("text", ["", "# only a comment\n", "{}\n"])
def test_an_empty_file_states_nothing(write, text):
    assert load_config(["--config", write(text)]) == Config()


# Refusals


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--selct.agreement_threshold", "0.6"],
            "--selct.agreement_threshold: unknown key; did you mean --select.agreement_threshold?",
        ),
        (
            ["--selct.agreement_threshold=0.6"],
            "--selct.agreement_threshold: unknown key; did you mean --select.agreement_threshold?",
        ),
        (
            ["--train.learning-rate", "1"],
            "--train.learning-rate: unknown key; did you mean --train.learning_rate?",
        ),
        (
            ["--agreement_threshold", "0.6"],
            "--agreement_threshold: unknown key; did you mean --select.agreement_threshold?",
        ),
        (["--see", "1"], "--see: unknown key; did you mean --seed?"),  # no abbreviations
        (["--confg", "demo.yaml"], "--confg: unknown key; did you mean --config?"),
        (["--zzzz", "1"], "--zzzz: unknown key; --help lists all keys"),
        (["demo.yaml"], "demo.yaml: unexpected argument; settings are --KEY VALUE, a file is --config FILE"),
        (["--seed"], "--seed: expected one argument"),
        (["--config"], "--config: expected one argument"),
        (
            ["--select.agreement_threshold", "1.7"],
            "select.agreement_threshold: 1.7: Input should be less than 1 or 'auto'",
        ),
        (["--train.max_steps", "0"], "train.max_steps: 0: Input should be greater than or equal to 1"),
        (
            ["--train.zero_stage", "x"],
            "train.zero_stage: x: Input should be a valid integer, unable to parse string as an integer",
        ),
        (
            ["--run_dir", "s3://user:sec/ret@bucket/run"],
            "run_dir: s3://...@bucket/run: holds a user or a key, which manifests and logs would show; set it in the "
            "environment (AWS_ACCESS_KEY_ID and the like), and leave it out here",
        ),
        (
            ["--run_dir", "s3://bucket/run?secret_key=SECRET"],
            "run_dir: s3://bucket/run?secret_key=...: holds a user or a key, which manifests and logs would show; set it in "
            "the environment (AWS_ACCESS_KEY_ID and the like), and leave it out here",
        ),
        (["--train.zero_stage", "4"], "train.zero_stage: 4: Input should be less than or equal to 3"),
        (
            ["--train.min_workers", "3", "--train.num_workers", "2"],
            "train: min_workers 3 is more than num_workers 2; lower it",
        ),
        (
            ["--train.min_workers", "1", "--train.num_workers", "2", "--train.zero_stage", "2"],
            "train: min_workers 1: checkpoints of ZeRO stage 2 are read by as many ranks as wrote them; leave min_workers "
            "unset, or train under zero_stage 0 from the start",
        ),
        (["--run_dir", "null"], "run_dir: null: Input should be a valid string"),
        (["--report.title", "null"], "report.title: null: Input should be a valid string"),
        (
            ["--prepare.datasets", "atlas,foo"],
            "prepare.datasets: foo: "
            "Input should be 'atlas', 'prism', 'global_opinions', 'pair_files' or 'general_preferences'",
        ),
        (
            ["--prepare.datasets", "foo"],
            "prepare.datasets: foo: "
            "Input should be 'atlas', 'prism', 'global_opinions', 'pair_files' or 'general_preferences'",
        ),
        (
            ["--prepare.datasets", "[]"],
            "prepare.datasets: []: Tuple should have at least 1 item after validation, not 0",
        ),
        (["--prepare.datasets", '["prism'], 'prepare.datasets: Missing end delimiter "]"'),
        (
            ["--select", '{"strategy":}'],
            '{"strategy":}: not valid JSON: Expecting value: line 1 column 13 (char 12)',
        ),
        (["--select", '{"stratgy": 1}'], "select.stratgy: unknown key; did you mean select.strategy?"),
        (["--select", '{"x": 1}'], "select.x: unknown key; did you mean select.strategy?"),  # not: select
        (["--select", "5"], "select: 5: Input should be a section; indent its keys below it, or remove it"),
        (
            ["--prepare.validation_fraction", "0.9"],
            "prepare: validation_fraction 0.9 + test_fraction 0.2 leave no training pairs; lower one of them",
        ),
        (
            ["--select.controls", "filter_weight"],
            "select: controls ['filter_weight'] repeat a strategy (the main one is filter_weight)",
        ),
    ],
)
def test_refused_command_lines(argv, message):
    assert _refusal(*argv) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "select: {agreement_treshold: 0.7}\n",
            "demo.yaml: select.agreement_treshold: unknown key; did you mean select.agreement_threshold?",
        ),
        ("selct: {strategy: none}\n", "demo.yaml: selct: unknown key; did you mean select?"),
        ("Select: {strategy: none}\n", "demo.yaml: Select: unknown key; did you mean select?"),
        ("train: {lora: {rnk: 8}}\n", "demo.yaml: train.lora.rnk: unknown key; did you mean train.lora.rank?"),
        ("config: other.yaml\n", "demo.yaml: config: unknown key; --help lists all keys"),
        ("1: 2\n", "demo.yaml: 1: unknown key; --help lists all keys"),
        (
            "select: {agreement_threshold: 1.7}\n",
            "demo.yaml: select.agreement_threshold: 1.7: Input should be less than 1 or 'auto'",
        ),
        (
            "report: {title: 2024}\n",
            "demo.yaml: report.title: 2024: Input should be a valid string",
        ),
        (
            'seed: "a\\nb"\n',
            'demo.yaml: seed: "a\\nb": Input should be a valid integer, unable to parse string as an integer',
        ),
        (
            "train: {lora: {target_modules: 5}}\n",
            "demo.yaml: train.lora.target_modules: 5: Input should be a valid tuple or 'all-linear'",
        ),
        (
            "train:\n",
            "demo.yaml: train: null: Input should be a section; indent its keys below it, or remove it",
        ),
        (
            "prepare: {validation_fraction: 0.9}\n",
            "demo.yaml: prepare: validation_fraction 0.9 + test_fraction 0.2 leave no training pairs; "
            "lower one of them",
        ),
        ("seed: 1\nseed: 2\n", "demo.yaml:2: seed is given a second time; merge the two"),
        (
            "select:\n  strategy: none\ntrain:\n  epochs: 1\n  epochs: 2\n",
            "demo.yaml:5: epochs is given a second time; merge the two",
        ),
        (
            "seed: 1\nselect: [1\ntrain: 2\n",
            "demo.yaml:3: not valid YAML: expected ',' or ']', but got ':'; correct that line",
        ),
        (
            "seed: !number 1\n",
            "demo.yaml:1: not valid YAML: could not determine a constructor for the tag '!number'; correct that line",
        ),
        ("- seed\n", "demo.yaml: holds no keys; write `section:` lines with `key: value` lines below"),
        ("seed\n", "demo.yaml: holds no keys; write `section:` lines with `key: value` lines below"),
        ("[]\n", "demo.yaml: holds no keys; write `section:` lines with `key: value` lines below"),
        ("run_dir: 2024-99-99\n", "demo.yaml: cannot be read as YAML: month must be in 1..12"),
    ],
)
def test_refused_files(write, text, message):
    assert _refusal("--config", write(text)) == message


def test_a_wrong_override_is_not_blamed_on_the_file(write):
    file = write("select: {agreement_threshold: 0.5}\n")
    message = _refusal("--config", file, "--select.agreement_threshold", "1.7")
    assert message == "select.agreement_threshold: 1.7: Input should be less than 1 or 'auto'"


def test_missing_file_names_the_folder_it_was_sought_in(write, tmp_path):
    message = f"demo.yaml: no such file, seen from {tmp_path}; --config takes a YAML file"
    assert _refusal("--config", "demo.yaml") == message


def test_a_home_relative_file(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config([f"--config=~/{write('seed: 5')}"]).seed == 5


def test_a_folder_is_no_file(tmp_path):
    assert _refusal("--config", str(tmp_path)) == f"{tmp_path}: is a folder; --config takes a YAML file"


def test_a_section_that_contains_itself(tmp_path):
    file = tmp_path / "demo.yaml"
    file.write_text("prepare: &a\n  atlas: *a\n")
    assert _refusal("--config", str(file)).startswith(f"{file}:1: a section that contains itself")


def test_not_a_number_has_a_reason(tmp_path):
    file = tmp_path / "demo.yaml"
    file.write_text("select: {agreement_threshold: .nan}\n")
    expected = "select.agreement_threshold: NaN: Input should be a finite number or 'auto'"
    assert _refusal("--config", str(file)).endswith(expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prepare.datasets", "atlas,atlas"),
        ("prepare.pair_files.paths", "a.jsonl,a.jsonl"),
        ("prepare.communities", "Chile,Chile"),
        ("train.communities", "Chile,Chile"),
    ],
)
def test_a_list_names_nothing_twice(key, value):
    assert _refusal(f"--{key}", value).endswith(f"{value.split(',')[0]!r} is given twice; name it once")


def test_bytes_that_are_no_text(tmp_path):
    file = tmp_path / "demo.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    assert _refusal("--config", str(file)).startswith(f"{file}: cannot be read as YAML: 'utf-8' codec")


# Resolved copy


def test_resolved_copy_states_every_key_and_reads_back(write):
    config = load_config(
        [
            "--prepare.communities=null",
            '--prepare.majority=["Korea, Republic of"]',
            "--train.lora.target_modules=q_proj,v_proj",
            "--train.learning_rate=3e-7",
            "--train.max_steps=5",
            "--report.title=2e-5",
        ]
    )
    text = dump_yaml(config)
    assert "agreement_threshold: 0.7" in text
    assert load_config(["--config", write(text)]) == config


def test_resolved_copy_keeps_line_separators_and_stays_readable(write):
    config = Config(report=ReportConfig(title="a\x85b\u2028c"), prepare=PrepareConfig(majority=("Türkiye",)))
    text = dump_yaml(config)
    assert "- Türkiye\n" in text
    assert load_config(["--config", write(text)]) == config


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(
    title=st.text(),
    majority=st.none() | st.lists(st.text(), max_size=3, unique=True).map(tuple),
    threshold=st.floats(0, 1, exclude_min=True, exclude_max=True),
    seed=st.integers(0, 2**31 - 1),
)
def test_any_resolved_copy_reads_back(write, title, majority, threshold, seed):
    stated = {
        "seed": seed,
        "report": {"title": title},
        "prepare": {"communities": majority},
        "select": {"agreement_threshold": threshold},
    }
    config = Config.model_validate(stated)
    assert load_config(["--config", write(dump_yaml(config))]) == config


# Jobs


def test_help_shows_every_key_and_answers_within_a_second():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = _run_job("score", "--help")
        seconds.append(time.perf_counter() - start)
        assert (done.returncode, done.stderr) == (0, "")
    assert min(seconds) < 1.0

    shown = " ".join(done.stdout.split())  # pyright: ignore[reportPossiblyUnboundVariable]
    assert shown.startswith("usage: score.py [--config FILE] [--run_dir DIR] [--SECTION.KEY VALUE ...] Score ")
    line = "python jobs/score.py --config jobs/experiments/prism.yaml"
    assert f"ray job submit --working-dir . -- {line} --run_dir /shared/prism" in shown
    assert "--config FILE YAML file" in shown
    assert "--select.agreement_threshold {float,auto} τ, probability. Lower keeps fewer pairs." in shown
    assert "all when unset. (default: null)" in shown
    for key in _settings(Config):
        assert f" --{key} " in shown, key


def _settings(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        is_section = isinstance(kind, type) and issubclass(kind, BaseModel)
        keys += _settings(kind, f"{prefix}{name}.") if is_section else [prefix + name]
    return keys


def test_importing_the_command_line_is_light():
    code = (
        "import sys; from scpo_ray.cli import load_config; load_config([]); "
        "print(*{'torch', 'ray', 'pyarrow', 'numpy', 'transformers', 'deepspeed', 'vllm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("job", JOBS)
def test_every_job_refuses_an_unknown_key_from_any_folder(job, tmp_path):
    done = _run_job(job, "--selct.agreement_threshold", "0.6", cwd=tmp_path)
    message = "--selct.agreement_threshold: unknown key; did you mean --select.agreement_threshold?"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"scpo_ray: error: {message}\n")


@pytest.mark.parametrize("job", JOBS)
def test_every_job_documents_its_command(job):
    text = (REPOSITORY / "jobs" / f"{job}.py").read_text(encoding="utf-8")
    assert f"ray job submit --working-dir . -- python jobs/{job}.py --config jobs/experiments/" in text
    assert f"from scpo_ray.stages import {job}" in text.partition(f'preflight.passed(config, "{job}")')[2]
    assert len(text.splitlines()) <= 40


def test_a_job_hands_the_config_to_its_stage_and_prints_the_result(tmp_path):
    job = REPOSITORY / "jobs" / "score.py"
    code = (
        "import runpy, sys, types; import scpo_ray.stages; stage = types.ModuleType('scpo_ray.stages.score'); "
        "stage.run = lambda config: f'seed {config.seed}'; sys.modules['scpo_ray.stages.score'] = stage; "
        f"scpo_ray.stages.score = stage; sys.argv = ['score.py', '--seed', '3']; "
        f"runpy.run_path({str(job)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "seed 3\n")
    assert done.stderr.startswith("Plan: 1 node") and "1 scorer" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("seed: -1: Input should be 0"), 2, "scpo_ray: error: seed: -1: Input should be 0\n"),
        (DataError("Kenya: 3 pairs left"), 1, "scpo_ray: error: Kenya: 3 pairs left\n"),
        (
            KeyboardInterrupt(),
            130,
            "scpo_ray: interrupted; the same command resumes after the last finished step\n",
        ),
    ],
)
def test_run_turns_errors_into_a_line_and_a_code(capsys, error, code, line):
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        run(main)
    assert caught.value.code == code
    assert capsys.readouterr() == ("", line)


def test_an_error_about_a_name_with_a_line_break_is_one_line(capsys):
    def main() -> None:
        raise DataError("New\nZealand: no pairs")

    with pytest.raises(SystemExit):
        run(main)
    assert capsys.readouterr().err == "scpo_ray: error: New\\nZealand: no pairs\n"


def test_run_shows_a_remote_error_without_its_traceback(capsys):
    from ray.exceptions import RayTaskError

    def main() -> None:
        raise RayTaskError(
            "score", "Traceback:\n  many\n  lines", DataError("Kenya: 3 pairs left")
        ).as_instanceof_cause()

    with pytest.raises(SystemExit) as caught:
        run(main)
    assert caught.value.code == 1
    assert capsys.readouterr().err == "scpo_ray: error: Kenya: 3 pairs left\n"


def test_run_leaves_bugs_their_traceback():
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main)


def test_run_returns_after_success(capsys):
    run(lambda: print("done"))
    assert capsys.readouterr().out == "done\n"
