"""Messages and events of LangChain and LangGraph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage

from celery_streams.chat.adapters.tools import ToolCalls, growing


class LangChainConverter:
    """``model.stream()``, ``graph.stream(stream_mode="messages")``, ``astream_events()``.

    Of events only those of models and tools are read, and of a graph's states nothing.
    """

    def __init__(self) -> None:
        self._calls = ToolCalls()
        self._message: str | None = None
        self._streamed: set[str] = set()

    def feed(self, item: Any) -> Iterable[dict[str, Any]]:
        """The chunks of a message, of a (message, metadata) or (mode, message) tuple, or event."""
        if isinstance(item, tuple):
            if isinstance(item[0], str):  # several stream modes
                if item[0] != "messages":
                    return
                item = item[1]
            item = item[0] if isinstance(item, tuple) else item
        if isinstance(item, dict):
            item = self._of_event(item)
        if isinstance(item, BaseMessage):
            yield from self._of_message(item)

    def end(self) -> Iterable[dict[str, Any]]:
        """Calls of the last message."""
        return self._calls.finish_all()

    def _of_event(self, event: dict[str, Any]) -> Any:
        match event.get("event"):
            case "on_chat_model_stream":
                return event["data"].get("chunk")
            case "on_tool_end":
                return event["data"].get("output")
        return None

    def _of_message(self, message: BaseMessage) -> Iterator[dict[str, Any]]:
        if message.id != self._message:
            yield from self._calls.finish_all()
            self._message = message.id
        if isinstance(message, ToolMessage):
            yield from _output(message)
        elif isinstance(message, AIMessageChunk):
            if message.id:
                self._streamed.add(message.id)
            yield from _content(message)
            for call in message.tool_call_chunks:
                key = (message.id, call["index"])
                if call["id"] and call["name"]:
                    yield from self._calls.start(key, call["id"], call["name"])
                if key in self._calls:
                    yield from self._calls.grow(key, call["args"] or "")
        elif isinstance(message, AIMessage) and message.id not in self._streamed:
            yield from _content(message)
            for whole in message.tool_calls:
                yield {
                    "type": "tool-input-available",
                    "toolCallId": whole["id"],
                    "toolName": whole["name"],
                    "input": whole["args"],
                }


def _content(message: BaseMessage) -> Iterator[dict[str, Any]]:
    content = message.content
    for block in [content] if isinstance(content, str) else content:
        if isinstance(block, str):
            yield from growing("text", block)
            continue
        match block.get("type"):
            case "text":
                yield from growing("text", block.get("text"))
            case "reasoning":
                yield from growing("reasoning", block.get("reasoning") or block.get("text"))
            case "thinking":
                yield from growing("reasoning", block.get("thinking"))
    extra = message.additional_kwargs.get("reasoning_content")
    if isinstance(extra, str):
        yield from growing("reasoning", extra)


def _output(message: ToolMessage) -> Iterator[dict[str, Any]]:
    call = {"toolCallId": message.tool_call_id}
    if message.status == "error":
        yield {"type": "tool-output-error", **call, "errorText": str(message.content)}
        return
    output = message.content if message.artifact is None else message.artifact
    yield {"type": "tool-output-available", **call, "output": output}
