"""What the command line prints, and what it lets through to a terminal."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import click

#: Characters of a progress bar.
_BAR = 40
#: C0 and C1 controls, except for a tab and the end of a line: what a terminal acts upon.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def harmless(text: str) -> str:
    """The text with its control characters shown (as in JSON), so that no terminal obeys them.

    Whoever may write to a stream could otherwise change the title, move the cursor over what was
    printed before, or have the terminal answer.
    """
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("\r\n", "\n"))


def shown(text: str, *, err: bool = False) -> str:
    """The text as it is, but harmless if standard output (or error) is a terminal."""
    return harmless(text) if (sys.stderr if err else sys.stdout).isatty() else text


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text that somebody else may have written, as :func:`shown`."""
    click.echo(shown(text, err=err), err=err, nl=nl)


class Printer:
    """Chunks on standard output: text as it is, the rest as JSON on lines of its own.

    Bytes are written as they are into a file or a pipe, and as text to a terminal.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._in_line = False
        self._terminal = sys.stdout.isatty()
        self._bars = not as_json and self._terminal

    def __call__(self, chunk: Any) -> None:
        """Print one chunk, at once."""
        if isinstance(chunk, bytes) and not self._as_json:
            self.end_line()
            if self._terminal:
                self._text(chunk.decode(errors="backslashreplace"))
                return
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        elif isinstance(chunk, str) and not self._as_json:
            self._text(chunk)
        elif self._bars and (bar := _bar(chunk)):
            click.echo(f"\r\x1b[K{bar}", nl=False)
            self._in_line = True
        else:
            self.end_line()
            say(json.dumps(chunk, ensure_ascii=False, default=_bytes_as_text))

    def end_line(self) -> None:
        """What comes next starts a line."""
        if self._in_line:
            click.echo()
            self._in_line = False

    def _text(self, text: str) -> None:
        say(text, nl=False)
        if text:
            self._in_line = not text.endswith("\n")


def _bar(chunk: Any) -> str | None:
    """A chunk that says how far something is, ``{"done": 3, "total": 7}``, as a progress bar."""
    if not isinstance(chunk, dict):
        return None
    done, total = chunk.get("done"), chunk.get("total", chunk.get("of"))
    if not isinstance(done, (int, float)) or not isinstance(total, (int, float)) or total <= 0:
        return None
    filled = round(_BAR * min(max(done / total, 0.0), 1.0))
    return f"[{'#' * filled}{'.' * (_BAR - filled)}] {done}/{total}"


def _bytes_as_text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
