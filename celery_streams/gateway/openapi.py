"""What the gateway answers to, as an OpenAPI 3.1 description: ``GET /openapi.json``."""

from __future__ import annotations

from collections.abc import Mapping

from celery_streams.gateway.chat import description as chat
from celery_streams.gateway.descriptions import (
    BODY_REFUSALS,
    EVENT_ID,
    MINTED,
    NAME,
    OFFSET,
    PROBLEM,
    READ,
    REFUSALS,
    TEXT,
    TRUE,
    WHOLE,
    WRITTEN,
    Document,
    answer,
    header,
    operation,
    parameter,
    path_item,
    problems,
)
from celery_streams.gateway.subscriptions import description as subscriptions
from celery_streams.gateway.targets import STREAM_ROOT

_APPEND = {
    "type": "string",
    "enum": ["append"],
    "description": "answer with credentials to write to the store; runs and sessions only",
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
                "wake": subscriptions.WAKE,
            },
            "schemas": {"Problem": PROBLEM, **subscriptions.SCHEMAS},
        },
        "paths": {
            **_stream("runs/{run_id}/{key}", "run's stream", run_id=NAME, key=NAME),
            **_stream(
                "sessions/{session_id}/{channel}", "session's channel",
                session_id=NAME, channel={"type": "string", "enum": ["out", "in"]},
            ),
            **_stream("{path}", "client's stream", path=NAME),
            **subscriptions.paths(),
            **chat.paths(),
            "/v1/runs": _documents("the runs whose streams were opened last"),
            "/v1/runs/{run_id}": _documents("how a run is doing", run_id=NAME),
            "/v1/sessions": _documents("the sessions that were opened last"),
            "/v1/sessions/{session_id}": _documents("a session's streams", session_id=NAME),
            "/healthz": _operation("whether the process is alive", {200: "it is"}),
            "/readyz": _operation("whether it can serve", {200: "it can", 503: "not now"}),
            "/metrics": _operation(
                "numbers in Prometheus' format",
                {200: "the numbers", 401: REFUSALS[401], 403: REFUSALS[403]},
            ),
            "/openapi.json": _operation("this description", {200: "it"}),
        },
    }  # fmt: skip


def _stream(path: str, what: str, /, **names: Document) -> Document:
    article = f"a {what}"
    return {
        f"{STREAM_ROOT}{path}": path_item(
            names,
            get=operation(
                f"read {article}, to its present end or live",
                {
                    **answer(200, "chunks; as events if live=sse", READ, "*/*"),
                    **answer(204, "nothing new, or nothing more", READ),
                    **answer(304, "as it was", ("ETag",)),
                    **problems(
                        {404: "there is no such stream", 410: "it, or the offset, is gone",
                         429: "the token has too many live reads open"}
                    ),
                },
                parameters=[
                    parameter("query", "offset", OFFSET),
                    parameter("query", "live", {"type": "string", "enum": ["long-poll", "sse"]}),
                    parameter("query", "cursor", {"type": "string", "pattern": "^[0-9]{1,12}$"}),
                    header("Last-Event-ID", EVENT_ID),
                    header("If-None-Match", {"type": "string", "pattern": '^"a?"$'}),
                ],
            ),
            head=operation(
                f"where {article} ends",
                {
                    **answer(200, "it exists", READ),
                    **problems({404: "there is no such stream", 410: "it was deleted"}),
                },
            ),
            put=operation(
                f"create {article}, or find it as described",
                {
                    **answer(200, "it exists as described", WRITTEN),
                    **answer(201, "it was created", (*WRITTEN, "Location", *MINTED)),
                    **problems(
                        {404: "there is no such source", 409: "it exists, and is different",
                         410: "the source was deleted", **BODY_REFUSALS}
                    ),
                },
                parameters=[
                    header("Stream-Closed", TRUE),
                    header("Stream-TTL", WHOLE),
                    header("Stream-Expires-At", {"type": "string", "format": "date-time"}),
                    header("Stream-Forked-From", {"type": "string", "pattern": "^/[!-~]*$"}),
                    header("Stream-Fork-Offset", OFFSET),
                    header("Stream-Fork-Sub-Offset", WHOLE),
                    header("Stream-Credentials", _APPEND),
                ],
                body=_BODY,
            ),
            post=operation(
                f"append to {article}, or close it",
                {
                    **answer(200, "appended for a producer", WRITTEN),
                    **answer(204, "appended, or closed, or known already", WRITTEN),
                    **problems(
                        {404: "there is no such stream", 409: "it does not fit, or has ended",
                         410: "it was deleted", **BODY_REFUSALS}
                    ),
                },
                parameters=[
                    header("Stream-Closed", TRUE),
                    header("Stream-Seq", {"type": "string", "pattern": "^[!-~]{1,256}$"}),
                    header("Producer-Id", {"type": "string", "pattern": "^[!-~]{1,256}$"}),
                    header("Producer-Epoch", WHOLE),
                    header("Producer-Seq", WHOLE),
                ],
                body=_BODY,
            ),
            delete=operation(
                f"delete {article}",
                {
                    **answer(204, "it is gone"),
                    **problems({404: "there is no such stream", 410: "it was deleted before"}),
                },
            ),
        )
    }  # fmt: skip


_BODY: Document = {
    "required": False,
    "content": {
        "application/json": {"schema": {"type": "array", "items": {}}},
        "text/plain": {"schema": TEXT},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}


def _documents(summary: str, /, **names: Document) -> Document:
    limit = {"type": "string", "pattern": "^[1-9][0-9]{0,8}$"}
    read = operation(
        summary,
        {**answer(200, summary, (), "application/json"), **problems({})},
        parameters=[] if names else [parameter("query", "limit", limit)],
    )
    return path_item(names, get=read)


def _operation(summary: str, answers: Mapping[int, str]) -> Document:
    responses = {str(status): {"description": text} for status, text in answers.items()}
    return path_item({}, get=operation(summary, responses, security=[]))
