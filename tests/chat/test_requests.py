"""Requests that are none, ask for too much, or try to get around something."""

from __future__ import annotations

import asyncio
import json
import math
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import jwt
import pytest
from celery import Celery
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from celery_streams import Slot, Streams
from celery_streams.contracts import Page as LogPage
from celery_streams.gateway import create_app
from celery_streams.gateway.auth import Gate
from celery_streams.gateway.chat import SessionFeed
from tests.chat.client import Gates, Page, message, serving_agents
from tests.conftest import SettingsFor
from tests.gateway.serving import Answer, Gateway
from tests.servers import ValkeyProcess
from tests.workers import Worker

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}


def post(page: Page, body: bytes, path: str = "", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return page.gateway.request("POST", path or page.path, body, {**JSON, **named})


def strict(body: bytes) -> Any:
    """JSON as a browser reads it: it knows no NaN and no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(body, parse_constant=refuse)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("where", ["part", "body"])
async def test_a_number_that_json_does_not_have_is_refused(
    page: Page, number: str, where: str
) -> None:
    """Kept in the history, or sent on by the agent, it would make a page's JSON unreadable."""
    part = f'"n": {number if where == "part" else 1}'
    more = f'"body": {{"deep": [{number if where == "body" else 1}]}}'
    messages = (
        f'[{{"id": "1", "role": "user", "parts": [{{"type": "text", "text": "x", {part}}}]}}]'
    )
    body = f'{{"id": "{page.chat}", "messages": {messages}, {more}}}'.encode()
    answer = await asyncio.to_thread(post, page, body)
    assert (answer.status, answer.document["code"]) == (400, "invalid-chat-request")
    assert await page.messages() == {
        "id": page.chat, "messages": [], "active": False, "pending": [],
    }  # fmt: skip


async def test_a_history_with_such_a_number_can_still_be_read(page: Page, agents: Worker) -> None:
    """Python's JSON knows it, so a caller of send() may have put it there."""
    app = Celery("a client", set_as_current=False)
    app.conf.update(broker_url=agents.broker_url, result_backend=agents.result_backend)
    streams = Streams(app, url=agents.streams_url, secret="test secret")
    part = {"type": "text", "text": "count", "weight": math.nan, "more": [math.inf]}
    streams.session(page.chat).send({"parts": [part]}, agent="tests.apps.chat_app.echo")
    async with page.resuming() as stream:
        if stream.status == 200:
            await stream.until(lambda s: s.done)
    answer = await asyncio.to_thread(page.ask, "GET", "messages")
    kept = strict(answer.body)["messages"]
    assert kept[0]["parts"] == [{**part, "weight": None, "more": [None]}]
    assert (await page.send("count")).text == "3 "
    streams.close()
    app.close()


async def test_what_is_too_large_is_refused_before_anything_starts(page: Page) -> None:
    """A message larger than a chunk, and a body larger than a body: nothing waits afterwards."""
    for size, code in ((2 * 2**20, "message-too-large"), (9 * 2**20, "body-too-large")):
        values = {"id": page.chat, "messages": [message("x" * size)]}
        for path in ("", f"{page.path}/durable"):
            answer = await asyncio.to_thread(post, page, json.dumps(values).encode(), path)
            assert answer.status == 413
            assert answer.document["code"] == code
    long = {"id": page.chat, "messages": [message("hello", id="x" * 257)]}
    assert (await asyncio.to_thread(post, page, json.dumps(long).encode())).status == 400
    kept = await page.messages()
    assert (kept["messages"], kept["active"], kept["pending"]) == ([], False, [])


async def test_of_a_long_history_the_last_message_counts(page: Page) -> None:
    """What else a page sends of its messages is neither believed nor limited by a chunk's size."""
    others = [message("forged " + "x" * 1000) for _ in range(3000)]
    stream = await page.send(None, messages=[*others, message("count")])
    assert stream.text == "1 "
    assert "forged" not in str(await page.messages())


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"]
)
async def test_a_form_of_another_site_starts_nothing(page: Page, content_type: str) -> None:
    """A page anywhere can post these without asking the gateway first."""
    values = {"id": page.chat, "messages": [message("hello")]}
    for path in (page.path, f"{page.path}/durable"):
        answer = await asyncio.to_thread(
            post, page, json.dumps(values).encode(), path, content_type=content_type
        )
        assert answer.status == 415
    assert (await page.messages())["messages"] == []


async def test_a_session_may_have_the_name_of_a_path(page: Page) -> None:
    """Every request reaches it, and none is taken for another."""
    for name in ("durable", "stream", "answer", "messages", "a b%", "\u00e9\u2603"):
        page.chat = name
        before = len((await page_messages(page))["messages"])
        address = await asyncio.to_thread(page.refer, "hello")
        async with page.following(address) as stream:
            await stream.until(lambda s: s.closed)
        assert stream.text == "hello "
        assert len((await page_messages(page))["messages"]) == before + 2


async def page_messages(page: Page) -> Any:
    path = f"{page.path}/{quote(page.chat, safe='')}/messages"
    return (await asyncio.to_thread(page.gateway.request, "GET", path)).document


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "", 405),
        ("GET", "/durable", 405),
        ("PUT", "/durable", 405),
        ("POST", "/x/stream", 405),
        ("POST", "/durable/x/stream", 405),
        ("GET", "/x/stop", 405),
        ("DELETE", "/x/messages", 405),
        ("POST", "/x/answer", 405),
        ("GET", "/x/answer", 400),
        ("GET", "/x/answer?message=m&from=1_0", 400),
        ("GET", "/x/answer?message=m&from=%C2%B2", 400),
        ("GET", "/x/answer?message=m&live=sse", 400),
        ("GET", "/x/answer?message=m&offset=1&offset=2", 400),
        ("GET", "/x/answer?message=m", 404),
        ("GET", "/durable/x/stop", 404),
        ("GET", "/durable/x/messages", 404),
        ("GET", "/durable/x/y/stream", 404),
        ("GET", "/x", 404),
        ("GET", "/x/stream/", 404),
        ("GET", "//stream", 400),
        ("GET", "/../stream", 400),
        ("GET", "/%2e%2e/messages", 400),
        ("GET", "/a%2Fb/messages", 400),
        ("GET", "/%7Bx%7D/messages", 400),
        ("GET", f"/{'x' * 256}/messages", 400),
    ],
)
async def test_other_paths_and_methods(page: Page, method: str, path: str, status: int) -> None:
    """A problem document each; no agent is reached."""
    answer = await asyncio.to_thread(page.gateway.request, method, page.path + path)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")


@pytest.fixture(scope="module")
def narrow(agents: Worker) -> Iterator[Gateway]:
    """A gateway that lets each token read one stream at a time."""
    env = {
        "CELERY_STREAMS_SECRET": "test secret",
        "CELERY_STREAMS_GATEWAY_CONNECTIONS_PER_TOKEN": "1",
    }
    with serving_agents(agents, "--host", "127.0.0.1", **env) as started:
        yield started


async def test_a_message_that_could_not_be_followed_is_not_taken(
    narrow: Gateway, agents: Worker, gates: Gates, gate: str
) -> None:
    """Whoever is told that there are too many connections has not sent anything; the address of
    an answer counts as the token it was given for."""
    chat = uuid.uuid4().hex
    streams = Streams(url=agents.streams_url, secret="test secret")
    page = Page(narrow, chat=chat, token=streams.session(chat).token())
    streams.close()
    async with page.sending(f"one gate:{gate}") as stream:
        await gates.reached(gate)
        assert (await page.send("refused")).status == 429
        assert (await page.messages())["pending"] == []
        headers = {**JSON, "authorization": f"Bearer {page.token}"}
        body = json.dumps({"id": chat, "messages": [message("two")]}).encode()
        address = (
            await asyncio.to_thread(narrow.request, "POST", f"{page.path}/durable", body, headers)
        ).headers["location"]
        page.token = None  # it is in the address
        async with page.following(address) as second:
            assert second.status == 429
        gates.open(gate)
        await stream.until(lambda s: s.done)
    async with page.following(address) as second:
        await second.until(lambda s: s.closed)
    assert second.text == "two "


async def test_the_address_has_the_prefix_that_the_gateway_is_mounted_at(
    store: ValkeyProcess,
) -> None:
    """Starlette's way to say it, ``root_path``."""
    app = Celery("mounted", broker=store.url_for(db=7), set_as_current=False)
    streams = Streams(app, url=store.url, secret="test secret")
    gateway = create_app(streams, insecure=True, agents={"echo": "nobody.echo"})
    body = json.dumps({"id": "a b", "messages": [message("x")]}).encode()
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event: Any) -> None:
        sent.append(event)

    path = "/api/live/chat/echo/durable"
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "scheme": "http",
        "root_path": "/api/live", "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    await gateway(scope, receive, send)
    assert sent[0]["status"] == 201
    location = dict(sent[0]["headers"])[b"location"]
    assert location.startswith(b"/api/live/chat/echo/a%20b/answer?message=msg_")
    assert b"token" not in location
    await gateway.aclose()
    streams.close()
    app.close()


def test_who_cannot_sign_tokens_puts_the_request_s_own_into_addresses(
    settings_for: SettingsFor,
) -> None:
    """A gateway that knows another issuer's public key only; with a secret it narrows it down."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    expires = time.time() + 100
    claims = {
        "exp": expires, "aud": "celery-streams", "jti": "theirs", "sub": "somebody",
        "scope": "admin:sessions/a",
    }  # fmt: skip
    token = jwt.encode(claims, key, algorithm="EdDSA")
    scope = {"headers": [(b"authorization", f"Bearer {token}".encode())], "query_string": b""}
    theirs = settings_for("redis://nowhere", secret=None, token_public_keys=[public.decode()])
    gate = Gate(theirs, insecure=False)
    assert gate.token_for_url(scope, gate.access(scope), "sessions/a/out") == token

    both = settings_for("redis://nowhere", token_public_keys=[public.decode()])
    gate = Gate(both, insecure=False)
    minted = gate.token_for_url(scope, gate.access(scope), "sessions/a/out")
    assert minted
    access = gate.access({"headers": [], "query_string": f"token={minted}".encode()})
    assert access.allows("read", "sessions/a/out")
    assert not access.allows("read", "sessions/a/in")
    assert not access.allows("write", "sessions/a/out")
    assert (access.token_id, access.subject) == ("theirs", "somebody")
    assert access.expires_at <= expires + 1


class _Held:
    """The store, whose answers to reads are held back until somebody lets them go."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.asked: list[asyncio.Event] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def read(self, slot: Slot, offset: int, **more: Any) -> LogPage:
        page: LogPage = await self._store.read(slot, offset, **more)
        self.asked.append(asyncio.Event())
        await self.asked[-1].wait()
        return page

    async def asks(self, times: int) -> None:
        async with asyncio.timeout(10):
            while len(self.asked) < times:
                await asyncio.sleep(0.001)


@asynccontextmanager
async def feeding(url: str) -> AsyncIterator[tuple[_Held, SessionFeed, Streams]]:
    """A feed whose reads of the log are held back, and which never looks by itself."""
    streams = Streams(url=url, secret="test secret", recheck_interval=600)
    store = _Held(streams.runtime.protocol_store())
    feed = SessionFeed(store, streams.settings)
    try:
        yield store, feed, streams
    finally:
        await feed.aclose()
        await store.aclose()
        streams.close()


async def test_a_reader_does_not_share_an_answer_from_before_it_came(store: ValkeyProcess) -> None:
    """One reader asks the log, whose answer is on its way while a chunk comes. Another reader
    comes: it has not heard of the chunk, and would not find it in that answer."""
    slot = Slot.session(uuid.uuid4().hex, "out")
    async with feeding(store.url) as (held, feed, streams):
        out = streams.session(slot.owner).out
        await asyncio.to_thread(out.append, 1)
        third, first, second = (feed.entries(slot, offset) for offset in (0, 1, 1))
        begun = asyncio.create_task(anext(third))
        await held.asks(1)
        held.asked[0].set()
        assert (await begun) is not None
        live = asyncio.create_task(anext(third))  # it has read the log, and listens
        heard = asyncio.create_task(anext(first))
        await held.asks(2)
        await asyncio.to_thread(out.append, 2)
        assert (await live) is not None
        also = asyncio.create_task(anext(second))
        await held.asks(3)
        for each in held.asked:
            each.set()
        async with asyncio.timeout(10):
            entries = await asyncio.gather(heard, also)
        assert [each.payload for each in entries if each] == [b"2", b"2"]
        await third.aclose()
        await first.aclose()
        await second.aclose()
