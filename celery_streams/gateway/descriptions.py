"""What descriptions in OpenAPI's form are put together from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from celery_streams.gateway.problems import PROBLEM_JSON

Document = dict[str, Any]

TEXT = {"type": "string"}
WHOLE = {"type": "string", "pattern": r"^(0|[1-9][0-9]{0,15})$"}
TRUE = {"type": "string", "enum": ["true"]}
EVENT_ID = {"type": "string", "pattern": "^[0-9]{1,16}(-closed)?$"}
OFFSET = {"type": "string", "pattern": r"^(-1|now|[0-9]{1,16})$"}
NAME = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[A-Za-z0-9._~:-]+$"}

#: Headers of answers.
_ANSWERED = {
    "Stream-Next-Offset": "where the next read begins",
    "Stream-Closed": "true: nothing comes after this",
    "Stream-Up-To-Date": "true: this was everything there is now",
    "Stream-Cursor": "give it back as `cursor`",
    "Stream-Run-State": "how the stream's run is doing",
    "Stream-Earliest-Offset": "the first offset that is left",
    "Stream-Credentials": "what the store wants to see, if that was asked for",
    "Stream-Credentials-Id": "names these credentials in logs",
    "Stream-Credentials-Expires": "until when they hold, Unix seconds",
    "ETag": "give it back as If-None-Match",
    "Location": "the new stream's URL",
    "Retry-After": "seconds after which to try again",
}
READ = ("Stream-Next-Offset", "Stream-Up-To-Date", "Stream-Closed", "Stream-Run-State")
WRITTEN = ("Stream-Next-Offset", "Stream-Closed")
MINTED = ("Stream-Credentials", "Stream-Credentials-Id", "Stream-Credentials-Expires")

#: What any request may be answered.
REFUSALS = {
    400: "the request is malformed, or could mean two things",
    401: "no valid token",
    403: "the token does not allow this",
    414: "the URL is too long",
    431: "the headers are too large",
    503: "the store cannot be reached",
}
BODY_REFUSALS = {
    408: "the body was not complete in time",
    413: "the body, or one message of it, is too large",
    415: "the body has a Content-Encoding",
    501: "the body has a Transfer-Encoding other than chunked",
}

PROBLEM: Document = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": TEXT,
        "title": TEXT,
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "the reason, for programs"},
        "detail": {"type": "string", "description": "the reason, for people"},
    },
}


def path_item(names: Mapping[str, Document], /, **operations: Document) -> Document:
    """What a path with these names in it answers to, by method."""
    parameters = [parameter("path", name, schema) for name, schema in names.items()]
    return {"parameters": parameters, **operations}


def operation(
    summary: str,
    responses: Document,
    *,
    parameters: Iterable[Document] = (),
    body: Document | None = None,
    security: list[Document] | None = None,
) -> Document:
    """One method of a path. ``security``: other than everywhere else; empty: none."""
    described: Document = {"summary": summary[:1].upper() + summary[1:]}
    if parameters := list(parameters):
        described["parameters"] = parameters
    if body is not None:
        described["requestBody"] = body
    if security is not None:
        described["security"] = security
    return {**described, "responses": responses}


def parameter(where: str, name: str, schema: Document) -> Document:
    """A parameter in the path, the query or a header."""
    return {"in": where, "name": name, "required": where == "path", "schema": schema}


def header(name: str, schema: Document) -> Document:
    """A header of a request."""
    return parameter("header", name, schema)


def answer(
    status: int,
    text: str,
    headers: Iterable[str] = (),
    media_type: str = "",
    schema: Document | None = None,
) -> Document:
    """One answer."""
    described: Document = {"description": text}
    if fields := {n: {"schema": TEXT, "description": _ANSWERED[n]} for n in headers}:
        described["headers"] = fields
    if media_type:
        described["content"] = {media_type: {} if schema is None else {"schema": schema}}
    return {str(status): described}


def problems(more: Mapping[int, str], also: Document | None = None) -> Document:
    """Answers that say no: what any request may get, and ``more``.

    ``also`` is the schema of a JSON document that may come instead of the problem document.
    """
    content: Document = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    if also is not None:
        content["application/json"] = {"schema": also}
    return {
        str(status): {"description": text, "content": content}
        for status, text in sorted({**REFUSALS, **more}.items())
    }
