"""How the demo looks: panels that follow streams, and the table at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from example_project.audit import Row

_WIDEST = 110
_LINES = 12  #: of an answer, that are shown
_AROUND = 240  #: characters, where two parts of an answer meet
STYLES = ("cyan", "magenta")


def make_console() -> Console:
    """A console no wider than is pleasant to read; plain where there is no terminal."""
    console = Console(highlight=False)
    return Console(highlight=False, width=min(console.width, _WIDEST))


class Window:
    """A few lines of something long: its last ones while it grows, its first once it is whole."""

    def __init__(self, content: RenderableType, *, whole: bool, lines: int = _LINES) -> None:
        self._content = content
        self._whole = whole
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render all of it, and give the part."""
        rendered = console.render_lines(self._content, options, pad=False)
        blank = [not "".join(part.text for part in line).strip() for line in rendered]
        while blank and blank[-1]:
            blank.pop(), rendered.pop()
        most = min(self._lines, max(4, console.height - 9))
        if len(rendered) <= most:
            lines = rendered
        elif self._whole:
            lines = [*rendered[: most - 1], [Segment("...", Style(dim=True))]]
        else:
            lines = rendered[-most:]
        for line in lines:
            yield from line
            yield Segment.line()


def progress(chunk: Any) -> RenderableType:
    """A progress chunk ``{"done": n, "of": m}`` as a bar."""
    done, of = (chunk["done"], chunk["of"]) if chunk else (0, 1)
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", min_width=9)
    grid.add_row(
        ProgressBar(total=of, completed=done, complete_style="green", finished_style="green"),
        f"{done}/{of}" if chunk else "",
    )
    return grid


def answer(
    title: str, chunks: Sequence[str], progressed: Sequence[Any], *, whole: bool
) -> RenderableType:
    """An answer as it comes, rendered, and its progress stream under it."""
    last = progressed[-1] if progressed else None
    text = Markdown("".join(chunks), code_theme="ansi_light")
    return _panel(title, Group(Window(text, whole=whole), progress(last)))


def spans(title: str, parts: Sequence[tuple[str, Sequence[str]]], *, whole: bool) -> RenderableType:
    """An answer whose parts came in different ways: each under its own name and colour.

    While it grows, its end is shown; once it is whole, the places where its parts meet.
    """
    text = Text()
    for number, (name, chunks) in enumerate(parts):
        style = STYLES[number % len(STYLES)]
        text.append(f"[{name}]", f"bold reverse {style}")
        piece = " ".join("".join(chunks).split())
        if whole and number == 0 and len(piece) > _AROUND:
            piece = "..." + piece[-_AROUND:]
        elif whole and number and len(piece) > _AROUND:
            piece = piece[:_AROUND] + "..."
        text.append(f" {piece} ", style)
    return _panel(title, Window(text, whole=False, lines=9))


def chat(
    title: str, turns: Sequence[tuple[str, str]], kinds: str, *, whole: bool
) -> RenderableType:
    """A conversation: who said what, and of which parts it consists."""
    rows: list[RenderableType] = []
    for number, (question, text) in enumerate(turns):
        rows.append(Text(f"> {question}", "bold cyan"))
        finished = whole or number < len(turns) - 1
        rows.append(Window(Markdown(text or "..."), whole=finished, lines=6))
    return _panel(title, Group(*rows, Text(kinds, "dim")))


def several(title: str, runs: Sequence[tuple[str, int, Any]]) -> RenderableType:
    """Runs beside each other: name, tokens so far, progress."""
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    for name, _, last in runs:
        grid.add_row(name, progress(last))
    return _panel(title, grid)


def results(rows: Sequence[Row], total: Row) -> Table:
    """The table at the end."""
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, show_footer=True)
    table.add_column("", footer=Text("total", "bold"), ratio=1, no_wrap=True)
    columns = ("streams", "chunks", "initializes", "lost", "duplicated")
    for name in columns:
        value = getattr(total, name)
        table.add_column(name, justify="right", footer=_number(name, value, total))
    for row in rows:
        table.add_row(row.act, *(_number(name, getattr(row, name), row) for name in columns))
    return table


def _number(name: str, value: int, row: Row) -> Text:
    bad = (name in ("lost", "duplicated") and value) or (name == "initializes" and not row.once)
    good = name in ("initializes", "lost", "duplicated")
    return Text(str(value), "bold red" if bad else "green" if good else "")


def _panel(title: str, content: RenderableType) -> Panel:
    return Panel(
        content,
        title=Text(f" {title} ", "dim"),
        title_align="left",
        border_style="dim",
        box=box.ROUNDED,
        padding=(0, 1),
    )


@contextmanager
def live(console: Console, view: Callable[[], RenderableType]) -> Iterator[None]:
    """Show what ``view`` returns, over and over; the last picture stays."""
    with Live(get_renderable=view, console=console, refresh_per_second=15) as shown:
        yield
        shown.refresh()
    if not console.is_terminal:
        console.print()  # a picture that is printed once is not ended by itself
