"""What a stage shows while it works."""

import io

from rich.console import Console

from scpo_ray import runtime


def test_names_are_shown_as_they_are_and_never_read_as_markup(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(runtime, "console", Console(file=shown, width=200))
    with runtime.progress_bar("train", unit="steps", run="/a/run") as bar:
        bar.update(1, 2, name="filter/[/x] land", note="[bold] loss 0.1")
        bar.update(2, 2, name="filter/[prefer not to say]")
    assert "filter/[/x] land" in shown.getvalue()
    assert "filter/[prefer not to say]" in shown.getvalue()
