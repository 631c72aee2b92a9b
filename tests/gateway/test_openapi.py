"""What ``/openapi.json`` describes is what the gateway answers, to any request it allows."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from celery_streams.gateway.openapi import openapi
from tests.gateway.serving import Gateway, serving
from tests.servers import ValkeyProcess

SUBSCRIPTION = "/v1/stream/__ds/subscriptions"
#: What there is.
KNOWN = {"run_id": "a", "key": "default", "session_id": "a", "channel": "out", "path": "a",
         "subscription_id": "a", "agent": "none", "branch_id": "a"}  # fmt: skip
METHODS = ("get", "head", "put", "post", "delete")


@pytest.fixture(scope="module")
def gateway(valkey: ValkeyProcess) -> Iterator[Gateway]:
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    env = {
        "CELERY_STREAMS_GATEWAY_LONG_POLL_TIMEOUT": "0.05",
        "CELERY_STREAMS_GATEWAY_SSE_LIFETIME": "0.05",
    }
    with serving(valkey.url, **env) as gateway:
        for path in ("a", "b", "runs/a/default", "sessions/a/out"):
            answer = gateway.request(
                "PUT", f"/v1/stream/{path}", b"[1]", {"content-type": "application/json"}
            )
            assert answer.status in (200, 201)
        subscription = {
            "type": "pull-wake", "streams": ["a"], "pattern": "runs/*/default",
            "wake_stream": "b", "lease_ttl_ms": 600_000,
        }  # fmt: skip
        answer = gateway.request("PUT", f"{SUBSCRIPTION}/a", json.dumps(subscription).encode())
        assert answer.status in (200, 201)
        gateway.append("/v1/stream/a", 2)
        yield gateway
        assert "Traceback" not in gateway.log.text
    valkey.flush()  # others want no subscriptions


@pytest.fixture(scope="module")
def token(gateway: Gateway) -> str:
    """One that a wake of the subscription came with."""
    answer = gateway.request("POST", f"{SUBSCRIPTION}/a/claim", b'{"worker": "w"}')
    return str(answer.document["token"])


def test_it_is_served(gateway: Gateway) -> None:
    """It is served."""
    answer = gateway.request("GET", "/openapi.json")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.document == json.loads(json.dumps(openapi()))
    assert openapi("/live")["servers"] == [{"url": "/live"}]
    assert gateway.request("POST", "/openapi.json").status == 405


def test_every_header_of_the_protocol_is_described() -> None:
    """Every header of the protocol is described."""
    text = json.dumps(openapi()).lower()
    for name in ("stream-ttl", "producer-id", "stream-forked-from", "last-event-id", "live"):
        assert f'"{name}"' in text


OPERATIONS = [
    (path, method)
    for path, item in openapi()["paths"].items()
    for method in METHODS
    if method in item
]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_request_gets_an_answer_that_is_not_described(
    gateway: Gateway, token: str, path: str, method: str
) -> None:
    """Neither about what there is, nor about what there is not."""
    schema = schemathesis.openapi.from_dict(openapi())
    schema.config.update(base_url=f"http://127.0.0.1:{gateway.port}")
    operation = schema[path][method]
    few = settings(
        max_examples=10,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @few
    @given(case=operation.as_strategy(), known=st.booleans())
    def send(case: Any, known: bool) -> None:
        authorization = None
        if known and method != "delete":
            case.path_parameters = {name: KNOWN[name] for name in case.path_parameters or {}}
            authorization = {"authorization": f"Bearer {token}"}
        response = case.call(timeout=15, headers=authorization)
        assert response.status_code < 500
        checks = [status_code_conformance]
        if method != "head":
            checks += [content_type_conformance, response_schema_conformance]
        case.validate_response(response, checks=checks)

    send()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    method=st.sampled_from([method.upper() for method in METHODS]),
    segments=st.lists(st.sampled_from(["runs", "sessions", "__ds", "a", "b", "in", "%2e", ""])),
    query=st.dictionaries(
        st.sampled_from(["offset", "live", "cursor", "x"]),
        st.sampled_from(["-1", "now", "0", "1", "sse", "long-poll", "", "999", "%00", "a b"]),
    ),
    headers=st.dictionaries(
        st.sampled_from(
            ["content-type", "stream-closed", "stream-ttl", "producer-id", "producer-seq",
             "producer-epoch", "stream-forked-from", "stream-fork-offset", "last-event-id"]
        ),
        st.sampled_from(["application/json", "text/plain", "true", "0", "1", "/v1/stream/a", "ä"]),
    ),
    body=st.sampled_from([b"", b"[]", b"[1]", b"{", b"\xff", b'{"a": 1}']),
)  # fmt: skip
def test_no_request_is_an_error_of_the_gateway(
    gateway: Gateway,
    method: str,
    segments: list[str],
    query: dict[str, str],
    headers: dict[str, str],
    body: bytes,
) -> None:
    """No request is an error of the gateway."""
    path = "/v1/stream/" + "/".join(segments)
    text = "&".join(f"{name}={value}".replace(" ", "%20") for name, value in query.items())
    began = time.monotonic()
    answer = gateway.request(method, f"{path}?{text}", body or None, headers)
    assert answer.status < 500, answer
    assert time.monotonic() - began < 15
