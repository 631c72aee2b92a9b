"""What the gateway answers to, as an OpenAPI 3.1 description: ``GET /openapi.json``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from celery_streams.gateway.problems import PROBLEM_JSON
from celery_streams.gateway.targets import STREAM_ROOT

Document = dict[str, Any]

_TEXT = {"type": "string"}
_WHOLE = {"type": "string", "pattern": r"^(0|[1-9][0-9]{0,15})$"}
_TRUE = {"type": "string", "enum": ["true"]}
_EVENT_ID = {"type": "string", "pattern": "^[0-9]{1,16}(-closed)?$"}
_OFFSET = {"type": "string", "pattern": r"^(-1|now|[0-9]{1,16})$"}
_NAME = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[A-Za-z0-9._~:-]+$"}

#: Headers of answers.
_ANSWERED = {
    "Stream-Next-Offset": "where the next read begins",
    "Stream-Closed": "true: nothing comes after this",
    "Stream-Up-To-Date": "true: this was everything there is now",
    "Stream-Cursor": "give it back as `cursor`",
    "Stream-Run-State": "how the stream's run is doing",
    "Stream-Earliest-Offset": "the first offset that is left",
    "ETag": "give it back as If-None-Match",
    "Location": "the new stream's URL",
    "Retry-After": "seconds after which to try again",
}
_READ = ("Stream-Next-Offset", "Stream-Up-To-Date", "Stream-Closed", "Stream-Run-State")
_WRITTEN = ("Stream-Next-Offset", "Stream-Closed")

#: What any request may be answered.
_REFUSALS = {
    400: "the request is malformed, or could mean two things",
    401: "no valid token",
    403: "the token does not allow this",
    414: "the URL is too long",
    431: "the headers are too large",
    503: "the store cannot be reached",
}
_BODY_REFUSALS = {
    408: "the body was not complete in time",
    413: "the body, or one message of it, is too large",
}


def openapi(prefix: str = "") -> Document:
    """The description of a gateway that is mounted at ``prefix``."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "celery-streams gateway",
            "version": "1",
            "description": "Streams of Celery runs and sessions, and of clients' own, by the "
            "Durable Streams protocol (https://github.com/durable-streams/durable-streams).",
        },
        "servers": [{"url": prefix or "/"}],
        "security": [{"bearer": []}, {"query": []}],
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "query": {"type": "apiKey", "in": "query", "name": "token"},
            },
            "schemas": {"Problem": _PROBLEM},
        },
        "paths": {
            **_stream("runs/{run_id}/{key}", "run's stream", run_id=_NAME, key=_NAME),
            **_stream(
                "sessions/{session_id}/{channel}", "session's channel",
                session_id=_NAME, channel={"type": "string", "enum": ["out", "in"]},
            ),
            **_stream("{path}", "client's stream", path=_NAME),
            "/v1/runs": _documents("the runs whose streams were opened last"),
            "/v1/runs/{run_id}": _documents("how a run is doing", run_id=_NAME),
            "/v1/sessions": _documents("the sessions that were opened last"),
            "/v1/sessions/{session_id}": _documents("a session's streams", session_id=_NAME),
            "/healthz": _operation("whether the process is alive", {200: "it is"}),
            "/readyz": _operation("whether it can serve", {200: "it can", 503: "not now"}),
            "/metrics": _operation(
                "numbers in Prometheus' format",
                {200: "the numbers", 401: _REFUSALS[401], 403: _REFUSALS[403]},
            ),
            "/openapi.json": _operation("this description", {200: "it"}),
        },
    }  # fmt: skip


_PROBLEM: Document = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": _TEXT,
        "title": _TEXT,
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "the reason, for programs"},
        "detail": {"type": "string", "description": "the reason, for people"},
    },
}


def _stream(path: str, what: str, /, **names: Document) -> Document:
    parameters = [_parameter("path", name, schema) for name, schema in names.items()]
    article = f"a {what}"
    return {
        f"{STREAM_ROOT}{path}": {
            "parameters": parameters,
            "get": {
                "summary": f"Read {article}, to its present end or live",
                "parameters": [
                    _parameter("query", "offset", _OFFSET),
                    _parameter("query", "live", {"type": "string", "enum": ["long-poll", "sse"]}),
                    _parameter("query", "cursor", {"type": "string", "pattern": "^[0-9]{1,12}$"}),
                    _parameter("header", "Last-Event-ID", _EVENT_ID),
                    _parameter("header", "If-None-Match", {"type": "string", "pattern": '^"a?"$'}),
                ],
                "responses": {
                    **_answer(200, "chunks; as events if live=sse", _READ, "*/*"),
                    **_answer(204, "nothing new, or nothing more", _READ),
                    **_answer(304, "as it was", ("ETag",)),
                    **_problems(
                        {404: "there is no such stream", 410: "it, or the offset, is gone",
                         429: "the token has too many live reads open"}
                    ),
                },
            },
            "head": {
                "summary": f"Where {article} ends",
                "responses": {
                    **_answer(200, "it exists", _READ),
                    **_problems({404: "there is no such stream", 410: "it was deleted"}),
                },
            },
            "put": {
                "summary": f"Create {article}, or find it as described",
                "parameters": [
                    *_headers("Stream-Closed", _TRUE),
                    *_headers("Stream-TTL", _WHOLE),
                    *_headers("Stream-Expires-At", {"type": "string", "format": "date-time"}),
                    *_headers("Stream-Forked-From", {"type": "string", "pattern": "^/[!-~]*$"}),
                    *_headers("Stream-Fork-Offset", _OFFSET),
                    *_headers("Stream-Fork-Sub-Offset", _WHOLE),
                ],
                "requestBody": _BODY,
                "responses": {
                    **_answer(200, "it exists as described", _WRITTEN),
                    **_answer(201, "it was created", (*_WRITTEN, "Location")),
                    **_problems(
                        {404: "there is no such source", 409: "it exists, and is different",
                         410: "the source was deleted", **_BODY_REFUSALS}
                    ),
                },
            },
            "post": {
                "summary": f"Append to {article}, or close it",
                "parameters": [
                    *_headers("Stream-Closed", _TRUE),
                    *_headers("Stream-Seq", {"type": "string", "pattern": "^[!-~]{1,256}$"}),
                    *_headers("Producer-Id", {"type": "string", "pattern": "^[!-~]{1,256}$"}),
                    *_headers("Producer-Epoch", _WHOLE),
                    *_headers("Producer-Seq", _WHOLE),
                ],
                "requestBody": _BODY,
                "responses": {
                    **_answer(200, "appended for a producer", _WRITTEN),
                    **_answer(204, "appended, or closed, or known already", _WRITTEN),
                    **_problems(
                        {404: "there is no such stream", 409: "it does not fit, or has ended",
                         410: "it was deleted", **_BODY_REFUSALS}
                    ),
                },
            },
            "delete": {
                "summary": f"Delete {article}",
                "responses": {
                    **_answer(204, "it is gone", ()),
                    **_problems({404: "there is no such stream", 410: "it was deleted before"}),
                },
            },
        }
    }  # fmt: skip


_BODY: Document = {
    "required": False,
    "content": {
        "application/json": {"schema": {"type": "array", "items": {}}},
        "text/plain": {"schema": _TEXT},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}


def _documents(summary: str, /, **names: Document) -> Document:
    limit = {"type": "string", "pattern": "^[1-9][0-9]{0,8}$"}
    return {
        "parameters": [_parameter("path", name, schema) for name, schema in names.items()],
        "get": {
            "summary": summary.capitalize(),
            "parameters": [] if names else [_parameter("query", "limit", limit)],
            "responses": {
                **_answer(200, summary, (), "application/json"),
                **_problems({}),
            },
        },
    }


def _operation(summary: str, answers: Mapping[int, str]) -> Document:
    responses = {str(status): {"description": text} for status, text in answers.items()}
    return {"get": {"summary": summary.capitalize(), "security": [], "responses": responses}}


def _parameter(where: str, name: str, schema: Document) -> Document:
    return {"in": where, "name": name, "required": where == "path", "schema": schema}


def _headers(name: str, schema: Document) -> list[Document]:
    return [_parameter("header", name, schema)]


def _answer(status: int, text: str, headers: Iterable[str], media_type: str = "") -> Document:
    answer: Document = {"description": text}
    if described := {n: {"schema": _TEXT, "description": _ANSWERED[n]} for n in headers}:
        answer["headers"] = described
    if media_type:
        answer["content"] = {media_type: {}}
    return {str(status): answer}


def _problems(more: Mapping[int, str]) -> Document:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        str(status): {"description": text, "content": {PROBLEM_JSON: {"schema": schema}}}
        for status, text in sorted({**_REFUSALS, **more}.items())
    }
