"""The picture: every case as a row of dots on a logarithmic scale, and how a run grows."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cases import RUNS
from measure import Figure

STYLES = {  # colour; marker, so that they can be told apart without it; place in the row
    "C": ("#222222", "|", 0.0),
    "uring": ("#d1410c", "o", 0.0),
    "liburing": ("#1f6fb2", "s", -0.3),
    "uring-api": ("#7a4fa3", "D", 0.34),
    "Python": ("#3f8f3f", "^", 0.18),
}
Rows = Mapping[str, Mapping[str, Figure]]


def draw(path: Path, rows: Rows, caption: str) -> bool:
    """Draw the picture; False when matplotlib is not installed."""
    pyplot = plotter()
    if pyplot is None:
        return False
    growth = {task.title: rows[task.title] for task in RUNS if task.title in rows}
    others = {title: found for title, found in rows.items() if title not in growth}
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(12, 8), width_ratios=[3, 1], layout="constrained"
    )
    draw_cases(left, others)
    draw_growth(right, growth)
    save(pyplot, figure, path, caption)
    return True


def plotter() -> Any:
    """Import matplotlib.pyplot, to draw into files; None when it is not installed."""
    try:  # after the measurement, which thousands of further objects would slow
        matplotlib: Any = importlib.import_module("matplotlib")
    except ModuleNotFoundError:
        return None
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def save(pyplot: Any, figure: Any, path: Path, caption: str) -> None:
    """Write a figure down, with a caption that says where it was measured."""
    figure.supxlabel(caption, fontsize=7, color="#555555", x=0.01, ha="left")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_cases(axes: Any, rows: Rows) -> None:
    """Draw a row for each case: each library's median, and a line from its minimum to maximum."""
    named: set[str] = set()
    for place, found in enumerate(rows.values()):
        axes.axhspan(place - 0.5, place + 0.5, color="#f5f5f5" if place % 2 else "white", zorder=0)
        for name, figure in found.items():
            colour, marker, shift = STYLES[name]
            size, edge = (15, 2.5) if name == "C" else (7, 0.5)
            axes.hlines(place + shift, figure.min, figure.max, color=colour, alpha=0.4, linewidth=1)
            axes.plot(
                *(figure.median, place + shift, marker),
                color=colour,
                markersize=size,
                markeredgewidth=edge,
                label=None if name in named else name,
            )
            named.add(name)
        text = {"fontsize": 8, "color": STYLES["uring"][0], "va": "center"}
        edge_of_row = axes.get_yaxis_transform()
        axes.text(1, place, f"{found['uring'].median:,.0f}", transform=edge_of_row, **text)
    axes.text(1, -0.75, "uring", transform=edge_of_row, **text)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", which="major", color="#d0d0d0", linewidth=0.6)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_title("ns per operation, median and range; smaller is better", fontsize=9)
    axes.legend(loc="upper right", fontsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def draw_growth(axes: Any, rows: Rows) -> None:
    """Draw the cost of an operation over the number of operations in one run."""
    counts = [task.operations for task in RUNS if task.title in rows]
    for name in ("C", "uring"):
        medians = [found[name].median for found in rows.values()]
        axes.plot(counts, medians, marker="o", color=STYLES[name][0], label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(counts, [str(count) for count in counts], fontsize=7)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter("{x:,.0f}")
    axes.tick_params(axis="y", which="both", labelsize=7)
    axes.set_title("the same for run(Batch) of n NOPs", fontsize=9)
    axes.set_xlabel("n", fontsize=8)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.legend(fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
