"""Mounted in Starlette, FastAPI and Django: the whole protocol below a prefix."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.gateway.mounted_app import PREFIX
from tests.gateway.serving import Gateway, Reading, read_live, running
from tests.servers import ValkeyProcess
from tests.servers.children import end

PATH = f"{PREFIX}/v1/stream/a%20path/deep"
JSON = {"content-type": "application/json"}


@pytest.fixture(params=["starlette", "fastapi", "django"])
def parent(request: pytest.FixtureRequest, valkey: ValkeyProcess) -> Iterator[Gateway]:
    """A process that serves the application of that kind with plain uvicorn."""
    valkey.flush()
    command = ("-m", "tests.gateway.mounted_app", request.param)
    with running(valkey.url, command=command) as process:
        assert process.request("GET", "/own").body.decode() == request.param
        yield process


def test_the_protocol_is_served_below_the_prefix(parent: Gateway) -> None:
    """PUT (Location has the prefix, and works), POST, GET, HEAD, SSE, fork, DELETE."""
    created = parent.request("PUT", PATH, b"[1]", JSON)
    assert created.status == 201
    location = created.headers["location"]
    assert location == f"http://127.0.0.1:{parent.port}{PATH}"
    parent.append(PATH, 2, 3)
    read = parent.request("GET", location.partition(f":{parent.port}")[2])
    assert read.document == [1, 2, 3]
    assert parent.request("HEAD", PATH).headers["stream-next-offset"] == f"{3:016d}"

    async def live() -> Reading:
        reading = Reading()
        following = asyncio.create_task(read_live(parent.port, PATH, reading))
        async with asyncio.timeout(15):
            while len(reading.values) < 3:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(parent.append, PATH, 4)
            await asyncio.to_thread(parent.request, "POST", PATH, None, {"stream-closed": "true"})
            await following
        return reading

    reading = asyncio.run(live())
    assert reading.values == [1, 2, 3, 4]
    assert reading.closed
    assert reading.clean
    fork = f"{PREFIX}/v1/stream/fork"
    forked = parent.request("PUT", fork, headers={"stream-forked-from": PATH})
    assert forked.status == 201
    assert parent.request("GET", fork).document == [1, 2, 3, 4]
    assert parent.request("DELETE", PATH).status == 204


def test_a_token_in_the_url_shows_in_no_line_of_the_parents_server(parent: Gateway) -> None:
    """Its access log is plain uvicorn's, set up by others, and still has the line without it."""
    token = "not-one-but-as-secret"
    for path in (f"{PREFIX}/v1/stream/x", "/own"):
        parent.request("GET", f"{path}?token={token}&offset=-1")
        assert "token=[hidden]" in parent.log.wait_for(f"GET {path}?")
    end(parent.process)
    parent.log.join()
    assert token not in parent.log.text


def test_operations_are_below_the_prefix_and_the_rest_is_the_parents(parent: Gateway) -> None:
    """/readyz of the gateway; a path without the prefix never reaches it."""
    assert parent.request("GET", f"{PREFIX}/readyz").document == {"status": "ready"}
    assert parent.request("GET", f"{PREFIX}/nothing").document["code"] == "not-found"
    outside = parent.request("GET", "/v1/stream/x")
    assert outside.status == 404
    assert outside.headers["content-type"] != "application/problem+json"


def test_the_process_ends_soon_with_readers_attached(parent: Gateway) -> None:
    """Plain uvicorn cancels live reads after its own timeout; they are continued elsewhere."""
    parent.request("PUT", PATH, b"[1]", JSON)

    async def main() -> Reading:
        reading = Reading()
        following = asyncio.create_task(read_live(parent.port, PATH, reading))
        async with asyncio.timeout(15):
            while not reading.values:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(end, parent.process)
            await following
        return reading

    reading = asyncio.run(main())
    assert reading.values == [1]
    assert reading.offset == f"{1:016d}"
    assert not reading.closed
