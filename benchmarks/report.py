"""Telling what was measured: on the terminal, in results.json, in README.md and its picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import machine
import picture
from cases import LIBRARIES, PEERS, Case
from measure import Figure, Figures

BEGIN, END = "<!-- results: written by run.py -->", "<!-- end of results -->"
PREAD = "read64/pread"  # the other way of plain Python
DASH = "-"


@dataclass(frozen=True)
class Verdict:
    """A bar, and how uring stands to it."""

    against: str
    bar: float
    ratio: float

    @property
    def is_met(self) -> bool:
        """Whether the ratio, as it is printed, is no larger than the bar."""
        return round(self.ratio, 2) <= self.bar

    def __str__(self) -> str:
        met = "met" if self.is_met else "**missed**"
        return f"{self.against} {self.ratio:.2f}, bar {self.bar:.2f}: {met}"


def row(case: Case, figures: Figures) -> dict[str, Figure]:
    """Return the figures of a case by library; who cannot do it is not in it."""
    keys = {name: case.key if name == "uring" else case.task.name for name in LIBRARIES}
    return {name: figures[name, key] for name, key in keys.items() if (name, key) in figures}


def ratio(found: Mapping[str, Figure], other: str) -> float | None:
    """Return the ratio of uring's median to another's."""
    return found["uring"].median / found[other].median if other in found else None


def best_peer(found: Mapping[str, Figure]) -> str:
    """Return the peer with the smallest median; "" when none can do it."""
    peers = [name for name in PEERS if name in found]
    return min(peers, key=lambda name: found[name].median, default="")


def verdicts(case: Case, found: Mapping[str, Figure]) -> list[Verdict]:
    """Compare with the case's bars."""
    ratios = {name: ratio(found, name) for name in case.bars}
    return [Verdict(n, case.bars[n], r) for n, r in ratios.items() if r is not None]


# ---- the terminal ----


def show(cases: Sequence[Case], figures: Figures, place: Mapping[str, str]) -> None:
    """Print all figures: medians with minimum and maximum, ratios, and the bars."""
    print(machine.sentence(place))
    print("ns per operation: median (minimum-maximum)")
    for case in cases:
        found = row(case, figures)
        print(f"\n{case.title}")
        for name, figure in found.items():
            print(f"  {name:12}{shown(figure)}{ratios_shown(found) if name == 'uring' else ''}")
        if case.task.name == "read64":
            print(f"  {'os.pread':12}{shown(figures['Python', PREAD])}")
        for verdict in verdicts(case, found):
            print(f"  to {str(verdict).replace('*', '')}")


def shown(figure: Figure) -> str:
    """Put a figure into words."""
    spread = f"({figure.min:,.0f}-{figure.max:,.0f})"
    return f"{figure.median:>12,.0f}  {spread:22}"


def ratios_shown(found: Mapping[str, Figure]) -> str:
    """Put uring's ratios into words."""
    others = [name for name in ("C", best_peer(found)) if name in found]
    return "".join([f"  {ratio(found, name):.2f} of {name}" for name in others])


# ---- files ----


def write(
    folder: Path,
    cases: Sequence[Case],
    figures: Figures,
    place: Mapping[str, str],
    *,
    rounds: int,
) -> None:
    """Refresh results.json, results.png and the table in README.md."""
    rows = {case.title: row(case, figures) for case in cases}
    recorded = {
        "machine": place,
        "rounds": rounds,
        "unit": "ns per operation",
        "cases": [
            {
                "case": case.title,
                "figures": {name: asdict(figure) for name, figure in rows[case.title].items()},
                "bars": [
                    {**asdict(verdict), "met": verdict.is_met}
                    for verdict in verdicts(case, rows[case.title])
                ],
            }
            for case in cases
        ],
        "os.pread": asdict(figures["Python", PREAD]),
    }
    path = folder / "results.json"
    path.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    drawn = picture.draw(folder / "results.png", rows, machine.sentence(place))
    body = table(cases, figures, place, rounds=rounds, has_picture=drawn)
    refresh(folder / "README.md", BEGIN, body)


def refresh(path: Path, begin: str, body: str) -> None:
    """Replace what stands in a text between a line that begins the results and their end."""
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{begin}\n\n{body}\n\n{END}{after}", encoding="utf-8")


def table(
    cases: Sequence[Case],
    figures: Figures,
    place: Mapping[str, str],
    *,
    rounds: int,
    has_picture: bool,
) -> str:
    """Return the README's part: where, the picture, the table."""
    pread = figures["Python", PREAD].median
    columns = ["case", *LIBRARIES, "to C", "to best peer", "bar"]
    lines = [
        f"{machine.sentence(place)}.",
        f"Medians of {rounds} rounds, ns per operation; ratios are uring's to the other's.",
        "",
        *(["![nanoseconds per operation, case by case](results.png)", ""] if has_picture else []),
        f"| {' | '.join(columns)} |",
        f"|---|{'--:|' * (len(columns) - 2)}---|",
        *(cells(case, row(case, figures)) for case in cases),
        "",
        f"`os.pread`, which makes new bytes, takes {pread:,.0f} ns for 4 KiB in the page cache.",
    ]
    return "\n".join(lines)


def cells(case: Case, found: Mapping[str, Figure]) -> str:
    """Return one row of the README's table."""
    medians = [f"{found[name].median:,.0f}" if name in found else DASH for name in LIBRARIES]
    ratios = [ratio(found, name) for name in ("C", best_peer(found))]
    shown_ratios = [DASH if each is None else f"{each:.2f}" for each in ratios]
    bars = "<br>".join(str(verdict) for verdict in verdicts(case, found)) or DASH
    return f"| {' | '.join([case.title, *medians, *shown_ratios, bars])} |"
