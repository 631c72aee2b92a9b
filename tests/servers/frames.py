"""Find where commands and replies end in a stream of RESP bytes."""

from __future__ import annotations

from collections.abc import Iterator


class Frames:
    """Incremental; remembers at most one unfinished header line, never a payload."""

    def __init__(self) -> None:
        self._skip = 0
        self._open: list[int] = []
        self._line = b""

    def ends(self, data: bytes) -> Iterator[int]:
        """Positions in ``data`` right after each outermost frame that ends there."""
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                complete = not self._skip and self._element_ended()
            else:
                newline = data.find(b"\n", at)
                if newline < 0:
                    self._line += data[at:]
                    return
                line, self._line = self._line + data[at : newline + 1], b""
                at = newline + 1
                complete = self._is_whole(line) and self._element_ended()
            if complete:
                yield at

    def _is_whole(self, line: bytes) -> bool:
        """Whether the element that starts with ``line`` also ends with it."""
        match line[:1]:
            case b"*" | b"~" | b">" | b"%":
                elements = int(line[1:]) * (2 if line[:1] == b"%" else 1)
                if elements > 0:
                    self._open.append(elements)
                return elements <= 0
            case b"$" | b"=" | b"!":
                size = int(line[1:])
                self._skip = size + 2 if size >= 0 else 0
                return size < 0
        return True

    def _element_ended(self) -> bool:
        while self._open:
            self._open[-1] -= 1
            if self._open[-1]:
                return False
            self._open.pop()
        return True
