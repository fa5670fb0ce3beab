"""What every section of the configuration shares: immutability, closed keys, addresses, identity."""

import os
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

Fraction = Annotated[float, Field(ge=0, le=1)]

_KEY_IN_QUERY = r"[?&][\w.-]*(key|secret|token|password|passwd|credential|signature|\bsig)[\w.-]*="


def holds_key(address: str) -> bool:
    """Whether an address, or one in a list of them, names a user or a key before its host, or a key in its query.

    Secrets of AWS may hold slashes.
    """
    if re.search(_KEY_IN_QUERY, address, re.IGNORECASE):
        return True
    return re.search(r"""[a-zA-Z0-9+.-]+://([^/,\s"']*@|[^/,\s"']*:[^,\s"']*@)""", address) is not None


def _expand_variables(address: str) -> str:
    """Replace `${NAME}` by the environment's value; a variable that is not set is an error, never an empty string."""
    expanded = os.path.expandvars(address)
    missing = re.search(r"\$\{(\w+)\}", expanded)
    if missing:
        raise ValueError(f"the environment variable {missing[1]} is not set; set it, or give another path or hub name")
    if holds_key(expanded):
        raise ValueError(
            "holds a user or a key, which manifests and logs would show; set it in the environment (AWS_ACCESS_KEY_ID and the "
            "like), and leave it out here"
        )
    return expanded


Address = Annotated[str, AfterValidator(_expand_variables)]
"""A path, s3:// or gs:// address, or hub name; `${NAME}` takes a value from the environment."""


NOT_IDENTITY: dict[str, JsonValue] = {"identity": False}
"""Marks settings that change cost or place, not the result: an artifact made under another value still counts."""


def _absolute(address: str) -> str:
    """Workers have other working directories."""
    return address if "://" in address else os.path.abspath(os.path.expanduser(address))


SharedFolder = Annotated[Address, AfterValidator(_absolute)]
"""A folder that workers use as well; a relative path is taken from where the job is started."""


def _without_repeats(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
    repeated = [value for index, value in enumerate(values or ()) if value in (values or ())[:index]]
    if repeated:
        raise ValueError(f"{repeated[0]!r} is given twice; name it once")
    return values


Unique = AfterValidator(_without_repeats)
"""Refuses a list that names something twice: its rows or models would count double."""


class Section(BaseModel):
    """A part of the configuration: immutable, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, validate_default=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    def identity(self, prefix: str) -> dict[str, object]:
        """Dotted key -> value of every setting that the result depends on."""
        found: dict[str, object] = {}
        for name, info in type(self).model_fields.items():
            if info.json_schema_extra == NOT_IDENTITY:
                continue
            value = getattr(self, name)
            if isinstance(value, Section):
                found |= value.identity(f"{prefix}.{name}")
            else:
                found[f"{prefix}.{name}"] = list(value) if isinstance(value, tuple) else value
        return found
