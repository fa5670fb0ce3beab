"""Several ways of doing the same work, in turn: A B C, A B C, ...; medians, spreads, and a table for docs/performance.md."""

import contextlib
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "ray", "deepspeed", "trl")


@dataclass(frozen=True)
class Measured:
    """One way in one round."""

    amount: float
    """Of work that was done: tokens, pairs."""
    seconds: float

    @property
    def rate(self) -> float:
        """Work per second."""
        return self.amount / self.seconds


@dataclass
class Comparison:
    """All rounds of all ways; the first way is the one that the others are compared with."""

    title: str
    command: str
    unit: str
    workload: str
    rounds: dict[str, list[Measured]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    """Way -> what else is to be said of it."""
    flops: float = 0.0
    """Of the model, for a unit of work without padding and without computing anything twice."""
    peaks: dict[str, float] = field(default_factory=dict)
    """Precision -> FLOPs per second of this machine's dense matrix products."""

    def run(self, ways: Mapping[str, Callable[[], Measured]], number: int, *, keep: Path | None = None) -> None:
        """Measure all ways in turn, `number` times; says each figure as it comes.

        Args:
            keep: written after each round, so that nothing is lost where a later one breaks off.
        """
        for _ in range(number):
            for name, way in ways.items():
                self.add({name: way()})
            if keep is not None:
                self.write(keep)

    def add(self, found: Mapping[str, Measured]) -> None:
        """What was measured of one way, or of several, in one more round; said as it comes."""
        for name, one in found.items():
            rounds = self.rounds.setdefault(name, [])
            rounds.append(one)
            print(f"{len(rounds)} {name}: {one.rate:.1f} {self.unit}/s", file=sys.stderr, flush=True)

    def table(self) -> str:
        """Markdown. A ratio is the median of the rounds' ratios, with the smallest and the largest."""
        lines = [
            f"| way | {self.unit}/s | beside {next(iter(self.rounds))} | of the peak | |",
            "|---|---|---|---|---|",
        ]
        first = next(iter(self.rounds.values()))
        for name, found in self.rounds.items():
            ratios = [own.rate / other.rate for own, other in zip(found, first, strict=True)]
            spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if found is not first else ""
            rate = statistics.median(one.rate for one in found)
            digits = 0 if rate >= 100 else 1 if rate >= 10 else 2
            lines.append(
                f"| {name} | {rate:,.{digits}f} | {statistics.median(ratios):.2f}{spread} | "
                f"{self._share(name, rate)} | {self.notes.get(name, '')} |"
            )
        return "\n".join(lines)

    def _share(self, way: str, rate: float) -> str:
        """Model FLOPs utilisation: of the peak of the way's precision."""
        peak = self.peaks.get("bfloat16" if "bfloat16" in way else "float32")
        return f"{rate * self.flops / peak:.0%}" if peak and self.flops else ""

    def write(self, place: Path) -> None:
        """All figures, and where they were made, as JSON."""
        place.write_text(json.dumps(asdict(self) | circumstances(), indent=1) + "\n")


def circumstances() -> dict[str, Any]:
    """When, on what machine, and with what code a figure is made."""
    date = datetime.now(UTC).date().isoformat()
    return {"date": date, "machine": machine(), "versions": versions(), "commit": commit()}


def commit() -> str:
    """Of this code, with a + where files differ from it; empty outside a repository."""
    say = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--dirty=+"]
    return subprocess.run(say, capture_output=True, text=True, check=False).stdout.strip()


def machine() -> str:
    """The processor and its cores."""
    described = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    known = dict(line.split(":", 1) for line in described.splitlines() if ":" in line)
    about = {name.strip(): value.strip() for name, value in known.items()}
    has = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in about.get("Flags", "").split()]
    kind = f"family {about.get('CPU family', '?')} model {about.get('Model', '?')}"  # names may hide the generation
    return f"{about.get('CPU(s)', '?')} cores of {about.get('Model name', platform.processor())}, {kind} ({', '.join(has)})"


def versions() -> dict[str, str]:
    """Of the packages that matter here."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def page(files: Sequence[Path]) -> str:
    """The generated part of docs/performance.md."""
    parts = []
    for file in files:
        known = json.loads(file.read_text())
        comparison = Comparison(known["title"], known["command"], known["unit"], known["workload"])
        comparison.notes = known["notes"]
        comparison.flops, comparison.peaks = known.get("flops", 0.0), known.get("peaks", {})
        comparison.rounds = {name: [Measured(**one) for one in found] for name, found in known["rounds"].items()}
        number = len(next(iter(comparison.rounds.values())))
        made = ", ".join(f"{name} {found}" for name, found in known["versions"].items())
        parts.append(
            f"### {comparison.title}\n\n{comparison.workload}\n\n    {comparison.command}\n\n{comparison.table()}\n\n"
            f"Medians of {number} rounds in turn; {known['date']}{_at(known)}, {known['machine']}; {made}."
        )
    return "\n\n".join(parts)


def _at(known: Mapping[str, Any]) -> str:
    """The commit, where it is known."""
    return f", commit {known['commit']}" if known.get("commit") else ""
