"""Streams of the OpenAI SDK: chat completions and responses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from celery_streams.chat.adapters.tools import ToolCalls, finish, growing
from celery_streams.errors import ModelFailed

_REASONS = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content-filter",
    "tool_calls": "tool-calls",
    "function_call": "tool-calls",
}


class CompletionConverter:
    """``chat.completions.create(stream=True)``, and the events of ``.stream()``."""

    def __init__(self) -> None:
        self._calls = ToolCalls()

    def feed(self, item: Any) -> Iterable[dict[str, Any]]:
        """The chunks of a ``ChatCompletionChunk``."""
        if getattr(item, "type", None) == "chunk":
            item = item.chunk  # .stream() wraps them, and tells each piece a second time
        for choice in getattr(item, "choices", None) or ():
            if choice.index == 0:
                yield from self._delta(choice.delta)
                yield from self._end(choice.finish_reason)

    def end(self) -> Iterable[dict[str, Any]]:
        """Calls that the model has not finished by a reason."""
        return self._calls.finish_all()

    def _delta(self, delta: Any) -> Iterator[dict[str, Any]]:
        # Compatible servers' own field, which the SDK keeps as it comes.
        reasoning = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
        if isinstance(reasoning, str):
            yield from growing("reasoning", reasoning)
        yield from growing("text", delta.content)
        yield from growing("text", delta.refusal)
        for call in delta.tool_calls or ():
            function = call.function
            if call.index not in self._calls:
                yield from self._calls.start(call.index, call.id, function.name)
            yield from self._calls.grow(call.index, (function and function.arguments) or "")

    def _end(self, reason: str | None) -> Iterator[dict[str, Any]]:
        if reason is not None:
            yield from self._calls.finish_all()
            yield from finish(reason, _REASONS)


class ResponseConverter:
    """``responses.create(stream=True)``, and the events of ``responses.stream()``."""

    def __init__(self) -> None:
        self._calls = ToolCalls()

    def feed(self, item: Any) -> Iterable[dict[str, Any]]:
        """The chunks of a ``ResponseStreamEvent``. Raises :class:`ModelFailed` for a failure."""
        match item.type:
            case "response.output_text.delta" | "response.refusal.delta":
                yield from growing("text", item.delta)
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
                yield from growing("reasoning", item.delta)
            case "response.output_text.annotation.added":
                yield from _source(item.annotation)
            case "response.output_item.added" if item.item.type == "function_call":
                yield from self._calls.start(item.output_index, item.item.call_id, item.item.name)
            case "response.function_call_arguments.delta" if item.output_index in self._calls:
                yield from self._calls.grow(item.output_index, item.delta)
            case "response.function_call_arguments.done" if item.output_index in self._calls:
                yield from self._calls.finish(item.output_index)
            case "response.completed":
                yield from finish("stop", _REASONS)
            case "response.incomplete":
                yield from finish("length", _REASONS)
            case "response.failed":
                error = item.response.error
                raise _failed(error and error.message, error and error.code)
            case "error":
                raise _failed(item.message, item.code)

    def end(self) -> Iterable[dict[str, Any]]:
        """Calls that were broken off."""
        return self._calls.finish_all()


def _failed(message: str | None, code: str | None) -> ModelFailed:
    return ModelFailed(f"the model has failed: {message or 'it gave no reason'}", code=code)


def _source(annotation: Any) -> Iterator[dict[str, Any]]:
    values = annotation if isinstance(annotation, dict) else annotation.model_dump()
    if values.get("type") == "url_citation":
        url = values["url"]
        part = {"type": "source-url", "sourceId": url, "url": url}
        yield {**part, "title": values["title"]} if values.get("title") else part
