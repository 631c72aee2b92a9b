"""Characters that a model's server cuts in two: the halves of a surrogate pair, in two deltas."""

from __future__ import annotations

from typing import Any

#: The members that go on from one chunk to the next, and what tells whose they are.
_GROWING = {
    "text-delta": ("delta", "id"),
    "reasoning-delta": ("delta", "id"),
    "tool-input-delta": ("inputTextDelta", "toolCallId"),
}
#: Chunks that end them.
_ENDS = {"text-end": "text-delta", "reasoning-end": "reasoning-delta"}


def paired(text: str) -> str:
    """The text with its surrogate pairs joined; U+FFFD for a half without the other."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Halves:
    """Holds back a first half until the second comes."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], str] = {}

    def joined(self, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        """The chunks to write in place of this one."""
        kind = chunk["type"]
        if (growing := _ENDS.get(kind)) and (growing, chunk["id"]) in self._held:
            lost = self._held.pop((growing, chunk["id"]))
            return [{"type": growing, "id": chunk["id"], "delta": paired(lost)}, chunk]
        if kind not in _GROWING:
            return [chunk]
        member, name = _GROWING[kind]
        text, key = chunk[member], (kind, chunk[name])
        if self._held:
            text = self._held.pop(key, "") + text
        if text.isascii():
            return [chunk]
        if "\ud800" <= text[-1] <= "\udbff":
            self._held[key] = text[-1]
            text = text[:-1]
        return [{**chunk, member: paired(text)}] if text else []
