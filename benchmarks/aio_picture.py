"""The picture: thousands of reads per second, a bar for each who can do it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import picture
from aio_cases import TO_THREAD
from measure import Figure

OURS, THREADS, OTHERS = "#d1410c", "#3f8f3f", "#1f6fb2"
Rates = Mapping[str, Mapping[str, Figure]]


def draw(path: Path, rates: Rates, caption: str) -> bool:
    """Draw the picture; False when matplotlib is not installed."""
    pyplot = picture.plotter()
    if pyplot is None:
        return False
    names = list(dict.fromkeys([name for found in rates.values() for name in found]))
    figure, panels = pyplot.subplots(
        1, len(rates), figsize=(12, 4.2), sharey=True, layout="constrained", squeeze=False
    )
    for axes, (title, found) in zip(panels[0], rates.items(), strict=True):
        draw_panel(axes, title, names, found)
    panels[0][0].set_yticks(range(len(names)), names, fontsize=8)
    panels[0][0].set_ylim(len(names) - 0.5, -0.5)
    figure.suptitle("thousands per second, 64 in flight: median and range", fontsize=9)
    picture.save(pyplot, figure, path, caption)
    return True


def draw_panel(axes: Any, title: str, names: list[str], found: Mapping[str, Figure]) -> None:
    """Draw one task."""
    for place, name in enumerate(names):
        figure = found.get(name)
        if figure is None:
            axes.text(0, place, " cannot", va="center", fontsize=8, color="#888888")
            continue
        axes.barh(place, figure.median, color=colour_of(name), height=0.7)
        axes.hlines(place, figure.min, figure.max, color="#222222", linewidth=1)
        text = f" {figure.median:,.0f}"
        axes.text(max(figure.max, figure.median), place, text, va="center", fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.set_xlim(0, 1.15 * max(figure.max for figure in found.values()))
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def colour_of(name: str) -> str:
    """Return the colour of a bar: ours, threads that come with the loop, other packages."""
    if name.startswith(("ring.", "uring.aio.")):
        return OURS
    return THREADS if name.startswith((TO_THREAD, "trio.to_thread")) else OTHERS
