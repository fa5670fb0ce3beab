"""Templates of self-contained pages: texts from data are always escaped, nothing is loaded from elsewhere."""

from pathlib import PurePosixPath

from jinja2 import Environment, PackageLoader, StrictUndefined

from scpo_ray.reporting import numbers
from scpo_ray.reporting.evidence import interval_of
from scpo_ray.reporting.results import strategy_label
from scpo_ray.reporting.summary import verdict


def environment() -> Environment:
    """With every number format as a filter of its name."""
    made = Environment(
        loader=PackageLoader("scpo_ray.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formatters = (numbers.percent, numbers.points, numbers.percent_interval, numbers.points_interval, numbers.plain)
    made.filters |= {
        function.__name__: function
        for function in (
            *formatters,
            numbers.p_value,
            numbers.significant,
            numbers.count,
            numbers.duration,
            strategy_label,
            verdict,
        )
    }
    made.filters["file_name"] = lambda address: PurePosixPath(address).name
    made.filters["row_interval"] = lambda row: numbers.points_interval(interval_of(row))
    return made
