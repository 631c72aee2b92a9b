"""What is measured (:class:`Figure`), and how it is shown: a table, and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_COLUMNS = ("figure", "value", "unit", "beside", "its value", "ratio", "budget", "")


@dataclass(frozen=True, slots=True)
class Budget:
    """The budget of a figure, and whether it is kept."""

    text: str
    met: bool


@dataclass(frozen=True, slots=True)
class Figure:
    """One median, beside the median of the alternative it is compared with."""

    name: str
    value: float
    unit: str
    baseline: str | None = None
    baseline_value: float | None = None
    budget: Budget | None = None

    @property
    def ratio(self) -> float | None:
        """The value over the alternative's."""
        return self.value / self.baseline_value if self.baseline_value else None


def at_most(value: float, limit: float, unit: str = "") -> Budget:
    """The budget "no more than ``limit``"."""
    return Budget(f"<= {limit:g} {unit}".rstrip(), value <= limit)


def at_least(value: float, limit: float, unit: str = "") -> Budget:
    """The budget "no less than ``limit``"."""
    return Budget(f">= {limit:g} {unit}".rstrip(), value >= limit)


def both(*budgets: Budget) -> Budget:
    """All of them."""
    return Budget(", ".join(each.text for each in budgets), all(each.met for each in budgets))


def show(figures: Sequence[Figure]) -> None:
    """Print the table: rich where it is installed, plain text otherwise."""
    rows = [_row(figure) for figure in figures]
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        _show_plainly(rows)
        return
    table = Table(box=box.SIMPLE)
    for column in _COLUMNS:
        numeric = column in ("value", "its value", "ratio")
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row, style="red" if row[-1] == "MISSED" else None)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def write_json(figures: Sequence[Figure], path: Path) -> None:
    """Write the figures for machines."""
    rows = [
        {
            "name": figure.name,
            "value": figure.value,
            "unit": figure.unit,
            "baseline": figure.baseline,
            "baseline_value": figure.baseline_value,
            "ratio": figure.ratio,
        }
        for figure in figures
    ]
    path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def _row(figure: Figure) -> tuple[str, ...]:
    ratio, budget = figure.ratio, figure.budget
    return (
        figure.name,
        _number(figure.value),
        figure.unit,
        figure.baseline or "",
        "" if figure.baseline_value is None else _number(figure.baseline_value),
        "" if ratio is None else f"{ratio:.3g}x",
        budget.text if budget else "",
        ("met" if budget.met else "MISSED") if budget else "",
    )


def _number(value: float) -> str:
    if value and abs(value) < 100:
        return f"{value:.3g}"
    return f"{value:,.0f}"


def _show_plainly(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    for row in (_COLUMNS, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
