"""What a stage shows while it works."""

import io

import pytest
import ray.exceptions
from rich.console import Console

from scpo_ray import runtime
from scpo_ray.errors import ClusterError


def test_names_are_shown_as_they_are_and_never_read_as_markup(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(runtime, "console", Console(file=shown, width=200))
    with runtime.progress_bar("train", unit="steps", run="/a/run") as bar:
        bar.update(1, 2, name="filter/[/x] land", note="[bold] loss 0.1")
        bar.update(2, 2, name="filter/[prefer not to say]")
    assert "filter/[/x] land" in shown.getvalue()
    assert "filter/[prefer not to say]" in shown.getvalue()


def test_what_ray_says_of_a_start_is_one_line():
    said = "The current node timed out during startup. This\ncould happen because"
    for error in (Exception(said), ConnectionError(said), ray.exceptions.AuthenticationError(said)):
        with (
            pytest.raises(ClusterError, match=r"^Ray here: .*; end it$") as raised,
            runtime._as_cluster_errors("Ray here", "end it"),
        ):
            raise error
        assert "\n" not in str(raised.value)
    with pytest.raises(KeyError), runtime._as_cluster_errors("Ray here", "end it"):
        raise KeyError("a mistake of our own")
