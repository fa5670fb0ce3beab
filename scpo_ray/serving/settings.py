"""From `serve run`'s arguments and a deployment's YAML to settings; refused in one line. Imports no model library."""

from collections.abc import Mapping

from pydantic import ValidationError

from scpo_ray.config.serving import ServeConfig
from scpo_ray.errors import ConfigError


def settings_of(arguments: Mapping[str, object]) -> ServeConfig:
    """Settings from `KEY=VALUE` texts or YAML values.

    Raises:
        ConfigError: one is unknown or not legal.
    """
    try:
        return ServeConfig.model_validate(dict(arguments))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "serve"
        known = f"; settings are {', '.join(ServeConfig.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise ConfigError(f"{place}: {first['msg'].removeprefix('Value error, ')}{known}") from None
