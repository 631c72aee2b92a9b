"""Chunks to a message, as the AI SDK's ``processUIMessageStream`` does it. No I/O."""

from __future__ import annotations

import copy
from typing import Any

from pydantic_core import from_json

from celery_streams.chat.requests import Message

Part = dict[str, Any]

#: What a finished tool call looks like.
_DONE = ("output-available", "output-error", "output-denied")
_TEXTS = {"text": "text", "reasoning": "reasoning"}


class ResponseMessage:
    """The response message as it grows.

    ``before``: the parts of a message that is continued.
    """

    def __init__(self, message_id: str, before: Message | None = None) -> None:
        self.id = message_id
        before = copy.deepcopy(before) if before else {}
        self.metadata: Any = before.get("metadata")
        self._parts: list[Part] = before.get("parts", [])
        #: Open text and reasoning parts by (kind, id), and their text so far: joined when asked
        #: for, since adding to a long string copies it.
        self._open: dict[tuple[str, str], tuple[Part, list[str]]] = {}
        self._inputs: dict[str, list[str]] = {}

    def add(self, chunk: Part) -> None:
        """Take one chunk, on the wire's form."""
        kind: str = chunk["type"]
        name, _, event = kind.rpartition("-")
        if name in _TEXTS and event in ("start", "delta", "end"):
            self._text(name, event, chunk)
        elif kind.startswith("tool-"):
            self._tool(kind, chunk)
        elif kind.startswith("data-"):
            self._data(chunk)
        elif kind in ("source-url", "source-document", "file", "reasoning-file", "custom"):
            self._parts.append(dict(chunk))
        elif kind == "start-step":
            self._parts.append({"type": "step-start"})
        elif kind == "reset-step":
            self._reset()
        elif kind in ("start", "finish", "message-metadata"):
            self._describe(chunk.get("messageMetadata"))

    def is_open(self, kind: str, part_id: str) -> bool:
        """Whether a text or reasoning part has begun and not ended."""
        return (kind, part_id) in self._open

    @property
    def open_parts(self) -> list[tuple[str, str]]:
        """Text and reasoning parts that have not ended: kind and id."""
        return list(self._open)

    @property
    def is_step_empty(self) -> bool:
        """Whether nothing follows the last step's start."""
        return bool(self._parts) and self._parts[-1]["type"] == "step-start"

    @property
    def has_open_calls(self) -> bool:
        """Whether a tool call waits for the page: for its output, or its approval."""
        return any("toolCallId" in part and part["state"] not in _DONE for part in self._parts)

    @property
    def has_calls(self) -> bool:
        """Whether there are tool calls."""
        return any("toolCallId" in part for part in self._parts)

    def message(self) -> Message:
        """The message now; later chunks do not change what this returns."""
        self._join()
        message: Message = {"id": self.id, "role": "assistant", "parts": copy.deepcopy(self._parts)}
        if self.metadata is not None:
            message["metadata"] = copy.deepcopy(self.metadata)
        return message

    def _join(self) -> None:
        for part, pieces in self._open.values():
            part["text"] = "".join(pieces)
            pieces[:] = [part["text"]]
        for call_id, pieces in self._inputs.items():
            call = self._call(call_id)
            if call is not None and call["state"] == "input-streaming":
                call["input"] = _partial("".join(pieces))

    def _text(self, kind: str, event: str, chunk: Part) -> None:
        key = (kind, chunk["id"])
        if event == "start":
            part: Part = {"type": kind, "text": "", "state": "streaming"}
            if kind == "reasoning":
                part["id"] = chunk["id"]
            self._parts.append(part)
            self._open[key] = (part, [])
        elif key not in self._open:
            return
        part, pieces = self._open[key]
        if event == "delta":
            pieces.append(chunk["delta"])
        if (metadata := chunk.get("providerMetadata")) is not None:
            part["providerMetadata"] = metadata
        if event == "end":
            part["text"], part["state"] = "".join(pieces), "done"
            del self._open[key]

    def _tool(self, kind: str, chunk: Part) -> None:
        if kind == "tool-approval-response":
            self._respond(chunk)
            return
        call_id = chunk["toolCallId"]
        if kind == "tool-input-delta":
            self._inputs.setdefault(call_id, []).append(chunk["inputTextDelta"])
            return
        part = self._call(call_id)
        if part is None:
            if "toolName" not in chunk:
                return
            part = {"type": f"tool-{chunk['toolName']}", "toolCallId": call_id}
            if chunk.get("dynamic"):
                part = {"toolName": chunk["toolName"], **part, "type": "dynamic-tool"}
            self._parts.append(part)
        _PROGRESS[kind](part, chunk)
        for member in ("title", "toolMetadata", "providerExecuted"):
            if chunk.get(member) is not None:
                part[member] = chunk[member]
        if chunk.get("providerMetadata") is not None:
            done = kind in ("tool-output-available", "tool-output-error", "tool-input-error")
            part["resultProviderMetadata" if done else "callProviderMetadata"] = chunk[
                "providerMetadata"
            ]
        if kind != "tool-input-start":
            self._inputs.pop(call_id, None)

    def _call(self, call_id: str) -> Part | None:
        for part in reversed(self._parts):
            if part.get("toolCallId") == call_id:
                return part
        return None

    def _respond(self, chunk: Part) -> None:
        for part in self._parts:
            approval = part.get("approval")
            if isinstance(approval, dict) and approval.get("id") == chunk["approvalId"]:
                part["state"] = "approval-responded"
                part["approval"] = {**approval, "approved": chunk["approved"]}
                if chunk.get("reason") is not None:
                    part["approval"]["reason"] = chunk["reason"]

    def _data(self, chunk: Part) -> None:
        if chunk.get("transient"):
            return
        if chunk.get("id") is not None:
            for part in self._parts:
                if part["type"] == chunk["type"] and part.get("id") == chunk["id"]:
                    part["data"] = chunk["data"]
                    return
        self._parts.append({key: value for key, value in chunk.items() if key != "transient"})

    def _reset(self) -> None:
        self._join()  # what earlier steps have begun stays as it is
        while self._parts and self._parts[-1]["type"] != "step-start":
            self._parts.pop()
        self._open.clear()
        self._inputs.clear()

    def _describe(self, metadata: Any) -> None:
        if metadata is None:
            return
        if isinstance(self.metadata, dict) and isinstance(metadata, dict):
            metadata = _merged(self.metadata, metadata)
        self.metadata = metadata


def _start(part: Part, chunk: Part) -> None:
    part["state"] = "input-streaming"


def _available(part: Part, chunk: Part) -> None:
    part.update(state="input-available", input=chunk["input"])


def _bad_input(part: Part, chunk: Part) -> None:
    part.update(state="output-error", errorText=chunk["errorText"])
    part["input"] = chunk["input"]


def _ask(part: Part, chunk: Part) -> None:
    approval = {"id": chunk["approvalId"]}
    approval.update({key: chunk[key] for key in ("isAutomatic", "signature") if chunk.get(key)})
    part.update(state="approval-requested", approval=approval)


def _output(part: Part, chunk: Part) -> None:
    part.update(state="output-available", output=chunk["output"])
    part.pop("preliminary", None)
    if chunk.get("preliminary"):
        part["preliminary"] = True


def _failure(part: Part, chunk: Part) -> None:
    part.update(state="output-error", errorText=chunk["errorText"])


def _denial(part: Part, chunk: Part) -> None:
    part["state"] = "output-denied"


_PROGRESS = {
    "tool-input-start": _start,
    "tool-input-available": _available,
    "tool-input-error": _bad_input,
    "tool-approval-request": _ask,
    "tool-output-available": _output,
    "tool-output-error": _failure,
    "tool-output-denied": _denial,
}


def _partial(text: str) -> Any:
    try:
        return from_json(text, allow_partial="trailing-strings")
    except ValueError:
        return None


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        known = merged.get(key)
        both = isinstance(known, dict) and isinstance(value, dict)
        merged[key] = _merged(known, value) if both else value  # type: ignore[arg-type]
    return merged
