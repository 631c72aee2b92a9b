"""Streams of the Anthropic SDK."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from celery_streams.chat.adapters.tools import ToolCalls, finish, growing

_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool-calls",
    "refusal": "content-filter",
}


class MessageConverter:
    """``messages.create(stream=True)``, and the events of ``messages.stream()``.

    The latter tell every piece twice, as the server sent it and prepared; the first counts.
    """

    def __init__(self) -> None:
        self._calls = ToolCalls()

    def feed(self, item: Any) -> Iterable[dict[str, Any]]:
        """The chunks of an event."""
        match item.type:
            case "content_block_start" if item.content_block.type in ("tool_use", "text"):
                block = item.content_block
                if block.type == "text":
                    yield from growing("text", block.text)
                else:
                    yield from self._calls.start(item.index, block.id, block.name)
            case "content_block_delta":
                yield from self._delta(item.index, item.delta)
            case "content_block_stop" if item.index in self._calls:
                yield from self._calls.finish(item.index)
            case "message_delta":
                yield from finish(item.delta.stop_reason, _REASONS)

    def end(self) -> Iterable[dict[str, Any]]:
        """Calls that were broken off."""
        return self._calls.finish_all()

    def _delta(self, index: int, delta: Any) -> Iterator[dict[str, Any]]:
        match delta.type:
            case "text_delta":
                yield from growing("text", delta.text)
            case "thinking_delta":
                yield from growing("reasoning", delta.thinking)
            case "input_json_delta" if index in self._calls:
                yield from self._calls.grow(index, delta.partial_json)
            case "citations_delta" if url := getattr(delta.citation, "url", None):
                part = {"type": "source-url", "sourceId": url, "url": url}
                title = getattr(delta.citation, "title", None)
                yield {**part, "title": title} if title else part
