"""The run's headline as a table for the terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from scpo_ray.reporting.numbers import count, percent, percent_interval, points, points_interval
from scpo_ray.reporting.results import ModelResult

CAPTION = (
    "Accuracies in %, gains in percentage points with 95% intervals. Kept: of training / test pairs; the global model "
    "never trains on test pairs here. — : fewer than two annotators (or prompts)."
)
_COLUMNS = (
    "Community",
    "Model",
    "Test pairs",
    "Anno-tators",
    "Kept train/test",
    "Overall global → trained",
    "Gain",
    "Acqui-sition",
    "Reten-tion",
    "Majority",
    "Majority gain",
)


def headline_table(results: Sequence[ModelResult], *, title: str) -> Table:
    """One line per trained model. Names are shown as they are, never read as markup."""
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, caption=CAPTION, caption_justify="left", pad_edge=False)
    for number, name in enumerate(_COLUMNS):
        table.add_column(name.replace("-", ""), justify="left" if number < 2 else "right", overflow="fold")
    previous = None
    for result in results:
        if previous not in (None, result.community):
            table.add_section()
        table.add_row(*(Text(cell) for cell in headline_cells(result, repeats=result.community == previous)))
        previous = result.community
    return table


def headline_cells(result: ModelResult, *, repeats: bool = False) -> list[str]:
    """The line's texts, in the order of the columns; `repeats` leaves the community's name out."""
    overall, gain, majority_gain = result.of("overall"), result.of("overall_gain"), result.of("majority_gain")
    units = "" if result.cluster_unit == "annotators" else f" {result.cluster_unit}"
    return [
        "" if repeats else result.community,
        result.label,
        count(overall.num_pairs),
        f"{count(overall.num_clusters)}{units}",
        "—" if result.kept is None else f"{_short(result.kept.train_share)}/{_short(result.kept.test_share)}",
        f"{_bare(result.before('overall').value)} → {_bare(overall.value)}",
        f"{points(gain.value)} {points_interval(gain, separator=',')}",
        f"{_bare(result.of('acquisition').value)} {percent_interval(result.of('acquisition'), separator=',')}",
        f"{_bare(result.of('retention').value)} {percent_interval(result.of('retention'), separator=',')}",
        _bare(result.of("majority").value),
        f"{points(majority_gain.value)} {points_interval(majority_gain, separator=',')}",
    ]


def _bare(share: float) -> str:
    return percent(share).removesuffix("%")


def _short(share: float | None) -> str:
    return "—" if share is None else f"{100 * share:.0f}%"
