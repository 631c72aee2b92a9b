"""``self.chat.response``: the answer of the turn that is running."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterable, Callable, Iterable
from contextlib import AsyncExitStack, ExitStack
from typing import Any

from celery_streams.chat.chunks import parse_chunk
from celery_streams.chat.halves import Halves
from celery_streams.chat.message import ResponseMessage
from celery_streams.chat.requests import Message, new_id
from celery_streams.chat.stopping import Stopping
from celery_streams.errors import InvalidChunk, StopRequested

#: Kinds of parts that go on from one chunk to the next.
_GROWING = ("text", "reasoning")


class ChatResponse:
    """The answer, as chunks of the AI SDK's UI message stream. Thread-safe.

    Its beginning and its end are written for the task. Parts go to the browser and, except for
    transient ones, into the response message, which is part of the history afterwards.
    """

    def __init__(
        self,
        send: Callable[[Any], None],
        message: ResponseMessage,
        *,
        fold_steps: bool = True,
        stopping: Stopping | None = None,
        raise_on_stop: bool = False,
    ) -> None:
        self._send = send
        self._message = message
        self._fold = fold_steps
        self._folded = False
        self._lock = threading.RLock()
        self._halves = Halves()
        #: The id of the text or reasoning part that the convenience methods are writing.
        self._current: dict[str, str] = {}
        #: Whether the turn is to stop, and whether writing raises then.
        self.stopping = stopping or Stopping()
        self._raises = raise_on_stop
        self.finish_reason: str | None = None

    @property
    def message(self) -> Message:
        """The response message so far."""
        with self._lock:
            return self._message.message()

    def write(self, part: Any) -> None:
        """Queue one part: a chunk of the protocol (a dictionary or a model), or a text.

        Never a round trip. ``text-delta`` and ``reasoning-delta`` begin their part if nobody
        has. ``start``, ``finish`` and ``abort`` are the runtime's to write: of a ``finish`` the
        reason is kept, of all the metadata.

        Raises:
            InvalidChunk: the protocol has no such chunk.
            StopRequested: somebody has asked to stop, and the task has ``raise_on_stop``.
        """
        if isinstance(part, str):
            self.text(part)
            return
        self._raise_if_stopped()
        with self._lock:
            self._write(part)

    def text(self, text: str) -> None:
        """Add to the answer's text; what is not text begins a new text part."""
        self._grow("text", text)

    def reasoning(self, text: str) -> None:
        """Add to the reasoning, like :meth:`text`."""
        self._grow("reasoning", text)

    def text_stream(self, source: Iterable[str]) -> str:
        """Write each piece of text as it comes; returns the whole.

        Ends at the next piece if the turn is to stop, and closes the source.

        Raises:
            StopRequested: the same, if the task has ``raise_on_stop``.
        """
        pieces = []
        with ExitStack() as stack:
            items = iter(source)
            if close := getattr(items, "close", None):
                stack.callback(close)
            for piece in items:
                self._raise_if_stopped()
                if self.stopping.is_set():
                    break
                self.text(piece)
                pieces.append(piece)
        return "".join(pieces)

    async def atext_stream(self, source: AsyncIterable[str]) -> str:
        """:meth:`text_stream` for an async source; a stop ends it while it is waited for."""
        pieces = []
        async with self.stopping.cut_off(), AsyncExitStack() as stack:
            items = aiter(source)
            if close := getattr(items, "aclose", None):
                stack.push_async_callback(close)
            async for piece in items:
                if self.stopping.is_set():
                    break
                self.text(piece)
                pieces.append(piece)
        self._raise_if_stopped()
        return "".join(pieces)

    def tool_input(self, name: str, value: Any, *, call_id: str | None = None, **more: Any) -> str:
        """A tool is called with ``value``; returns the call's id, for :meth:`tool_output`."""
        call_id = call_id or new_id("call")
        self.write(
            {"type": "tool-input-available", "toolCallId": call_id, "toolName": name,
             "input": value, **more}
        )  # fmt: skip
        return call_id

    def tool_output(
        self,
        call_id: str,
        value: Any = None,
        *,
        error: str | None = None,
        preliminary: bool = False,
    ) -> None:
        """What a tool call has returned, or its ``error``; ``preliminary``: more is to come."""
        if error is not None:
            self.write({"type": "tool-output-error", "toolCallId": call_id, "errorText": error})
            return
        part = {"type": "tool-output-available", "toolCallId": call_id, "output": value}
        self.write({**part, "preliminary": True} if preliminary else part)

    def source(self, url: str, title: str | None = None, *, source_id: str | None = None) -> None:
        """A page that the answer refers to."""
        part = {"type": "source-url", "sourceId": source_id or new_id("source"), "url": url}
        self.write({**part, "title": title} if title is not None else part)

    def file(self, url: str, media_type: str) -> None:
        """A file of the answer, by its URL (``data:`` URLs included)."""
        self.write({"type": "file", "url": url, "mediaType": media_type})

    def data(
        self, name: str, value: Any, *, transient: bool = False, part_id: str | None = None
    ) -> None:
        """A value of your own, ``data-<name>``; the same ``part_id`` replaces the former value.

        ``transient`` ones reach the page's ``onData`` and are not part of the message.
        """
        part = {"type": f"data-{name}", "data": value}
        if part_id is not None:
            part["id"] = part_id
        self.write({**part, "transient": True} if transient else part)

    def metadata(self, value: dict[str, Any]) -> None:
        """Merge into the message's metadata."""
        self.write({"type": "message-metadata", "messageMetadata": value})

    def error(self, text: str) -> None:
        """Tell the page of an error: ``useChat`` shows it and reads no further."""
        self.write({"type": "error", "errorText": text})

    # For the turn

    def end_parts(self) -> None:
        """End what is still open."""
        with self._lock:
            for kind, part_id in self._message.open_parts:
                self._put({"type": f"{kind}-end", "id": part_id})
            self._current.clear()

    def last_chunks(self) -> list[dict[str, Any]]:
        """What goes before the answer's end, and in one step with it: whoever takes over from a
        worker that has died in between could not take back what lies before this step."""
        with self._lock:
            message = self._message
            if not self._folded or not message.has_calls or message.has_open_calls:
                return []
            # Else useChat may take the tools that ran here for tools of the page. It takes notice
            # of a step at the next chunk that changes the message.
            return [{"type": "start-step"}, {"type": "start", "messageId": message.id}]

    def put(self, chunk: dict[str, Any]) -> None:
        """Write a chunk of the runtime's own, also after a request to stop."""
        with self._lock:
            self._put(chunk)

    def note(self, chunk: dict[str, Any]) -> None:
        """Take a chunk that is in the stream already into the message."""
        with self._lock:
            self._message.add(chunk)

    def _raise_if_stopped(self) -> None:
        if self._raises and self.stopping.is_set():
            raise StopRequested("somebody has asked this turn to stop")

    def _grow(self, kind: str, text: str) -> None:
        if not text:
            return
        if not isinstance(text, str):
            raise InvalidChunk(f"{kind} is a string, not {type(text).__name__}")
        self._raise_if_stopped()
        with self._lock:
            part_id = self._current.get(kind)
            if part_id is None:
                self._end_current()
                part_id = self._current[kind] = new_id("part")
                self._put({"type": f"{kind}-start", "id": part_id})
            self._put({"type": f"{kind}-delta", "id": part_id, "delta": text})

    def _end_current(self) -> None:
        while self._current:
            kind, part_id = self._current.popitem()
            if self._message.is_open(kind, part_id):
                self._put({"type": f"{kind}-end", "id": part_id})

    def _write(self, part: Any) -> None:
        kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
        name, _, event = str(kind).rpartition("-")
        if name in _GROWING and event == "delta" and isinstance(part, dict) and "id" not in part:
            part = {"delta": None, **part, "id": ""}
            self._grow(name, parse_chunk(part)["delta"])
            return
        chunk = parse_chunk(part)
        if self._is_the_runtimes(chunk):
            return
        if name in _GROWING and event in ("delta", "end"):
            if not self._message.is_open(name, chunk["id"]):
                self._put({"type": f"{name}-start", "id": chunk["id"]})
        elif not chunk.get("transient") and kind != "message-metadata":
            self._end_current()
        self._put(chunk)

    def _is_the_runtimes(self, chunk: dict[str, Any]) -> bool:
        match chunk["type"]:
            case "start" | "finish" | "abort":
                self.finish_reason = chunk.get("finishReason", self.finish_reason)
                if chunk.get("messageMetadata") is not None:
                    self._put(
                        {"type": "message-metadata", "messageMetadata": chunk["messageMetadata"]}
                    )
                return True
            case "start-step":
                self._end_current()
                if self._message.is_step_empty:
                    return True  # the runtime has begun it
                if self._fold:
                    self._message.add(chunk)
                    self._folded = True
                    return True
        return False

    def _put(self, chunk: dict[str, Any]) -> None:
        for each in self._halves.joined(chunk):
            self._send(each)
            self._message.add(each)
