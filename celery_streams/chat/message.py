"""Chunks to a message, as the AI SDK's ``processUIMessageStream`` does it. No I/O."""

from __future__ import annotations

import copy
from typing import Any

from pydantic_core import from_json

from celery_streams.chat.requests import Message

Part = dict[str, Any]

#: What a finished tool call looks like.
_DONE = ("output-available", "output-error", "output-denied")
_TEXTS = ("text", "reasoning")
#: Chunks that are parts, and the members of theirs that a part has.
_WHOLE = {
    "source-url": ("type", "sourceId", "url", "title", "providerMetadata"),
    "source-document": (
        "type", "sourceId", "mediaType", "title", "filename", "providerMetadata"
    ),
    "file": ("type", "mediaType", "url", "providerMetadata"),
    "reasoning-file": ("type", "mediaType", "url", "providerMetadata"),
    "custom": ("type", "kind", "providerMetadata"),
    "steering-message": ("type", "id", "parts"),
}  # fmt: skip
#: What merging objects leaves out, as the AI SDK does.
_NEVER_MERGED = ("__proto__", "constructor", "prototype")


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
        self._inputs: dict[str, list[str]] = {
            part["toolCallId"]: [part.get("rawInput", "")]
            for part in self._step()
            if part.get("state") == "input-streaming"
        }

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
        elif kind in _WHOLE:
            self._parts.append({key: chunk[key] for key in _WHOLE[kind] if key in chunk})
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
        for call_id in self._inputs:
            self._join_input(call_id)

    def _join_input(self, call_id: str) -> None:
        call, pieces = self._call(call_id), self._inputs.get(call_id)
        if call is not None and pieces and call["state"] == "input-streaming":
            text = "".join(pieces)
            pieces[:] = [text]
            call["rawInput"] = text
            call["input"] = text if call.get("inputEncoding") == "text" else _partial(text)

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
            if kind == "text" and chunk.get("citations") is not None:
                part["citations"] = chunk["citations"]
            del self._open[key]

    def _tool(self, kind: str, chunk: Part) -> None:
        if kind == "tool-approval-response":
            self._respond(chunk)
            return
        call_id = chunk["toolCallId"]
        if kind == "tool-input-delta":
            if call_id in self._inputs:
                self._inputs[call_id].append(chunk["inputTextDelta"])
            return
        part = self._called(kind, chunk) if "toolName" in chunk else self._call(call_id)
        if part is None:
            return
        if kind == "tool-input-start":
            self._inputs[call_id] = []
        else:
            self._join_input(call_id)
            self._inputs.pop(call_id, None)
        _PROGRESS[kind](part, chunk)

    def _called(self, kind: str, chunk: Part) -> Part:
        """The call of a chunk that names its tool: in the current step, or begun with it."""
        dynamic = bool(chunk.get("dynamic"))
        for part in self._step():
            if part.get("toolCallId") != chunk["toolCallId"]:
                continue
            if kind == "tool-input-error" or dynamic == (part["type"] == "dynamic-tool"):
                if part["type"] == "dynamic-tool":
                    part["toolName"] = chunk["toolName"]
                else:
                    part["type"] = f"tool-{chunk['toolName']}"
                return part
        part = {"type": f"tool-{chunk['toolName']}", "toolCallId": chunk["toolCallId"]}
        if dynamic:
            part = {**part, "type": "dynamic-tool", "toolName": chunk["toolName"]}
        self._parts.append(part)
        return part

    def _step(self) -> list[Part]:
        """The parts of the current step."""
        for place in reversed(range(len(self._parts))):
            if self._parts[place]["type"] == "step-start":
                return self._parts[place + 1 :]
        return self._parts

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
                if chunk.get("providerExecuted") is not None:
                    part["providerExecuted"] = chunk["providerExecuted"]
                if chunk.get("providerMetadata") is not None:
                    part["callProviderMetadata"] = chunk["providerMetadata"]
                return

    def _data(self, chunk: Part) -> None:
        if chunk.get("transient"):
            return
        if chunk.get("id") is not None:
            for part in self._parts:
                if part["type"] == chunk["type"] and part.get("id") == chunk["id"]:
                    part["data"] = chunk["data"]
                    return
        self._parts.append(dict(chunk))

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


def _now(part: Part, chunk: Part, **values: Any) -> None:
    """What a call is now; of what it was before only what describes it stays."""
    for member in ("output", "errorText", "rawInput", "inputEncoding", "preliminary"):
        part.pop(member, None)
    for key in ("title", "toolMetadata", "providerExecuted"):
        if chunk.get(key) is not None and (key != "title" or chunk["type"] in _TITLED):
            part[key] = chunk[key]
    done = values["state"] in ("output-available", "output-error")
    if chunk.get("providerMetadata") is not None:
        part["resultProviderMetadata" if done else "callProviderMetadata"] = chunk[
            "providerMetadata"
        ]
    part.update(values)


def _start(part: Part, chunk: Part) -> None:
    part.pop("input", None)
    _now(part, chunk, state="input-streaming")
    if chunk.get("inputEncoding") is not None:
        part["inputEncoding"] = chunk["inputEncoding"]


def _available(part: Part, chunk: Part) -> None:
    _now(part, chunk, state="input-available", input=chunk["input"])


def _bad_input(part: Part, chunk: Part) -> None:
    _now(part, chunk, state="output-error", input=chunk["input"], errorText=chunk["errorText"])


def _ask(part: Part, chunk: Part) -> None:
    approval = {"id": chunk["approvalId"]}
    named = (("descriptor", "approvalDescriptor"), ("requestReason", "reason"))
    approval.update({key: chunk[its] for key, its in named if chunk.get(its) is not None})
    if "inputSchemaInput" in chunk:
        approval["inputSchemaInput"] = chunk["inputSchemaInput"]
    if chunk.get("isAutomatic"):
        approval["isAutomatic"] = True
    if chunk.get("signature") is not None:
        approval["signature"] = chunk["signature"]
    part.update(state="approval-requested", approval=approval)


def _output(part: Part, chunk: Part) -> None:
    _now(part, chunk, state="output-available", output=chunk["output"])
    if chunk.get("preliminary") is not None:
        part["preliminary"] = chunk["preliminary"]


def _failure(part: Part, chunk: Part) -> None:
    raw = part.get("rawInput")
    _now(part, chunk, state="output-error", errorText=chunk["errorText"])
    if raw is not None:
        part["rawInput"] = raw


def _denial(part: Part, chunk: Part) -> None:
    part["state"] = "output-denied"


#: Chunks whose title the AI SDK takes notice of.
_TITLED = ("tool-input-start", "tool-input-available")
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
        if key in _NEVER_MERGED:
            continue
        known = merged.get(key)
        both = isinstance(known, dict) and isinstance(value, dict)
        merged[key] = _merged(known, value) if both else value  # type: ignore[arg-type]
    return merged
