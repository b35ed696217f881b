"""The legend that figures share: an entry per arm, and what the grey lines are."""

from collections.abc import Sequence

from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from bench.analysis.frames import BASELINE, Tables
from bench.analysis.stats import LEVEL
from bench.report.figures.base import GREY, is_crowded, looks

SCRATCH = f"{BASELINE} (band: {100 * LEVEL:.0f} %)"  # what its line and band are called
LONGEST_NAME = 60  # characters
WIDTH_CHARACTERS = 110  # of a page, at a legend's size
ROW_IN = 0.16


def legend(canvas: Canvas, tables: Tables, *extra: Line2D) -> None:
    """One legend for all panels, above them."""
    named = {(arm.strategy if is_crowded(tables) else arm.label): look for arm, look in looks(tables).items()}
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.dash, label=_cut(name))
        for name, look in named.items()
    ]
    if any(arm.strategy == BASELINE for arm in tables.conditions):
        handles.append(grey_line("--", SCRATCH))
    handles += [grey_line(":", "chance"), *extra]
    place_legend(canvas, handles, most_columns=len(handles))


def place_legend(canvas: Canvas, handles: Sequence[Line2D], most_columns: int) -> None:
    """Above all panels, in as many columns as a page's width holds; taller where that takes more rows."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(most_columns, WIDTH_CHARACTERS // (longest + 8)))
    n_rows = -(-len(handles) // columns)
    canvas.set_figheight(canvas.get_figheight() + ROW_IN * max(0, n_rows - 2))  # two have their place
    canvas.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=3)


def grey_line(dash: str, label: str) -> Line2D:
    """The entry of a reference, which is drawn thinner than an arm."""
    return Line2D([], [], color=GREY, linestyle=dash, linewidth=1, label=label)


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
