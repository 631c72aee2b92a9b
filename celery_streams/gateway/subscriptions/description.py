"""The control resources below ``__ds/``, in OpenAPI's form."""

from __future__ import annotations

from celery_streams.gateway.descriptions import (
    BODY_REFUSALS,
    NAME,
    OFFSET,
    TEXT,
    Document,
    answer,
    operation,
    path_item,
    problems,
)
from celery_streams.gateway.targets import STREAM_ROOT
from celery_streams.subscriptions.config import LONGEST_LEASE_MS, MAX_STREAMS, SHORTEST_LEASE_MS

_ROOT = f"{STREAM_ROOT}__ds/"
_JSON = "application/json"

#: The token that came with a wake.
WAKE: Document = {
    "type": "http",
    "scheme": "bearer",
    "description": "the token that came with the wake; in no URL",
}

_WHOLE: Document = {"type": "integer", "minimum": 0}
_TRUE_OR_FALSE: Document = {"type": "boolean"}
_MAYBE_TEXT: Document = {"type": ["string", "null"]}
_PATHS: Document = {"type": "array", "items": {"type": "string"}, "maxItems": MAX_STREAMS}
_LEASE: Document = {
    "type": "integer", "minimum": SHORTEST_LEASE_MS, "maximum": LONGEST_LEASE_MS,
    "description": "milliseconds",
}  # fmt: skip


def _object(required: str, **properties: Document) -> Document:
    return {"type": "object", "required": required.split(), "properties": properties}


def _array(schema: Document) -> Document:
    return {"type": "array", "items": schema}


def _ref(name: str) -> Document:
    return {"$ref": f"#/components/schemas/{name}"}


_LINK = _object(
    "path link_type acked_offset",
    path=TEXT,
    link_type={"type": "string", "enum": ["glob", "explicit"]},
    acked_offset=TEXT,
)
_WOKEN = _object(
    "path link_type acked_offset tail_offset has_pending",
    **_LINK["properties"],
    tail_offset=TEXT,
    has_pending=_TRUE_OR_FALSE,
)

SCHEMAS: Document = {
    "SubscriptionRefusal": _object(
        "error", error=_object("code", code=TEXT, message=TEXT)
    ),
    "SubscriptionRequest": _object(
        "type",
        type={"type": "string", "enum": ["webhook", "pull-wake", "celery"]},
        pattern={"type": "string", "description": "paths: * is one segment, ** any number"},
        streams=_PATHS,
        webhook=_object("url", url={"type": "string", "format": "uri"}),
        wake_stream=TEXT,
        task={"type": "string", "description": "the name of a Celery task"},
        queue=TEXT,
        lease_ttl_ms=_LEASE,
        description=TEXT,
    ),
    "Subscription": _object(
        "id subscription_id type status generation created_at lease_ttl_ms streams",
        id=TEXT,
        subscription_id=TEXT,
        type=TEXT,
        pattern=_MAYBE_TEXT,
        webhook={"type": ["object", "null"]},
        wake_stream=_MAYBE_TEXT,
        task=TEXT,
        queue=_MAYBE_TEXT,
        lease_ttl_ms=_LEASE,
        created_at={"type": "string", "format": "date-time"},
        next_attempt_at={"type": "string", "format": "date-time"},
        status={"type": "string", "enum": ["active", "failed"]},
        description=_MAYBE_TEXT,
        generation=_WHOLE,
        streams=_array(_LINK),
    ),
    "Claim": _object(
        "wake_id generation token streams lease_ttl_ms",
        wake_id=TEXT, generation=_WHOLE, token=TEXT, streams=_array(_WOKEN), lease_ttl_ms=_WHOLE,
    ),
}  # fmt: skip

_ACK = _object(
    "wake_id generation",
    wake_id=TEXT,
    generation=_WHOLE,
    acks=_array(_object("stream offset", stream=TEXT, offset=OFFSET)),
    done={"type": "boolean", "description": "gives up the lease"},
)


def paths() -> Document:
    """Every path, with what it answers."""
    one = f"{_ROOT}subscriptions/{{subscription_id}}"
    name = {"subscription_id": NAME}
    ack = _for_wake("acknowledge, and renew the lease or give it up", _ACK, _acknowledged())
    return {
        f"{_ROOT}jwks.json": path_item(
            {},
            get=operation(
                "the public keys that webhooks are signed with",
                {**answer(200, "a JSON Web Key Set", (), "application/jwk-set+json"),
                 **problems({})},
                security=[],
            ),
        ),
        one: path_item(
            name,
            get=operation("how a subscription is doing", {**_shown(200), **_refused({})}),
            put=operation(
                "create a subscription, or find it as described",
                {**_shown(200), **_shown(201), **_refused(BODY_REFUSALS)},
                body=_body(_ref("SubscriptionRequest")),
            ),
            delete=operation("delete a subscription", {**_done(), **_refused({})}),
        ),
        f"{one}/streams": path_item(
            name,
            post=operation(
                "add explicit streams",
                {**_done(), **_refused(BODY_REFUSALS)},
                body=_body(_object("streams", streams={**_PATHS, "minItems": 1})),
            ),
        ),
        f"{one}/streams/{{path}}": path_item(
            {**name, "path": NAME},
            delete=operation("remove an explicit stream", {**_done(), **_refused({})}),
        ),
        f"{one}/claim": path_item(
            name,
            post=operation(
                "take a pull-wake subscription's wake",
                {**answer(200, "the wake", (), _JSON, _ref("Claim")), **_refused(BODY_REFUSALS)},
                body=_body(
                    _object("worker", worker={"type": "string", "minLength": 1, "maxLength": 255})
                ),
            ),
        ),
        f"{one}/ack": path_item(name, post=ack),
        f"{one}/callback": path_item(name, post=ack),
        f"{one}/release": path_item(
            name,
            post=_for_wake(
                "give up the lease", _object("wake_id generation", wake_id=TEXT, generation=_WHOLE),
                _done(),
            ),
        ),
    }  # fmt: skip


def _for_wake(summary: str, body: Document, answers: Document) -> Document:
    responses = {**answers, **_refused(BODY_REFUSALS)}
    return operation(summary, responses, body=_body(body), security=[{"wake": []}])


def _acknowledged() -> Document:
    schema = _object("ok next_wake", ok=_TRUE_OR_FALSE, next_wake=_TRUE_OR_FALSE)
    return answer(200, "noted", (), _JSON, schema)


def _shown(status: int) -> Document:
    text = "it was created" if status == 201 else "the subscription"
    return answer(status, text, (), _JSON, _ref("Subscription"))


def _done() -> Document:
    return answer(204, "done")


def _body(schema: Document) -> Document:
    return {"required": True, "content": {_JSON: {"schema": schema}}}


def _refused(more: dict[int, str]) -> Document:
    """Reasons to say no, in the protocol's form or as a problem."""
    reasons = {404: "there is no such subscription", 409: "it is different, or taken, or over"}
    return problems({**reasons, **more}, also=_ref("SubscriptionRefusal"))
