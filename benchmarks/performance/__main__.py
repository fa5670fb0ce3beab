"""Write what was measured into docs/performance.md.

python -m benchmarks.performance [FILE ...]      # new figures, kept in docs/results/performance from now on
"""

import json
import shutil
import sys
from pathlib import Path

from benchmarks.performance import aims
from benchmarks.performance.rounds import page

_DOCS = Path(__file__).parents[2] / "docs"
_AIMS = "<!-- aims: python -m benchmarks.performance -->", "<!-- end of the aims -->"
_MEASURED = "<!-- measured: python -m benchmarks.performance -->", "<!-- end of what was measured -->"


def main(*files: str) -> None:
    """Keep the files, write the parts between the marks anew."""
    place = _DOCS / "results/performance"
    place.mkdir(exist_ok=True)
    for file in map(Path, files):
        if file.resolve().parent != place.resolve():
            shutil.copy(file, place)
    kept = sorted(place.glob("*.json"))
    target = _DOCS / "performance.md"
    text = replaced(target.read_text(), _AIMS, aims.table({path.stem: rates(path) for path in kept}))
    target.write_text(replaced(text, _MEASURED, page(kept)))


def rates(path: Path) -> aims.Rounds:
    """Of a kept comparison."""
    rounds = json.loads(path.read_text())["rounds"]
    return {way: [one["amount"] / one["seconds"] for one in found] for way, found in rounds.items()}


def replaced(text: str, marks: tuple[str, str], part: str) -> str:
    """With the part between the marks."""
    before, _, rest = text.partition(marks[0])
    _, found, after = rest.partition(marks[1])
    assert found, f"docs/performance.md: no {marks[0]} ... {marks[1]}"
    return f"{before}{marks[0]}\n\n{part}\n\n{marks[1]}{after}"


if __name__ == "__main__":
    main(*sys.argv[1:])
