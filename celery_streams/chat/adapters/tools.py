"""Tool calls that a model writes piece by piece, as chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

from celery_streams.chat.halves import paired


class ToolCalls:
    """The calls of one answer, by whatever key the library tells them apart."""

    def __init__(self) -> None:
        self._calls: dict[Any, tuple[str, str, list[str]]] = {}

    def __contains__(self, key: Any) -> bool:
        return key in self._calls

    def start(self, key: Any, call_id: str, name: str) -> Iterator[dict[str, Any]]:
        """The model begins to call a tool."""
        if key not in self._calls:
            self._calls[key] = (call_id, name, [])
            yield {"type": "tool-input-start", "toolCallId": call_id, "toolName": name}

    def grow(self, key: Any, text: str) -> Iterator[dict[str, Any]]:
        """More of the call's arguments, JSON."""
        call_id, _, pieces = self._calls[key]
        if text:
            pieces.append(text)
            yield {"type": "tool-input-delta", "toolCallId": call_id, "inputTextDelta": text}

    def finish(self, key: Any) -> Iterator[dict[str, Any]]:
        """The call is complete."""
        call_id, name, pieces = self._calls.pop(key)
        text = paired("".join(pieces))
        call = {"toolCallId": call_id, "toolName": name}
        try:
            value = from_json(text) if text.strip() else {}
        except ValueError as error:
            bad = {"type": "tool-input-error", **call, "input": text}
            yield {**bad, "errorText": f"the arguments are not JSON: {error}"}
            return
        yield {"type": "tool-input-available", **call, "input": value}

    def finish_all(self) -> Iterator[dict[str, Any]]:
        """The answer is complete, and so are its calls."""
        for key in list(self._calls):
            yield from self.finish(key)


def finish(reason: str | None, names: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The finish reason, in the protocol's words."""
    if reason is not None:
        yield {"type": "finish", "finishReason": names.get(reason, "other")}


def growing(kind: str, text: str | None) -> Iterator[dict[str, Any]]:
    """More text, or more reasoning."""
    if text:
        yield {"type": f"{kind}-delta", "delta": text}
