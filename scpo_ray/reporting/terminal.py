"""The run's headline as a table for the terminal, readable in 80 columns."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from scpo_ray.core.bootstrap import Estimate
from scpo_ray.reporting.numbers import NONE, count, percent, points, points_interval
from scpo_ray.reporting.results import ModelResult

SHORT_LABELS = {
    "filter_weight": "SCPO (F+W)",
    "filter": "filter (F)",
    "weight": "weight (W)",
    "inverse_weight": "inverse W",
    "none": "full",
    "random": "random",
    "uncertainty": "uncertain",
    "keep_fraction": "SCPO + agr.",
    "other_ruler": "SCPO, ruler 2",
}
_CAPTION = (
    "Accuracy in %; in parentheses the gain over the global model in points, below it the 95% interval. Test pairs: in "
    "parentheses annotators, or prompts where there are none. Kept: % of train/test pairs. — : no such pairs, or of fewer "
    "than two annotators."
)
_COLUMNS = ("", "Test\npairs", "Kept\ntrain/\ntest", "Overall", "Acqui-\nsition", "Reten-\ntion", "Majority")


def headline_table(results: Sequence[ModelResult], *, title: str) -> Table:
    """Per community the global model and every trained one. Names are never read as markup."""
    table = Table(
        title=Text(title),
        title_justify="left",
        caption=Text(_CAPTION),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for number, name in enumerate(_COLUMNS):
        if number == 0:
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for result in results:
        if result.community != previous:
            if previous is not None:
                table.add_section()
            table.add_row(Text(result.community, style="bold"))
            table.add_row(*map(Text, _global_cells(result)))
        table.add_row(*map(Text, _trained_cells(result)))
        previous = result.community
    return table


def _global_cells(result: ModelResult) -> list[str]:
    overall = result.of("overall")
    size = f"{count(overall.num_pairs)} ({count(overall.num_clusters)})"
    accuracies = [_bare(result.before(metric)) for metric in ("overall", "acquisition", "retention", "majority")]
    return ["  global", size, "", *accuracies]


def _trained_cells(result: ModelResult) -> list[str]:
    shares = (None, None) if result.kept is None else (result.kept.train_share, result.kept.test_share)
    return [
        f"  {SHORT_LABELS.get(result.strategy, result.strategy)}",
        "",
        "/".join(NONE if share is None else f"{100 * share:.0f}" for share in shares),
        _with_gain(result.of("overall"), result.of("overall_gain")),
        _bare(result.of("acquisition")),
        _bare(result.of("retention")),
        _with_gain(result.of("majority"), result.of("majority_gain")),
    ]


def _with_gain(accuracy: Estimate, gain: Estimate) -> str:
    return f"{_bare(accuracy)} ({points(gain.value)})\n{points_interval(gain, separator=',')}"


def _bare(estimate: Estimate) -> str:
    return percent(estimate.value).removesuffix("%")
