"""Every chunk of the AI SDK's UI message stream (version 7), as a pydantic model.

The protocol is ``uiMessageChunkSchema`` of the npm package ``ai``. Members that a model does
not name are kept, as there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from celery_streams.errors import InvalidChunk

FinishReason = Literal[
    "stop", "length", "content-filter", "tool-calls", "error", "interrupted", "other"
]


class Chunk(BaseModel):
    """What all chunks have in common: names in camel case on the wire."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="allow", serialize_by_alias=True
    )


class _Described(Chunk):
    provider_metadata: dict[str, Any] | None = None


class TextStart(_Described):
    """A text part begins."""

    type: Literal["text-start"] = "text-start"
    id: str


class TextDelta(_Described):
    """More of a text part."""

    type: Literal["text-delta"] = "text-delta"
    id: str
    delta: str


class TextEnd(_Described):
    """A text part is complete."""

    type: Literal["text-end"] = "text-end"
    id: str
    citations: list[dict[str, Any]] | None = None


class ReasoningStart(_Described):
    """A reasoning part begins."""

    type: Literal["reasoning-start"] = "reasoning-start"
    id: str


class ReasoningDelta(_Described):
    """More of a reasoning part."""

    type: Literal["reasoning-delta"] = "reasoning-delta"
    id: str
    delta: str


class ReasoningEnd(_Described):
    """A reasoning part is complete."""

    type: Literal["reasoning-end"] = "reasoning-end"
    id: str


class _Tool(_Described):
    tool_call_id: str
    provider_executed: bool | None = None
    tool_metadata: dict[str, Any] | None = None
    dynamic: bool | None = None


class ToolInputStart(_Tool):
    """A tool call begins."""

    type: Literal["tool-input-start"] = "tool-input-start"
    tool_name: str
    input_encoding: Literal["json", "text"] | None = None
    title: str | None = None


class ToolInputDelta(Chunk):
    """More of a tool call's input: JSON text, unless its start says that it is plain text."""

    type: Literal["tool-input-delta"] = "tool-input-delta"
    tool_call_id: str
    input_text_delta: str


class ToolInputAvailable(_Tool):
    """A tool call's input is complete."""

    type: Literal["tool-input-available"] = "tool-input-available"
    tool_name: str
    input: Any
    title: str | None = None


class ToolInputError(_Tool):
    """A tool call's input is no good."""

    type: Literal["tool-input-error"] = "tool-input-error"
    tool_name: str
    input: Any
    error_text: str
    title: str | None = None


class ToolApprovalRequest(Chunk):
    """A tool call waits for somebody's approval."""

    type: Literal["tool-approval-request"] = "tool-approval-request"
    approval_id: str
    tool_call_id: str
    approval_descriptor: Any = None
    input_schema_input: Any = None
    reason: str | None = None
    is_automatic: bool | None = None
    signature: str | None = None


class ToolApprovalResponse(_Described):
    """Somebody has approved of a tool call, or has not."""

    type: Literal["tool-approval-response"] = "tool-approval-response"
    approval_id: str
    approved: bool
    reason: str | None = None
    provider_executed: bool | None = None


class ToolOutputAvailable(_Tool):
    """What a tool call has returned. ``preliminary``: more is to come."""

    type: Literal["tool-output-available"] = "tool-output-available"
    output: Any
    preliminary: bool | None = None


class ToolOutputError(_Tool):
    """A tool call has failed."""

    type: Literal["tool-output-error"] = "tool-output-error"
    error_text: str


class ToolOutputDenied(Chunk):
    """A tool call was not approved of."""

    type: Literal["tool-output-denied"] = "tool-output-denied"
    tool_call_id: str


class SourceUrl(_Described):
    """A page that the answer refers to."""

    type: Literal["source-url"] = "source-url"
    source_id: str
    url: str
    title: str | None = None


class SourceDocument(_Described):
    """A document that the answer refers to."""

    type: Literal["source-document"] = "source-document"
    source_id: str
    media_type: str
    title: str
    filename: str | None = None


class File(_Described):
    """A file, by its URL (``data:`` URLs included)."""

    type: Literal["file", "reasoning-file"] = "file"
    url: str
    media_type: str


class SteeringMessage(Chunk):
    """A message of the user's that was added to the run while it went on."""

    type: Literal["steering-message"] = "steering-message"
    id: str
    parts: list[dict[str, Any]]


class Custom(_Described):
    """Content of a provider's own kind, ``provider.kind``."""

    type: Literal["custom"] = "custom"
    kind: str = Field(pattern=r".\..")


class Data(Chunk):
    """A value of the application's own, ``data-<name>``; the same ``id`` replaces it."""

    type: str = Field(pattern=r"^data-.")
    id: str | None = None
    data: Any
    transient: bool | None = None


class Error(Chunk):
    """Something went wrong; ``useChat`` ends with it."""

    type: Literal["error"] = "error"
    error_text: str


class StartStep(Chunk):
    """A step (one call of the model) begins."""

    type: Literal["start-step"] = "start-step"


class FinishStep(Chunk):
    """A step is complete."""

    type: Literal["finish-step"] = "finish-step"


class ResetStep(Chunk):
    """The parts of the current step are void."""

    type: Literal["reset-step"] = "reset-step"


class Start(Chunk):
    """The message begins."""

    type: Literal["start"] = "start"
    message_id: str | None = None
    message_metadata: Any = None


class Finish(Chunk):
    """The message is complete."""

    type: Literal["finish"] = "finish"
    finish_reason: FinishReason | None = None
    message_metadata: Any = None


class Abort(Chunk):
    """The message was stopped."""

    type: Literal["abort"] = "abort"
    reason: str | None = None


class MessageMetadata(Chunk):
    """Metadata, merged into the message's."""

    type: Literal["message-metadata"] = "message-metadata"
    message_metadata: Any


_MODELS: tuple[type[Chunk], ...] = (
    TextStart, TextDelta, TextEnd, ReasoningStart, ReasoningDelta, ReasoningEnd, ToolInputStart,
    ToolInputDelta, ToolInputAvailable, ToolInputError, ToolApprovalRequest,
    ToolApprovalResponse, ToolOutputAvailable, ToolOutputError, ToolOutputDenied, SourceUrl,
    SourceDocument, SteeringMessage, Custom, Error, StartStep, FinishStep, ResetStep, Start,
    Finish, Abort, MessageMetadata,
)  # fmt: skip

#: The model of each type; those of ``data-*`` are :class:`Data`.
MODELS: dict[str, type[Chunk]] = {
    **{str(model.model_fields["type"].default): model for model in _MODELS},
    "file": File,
    "reasoning-file": File,
}


def _tag(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "data-" if isinstance(kind, str) and kind.startswith("data-") else str(kind)


AnyChunk = Annotated[
    Annotated[TextStart, Tag("text-start")]
    | Annotated[TextDelta, Tag("text-delta")]
    | Annotated[TextEnd, Tag("text-end")]
    | Annotated[ReasoningStart, Tag("reasoning-start")]
    | Annotated[ReasoningDelta, Tag("reasoning-delta")]
    | Annotated[ReasoningEnd, Tag("reasoning-end")]
    | Annotated[ToolInputStart, Tag("tool-input-start")]
    | Annotated[ToolInputDelta, Tag("tool-input-delta")]
    | Annotated[ToolInputAvailable, Tag("tool-input-available")]
    | Annotated[ToolInputError, Tag("tool-input-error")]
    | Annotated[ToolApprovalRequest, Tag("tool-approval-request")]
    | Annotated[ToolApprovalResponse, Tag("tool-approval-response")]
    | Annotated[ToolOutputAvailable, Tag("tool-output-available")]
    | Annotated[ToolOutputError, Tag("tool-output-error")]
    | Annotated[ToolOutputDenied, Tag("tool-output-denied")]
    | Annotated[SourceUrl, Tag("source-url")]
    | Annotated[SourceDocument, Tag("source-document")]
    | Annotated[File, Tag("file")]
    | Annotated[File, Tag("reasoning-file")]
    | Annotated[SteeringMessage, Tag("steering-message")]
    | Annotated[Custom, Tag("custom")]
    | Annotated[Data, Tag("data-")]
    | Annotated[Error, Tag("error")]
    | Annotated[StartStep, Tag("start-step")]
    | Annotated[FinishStep, Tag("finish-step")]
    | Annotated[ResetStep, Tag("reset-step")]
    | Annotated[Start, Tag("start")]
    | Annotated[Finish, Tag("finish")]
    | Annotated[Abort, Tag("abort")]
    | Annotated[MessageMetadata, Tag("message-metadata")],
    Discriminator(_tag),
]

#: Validates a chunk of any type.
ADAPTER: TypeAdapter[Any] = TypeAdapter(AnyChunk)


def parse_chunk(part: Any) -> dict[str, Any]:
    """A part as it goes on the wire: checked, named in camel case, without what is not set.

    Raises:
        InvalidChunk: the protocol has no such chunk; the message says what is wrong with it.
    """
    if isinstance(part, BaseModel):
        values = part.model_dump(mode="json", by_alias=True)
        part = {key: each for key, each in values.items() if each is not None or key in _REQUIRED}
    if not isinstance(part, dict):
        raise InvalidChunk(
            f"a part is a dictionary with a type, a model or a string, not {type(part).__name__}"
        )
    kind = part.get("type")
    model = Data if _tag(part) == "data-" else MODELS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise InvalidChunk(
            f"{kind!a} is no chunk of the UI message stream; for values of your own use "
            "a type that starts with 'data-', or chat.stream.write()"
        )
    try:
        chunk = model.model_validate(part)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(each) for each in item['loc'])}: {item['msg']}"
            for item in error.errors(include_input=False, include_url=False)
        )
        raise InvalidChunk(f"a {kind!a} chunk is not valid: {problems}") from None
    given = {"type", *chunk.model_fields_set}
    plain = {
        (field.alias or name): value
        for name, field in model.model_fields.items()
        if name in given and ((value := getattr(chunk, name)) is not None or name in _NULLABLE)
    }
    return {**plain, **(chunk.model_extra or {})}


#: Members whose ``null`` is a value: those that a chunk must have, and all.
_REQUIRED = frozenset({"input", "output", "data"})
_NULLABLE = _REQUIRED | {"input_schema_input"}
