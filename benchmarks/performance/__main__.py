"""Write what was measured into docs/performance.md.

python -m benchmarks.performance [FILE ...]      # new figures, kept in docs/results/performance from now on
"""

import shutil
import sys
from pathlib import Path

from benchmarks.performance.rounds import page

_DOCS = Path(__file__).parents[2] / "docs"
_BEGIN, _END = "<!-- measured: python -m benchmarks.performance -->", "<!-- end of what was measured -->"


def main(*files: str) -> None:
    """Keep the files, write the part between the marks anew."""
    kept = _DOCS / "results/performance"
    kept.mkdir(exist_ok=True)
    for file in files:
        shutil.copy(file, kept)
    target = _DOCS / "performance.md"
    before, _, rest = target.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    target.write_text(f"{before}{_BEGIN}\n\n{page(sorted(kept.glob('*.json')))}\n\n{_END}{after}")


if __name__ == "__main__":
    main(*sys.argv[1:])
