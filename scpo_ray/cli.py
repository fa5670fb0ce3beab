"""From the command line and a YAML file to a validated `Config`, and from an error to one line and an exit code.

pydantic-settings reads both; the command line wins over the file, the file over the defaults, and environment variables
count for nothing. This module refuses what cannot be meant, and says where it stands and what was expected instead.
"""

import difflib
import json
import re
import sys
from argparse import Action, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# `python jobs/score.py` puts jobs/ first on the path, where select.py would stand in for the standard library's module.
# Ray gives its workers the script's folder only while the driver has it on the path, so they are spared as well.
if Path(sys.path[0], "select.py").is_file():
    del sys.path[0]

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsError, YamlConfigSettingsSource
from typing_extensions import TypeAliasType

from scpo_ray.config import Config, SearchRange
from scpo_ray.errors import ConfigError, ScpoError

FILE = TypeAliasType("FILE", str)  # `--help` shows this name

_SPACE = ("tune", "space")
_NAMED_BY_USER = (_SPACE, ("per_community",))

USAGE = "%(prog)s [--config FILE] [--run_dir DIR] [--SECTION.KEY VALUE ...]"
VALUES_HELP = """\
values:
  A list is `a,b`, a repeated option, or JSON, which also takes items with commas: '["Korea, Republic of"]'.
  `null` unsets. The command line wins over the file, the file over the defaults; environment variables are not read.
"""


class _CommandLine(Config, BaseSettings, case_sensitive=True):
    """What a job accepts: every key of `Config`, and the file. It names the options and is never filled."""

    config: FILE | None = None
    """YAML file that states the differences from the defaults; a relative path starts in the current folder."""


class _HelpFormatter(RawDescriptionHelpFormatter):
    """Shows an unset default in the spelling that the command line takes."""

    def _get_help_string(self, action: Action) -> str | None:
        return action.help and action.help.replace("(default: None)", "(default: null)")


class _YamlDumper(yaml.SafeDumper):
    """Escapes what is not printable: left to PyYAML, U+0085 and its like come back as a space."""


_YamlDumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    ),
)


def load_config(argv: Sequence[str] | None = None, *, description: str | None = None) -> Config:
    """The run's configuration: command line over `--config` file over defaults.

    Args:
        argv: Arguments without the program's name; `sys.argv[1:]` when unset.
        description: What `--help` says first; a job gives its docstring.

    Raises:
        ConfigError: an unknown key, a value that its key refuses, or a file that cannot be read; one line.
        SystemExit: 0, after `--help`.
    """
    given = _read_command_line(_with_flag(sys.argv[1:] if argv is None else argv), description)
    config_file = given.pop("config", None)
    stated = _read_yaml(config_file) if config_file is not None else {}
    try:
        return Config.model_validate(_override(stated, given))
    except ValidationError as error:
        raise ConfigError(_explain(error, given=given, stated=stated, config_file=config_file)) from None


_DRY_RUN = "--dry_run"


def _with_flag(argv: Sequence[str]) -> list[str]:
    """`--dry-run` and `--dry_run` alone mean true."""
    found = [_DRY_RUN if argument == "--dry-run" else argument for argument in argv]
    for place, argument in reversed(list(enumerate(found))):
        if argument == _DRY_RUN and (place + 1 == len(found) or found[place + 1].startswith("--")):
            found.insert(place + 1, "true")
    return found


def dump_yaml(config: Config) -> str:
    """The resolved copy that is saved beside outputs: every key, in order; `--config` reads it back unchanged."""
    values = config.model_dump(mode="json")
    return yaml.dump(values, Dumper=_YamlDumper, sort_keys=False, allow_unicode=True, width=120)


def run(main: Callable[[], object]) -> None:
    """Call a job's `main`; an expected failure leaves one line on stderr and an exit code, never a traceback.

    Exit codes: 2 for a `ConfigError`, 1 for any other `ScpoError`, 130 for an interrupt.
    """
    try:
        main()
    except ScpoError as error:
        cause = getattr(error, "cause", error)  # Ray re-raises a worker's error with its remote traceback as the text
        print("scpo_ray: error: " + str(cause).replace("\n", "\\n"), file=sys.stderr)  # one line, whatever a name holds
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:
        print("scpo_ray: interrupted; the same command resumes after the last finished step", file=sys.stderr)
        sys.exit(130)


def _read_command_line(argv: Sequence[str], description: str | None) -> dict[str, Any]:
    """What the arguments set, nested by section; defaults are absent."""
    try:
        source = CliSettingsSource[ArgumentParser](
            _CommandLine,
            cli_exit_on_error=False,
            cli_avoid_json=True,
            cli_parse_none_str="null",
            cli_hide_none_type=True,
            cli_use_class_docs_for_groups=True,
            parse_args_method=_parse_args,
            formatter_class=_HelpFormatter,
        )
        source.root_parser.usage = USAGE
        source.root_parser.description = (description or Config.__doc__ or "").strip()
        source.root_parser.epilog = VALUES_HELP
        return source(args=list(argv))()
    except SettingsError as error:
        if isinstance(error.__cause__, json.JSONDecodeError):
            raise ConfigError(f"{error.__cause__.doc}: not valid JSON: {error.__cause__}") from None
        message = str(error).removeprefix("error parsing CLI: argument ").removeprefix("Parsing error encountered for ")
        raise ConfigError(message) from None


def _parse_args(parser: ArgumentParser, argv: list[str]) -> Namespace:
    """Parse, naming the nearest key of an unknown one, which argparse would only list."""
    parsed, unknown = parser.parse_known_args(argv)
    if unknown:
        option = unknown[0].split("=")[0]
        if not option.startswith("--"):
            raise ConfigError(f"{unknown[0]}: unexpected argument; settings are --KEY VALUE, a file is --config FILE")
        raise ConfigError(
            f"{option}: {_unknown_key(option.removeprefix('--'), known=_fields(_CommandLine), dashes='--')}"
        )
    fields = _fields(_CommandLine)
    for key, texts in vars(parsed).items():
        if isinstance(texts, list) and len(texts) == 1 and _is_whole_value(fields[key], texts[0]):
            setattr(parsed, key, texts[0])
    return parsed


def _is_whole_value(field: FieldInfo, text: str) -> bool:
    """Whether the text alone is the value of a field that also takes lists, as `null` or `all-linear` are.

    pydantic-settings reads every value of such a field as a list of one.
    """
    with suppress(ValidationError):
        TypeAdapter(field.rebuild_annotation()).validate_python(text)
        return True
    return text == "null"


def _read_yaml(config_file: str) -> dict[str, Any]:
    """What the file states, nested by section; keys and values are still unchecked."""
    path = Path(config_file).expanduser()
    if path.is_dir():
        raise ConfigError(f"{config_file}: is a folder; --config takes a YAML file")
    if not path.is_file():
        raise ConfigError(f"{config_file}: no such file, seen from {Path.cwd()}; --config takes a YAML file")
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        refuse_repeated_keys(root, config_file)
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{config_file}: holds no keys; write `section:` lines with `key: value` lines below")
        return YamlConfigSettingsSource(_CommandLine, yaml_file=path)()
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{config_file}{line}: not valid YAML: {error.problem}; correct that line") from None
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ConfigError(f"{config_file}: cannot be read as YAML: {' '.join(str(error).split())}") from None


def refuse_repeated_keys(node: yaml.Node | None, config_file: str, above: tuple[yaml.Node, ...] = ()) -> None:
    """YAML readers keep the last of two equal keys, which would drop the first setting without a word.

    Raises:
        ConfigError: a key is given twice in one mapping, or a mapping contains itself.
    """
    if not isinstance(node, yaml.MappingNode):
        return
    if node in above:
        raise ConfigError(f"{config_file}:{node.start_mark.line + 1}: a section that contains itself; remove the alias")
    keys = [key.value for key, _ in node.value]
    for index, (key, value) in enumerate(node.value):
        if key.value in keys[:index]:
            line = key.start_mark.line + 1
            raise ConfigError(f"{config_file}:{line}: {key.value} is given a second time; merge the two")
        refuse_repeated_keys(value, config_file, (*above, node))


def _override(stated: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`stated` with the values of `given` on top, section by section."""
    merged = dict(stated)
    for key, value in given.items():
        below = stated.get(key)
        merged[key] = _override(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _explain(error: ValidationError, *, given: dict[str, Any], stated: dict[str, Any], config_file: str | None) -> str:
    """One line for the first wrong key: the file if the value comes from there, the key, the value, what is allowed."""
    fields = _fields(Config)
    details = error.errors(include_url=False)
    first = details[0]
    path = first["loc"]
    is_unknown = first["type"] in ("extra_forbidden", "invalid_key")
    while path and not is_unknown and _dotted(path) not in fields:
        path = path[:-1]  # a position in a list, or which member of a union refused
    key = _dotted(path)
    of_user = first["loc"][len(path) : len(path) + 1]  # a key of a mapping that the user names, as in tune.space
    if not is_unknown and path in _NAMED_BY_USER and of_user:
        key = f"{key}.{of_user[0]}"
    place = [str(config_file)] if _holds(stated, path) and not _holds(given, path) else []
    if is_unknown:
        if path[:2] == _SPACE:
            fields = _fields(SearchRange, prefix=f"{_dotted(path[:-1])}.")
        return ": ".join([*place, key, _unknown_key(key, known=fields)])
    branches = [
        detail
        for detail in details
        if detail["loc"][: len(path)] == path and repr(detail["input"]) == repr(first["input"])
    ]
    first_reason, *others = dict.fromkeys(map(_reason, branches))
    reasons = " or ".join([first_reason, *(other.removeprefix("Input should be ") for other in others)])
    value = [] if isinstance(first["input"], dict) else [_show(first["input"])]
    return ": ".join([*place, *([key] if key else []), *value, reasons])


def _reason(detail: ErrorDetails) -> str:
    if detail["type"] == "missing" and detail["loc"][:2] == _SPACE:
        return "give the lowest and the highest value"
    if detail["type"] == "model_type" and detail["loc"][:2] == _SPACE:
        return "Input should be a range, e.g. {uniform: [0.5, 0.95]} or {choice: [0.6, 0.7]}"
    if detail["type"] == "model_type":
        return "Input should be a section; indent its keys below it, or remove it"
    return detail["msg"].removeprefix("Value error, ")


def _show(value: object) -> str:
    is_plain = isinstance(value, str) and value and value.isprintable()
    shown = str(value) if is_plain else json.dumps(value, ensure_ascii=False, default=str)
    shown = re.sub(r"([?&]\w*(?:key|secret|token)\w*=)[^&\s]*", r"\1...", shown, flags=re.IGNORECASE)
    return re.sub(r"://\S*@", "://...@", shown)  # a user or a key, which no address may hold


def _unknown_key(key: str, *, known: dict[str, FieldInfo], dashes: str = "") -> str:
    candidates = [candidate for candidate in known if not key.startswith(f"{candidate}.")]  # its own section is no help
    nearest = difflib.get_close_matches(key, candidates, n=1)
    return f"unknown key; did you mean {dashes}{nearest[0]}?" if nearest else "unknown key; --help lists all keys"


def _fields(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Dotted key to field, for sections and settings."""
    fields: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        fields[prefix + name] = field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            fields |= _fields(field.annotation, f"{prefix}{name}.")
    return fields


def _dotted(path: tuple[int | str, ...]) -> str:
    return ".".join(map(str, path))


def _holds(values: object, path: tuple[int | str, ...]) -> bool:
    for part in path:
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True
