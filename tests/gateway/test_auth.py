"""The gate: where a token may stand, what is answered without one, and what logs do not show."""

from __future__ import annotations

import base64
import functools
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, unquote_plus

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from celery_streams import ConfigurationError, StreamsSettings
from celery_streams.gateway.auth import ConnectionLimit, Gate, RedactTokens, redacted
from celery_streams.gateway.limits import check_request
from celery_streams.gateway.problems import PROBLEM_JSON, Problem
from celery_streams.tokens import UNRESTRICTED, Access, Tokens
from tests.conftest import SettingsFor

SECRET = "a secret of more than sixteen bytes"


@pytest.fixture
def settings(settings_for: SettingsFor) -> StreamsSettings:
    """Settings with a secret."""
    return settings_for("redis://localhost:1/0", secret=SECRET)


@pytest.fixture
def gate(settings: StreamsSettings) -> Gate:
    """A gate that asks."""
    return Gate(settings, insecure=False)


@pytest.fixture
def mint(settings: StreamsSettings) -> Callable[..., str]:
    """``mint("read:runs/x", ...)``."""
    return lambda *scopes: Tokens(settings).mint(list(scopes) or ["read:runs/x"])


def request(*authorization: str | bytes, query: str | bytes = b"") -> dict[str, Any]:
    """An ASGI scope with these ``Authorization`` headers and this query string."""
    values = [each.encode() if isinstance(each, str) else each for each in authorization]
    return {
        "type": "http",
        "headers": [(b"host", b"x"), *((b"authorization", value) for value in values)],
        "query_string": query.encode() if isinstance(query, str) else query,
    }


def refused(gate: Gate, scope: dict[str, Any]) -> Problem:
    """How the gate refuses."""
    with pytest.raises(Problem) as caught:
        gate.access(scope)
    return caught.value


# Starting


def test_a_gateway_without_keys_does_not_start(settings_for: SettingsFor) -> None:
    """It says which settings there are, and how to go without."""
    bare = settings_for("redis://:password@localhost:1/0", secret=None)
    with pytest.raises(ConfigurationError) as caught:
        Gate(bare, insecure=False)
    for word in ("CELERY_STREAMS_SECRET", "CELERY_STREAMS_TOKEN_PUBLIC_KEYS", "--insecure"):
        assert word in str(caught.value)
    with pytest.raises(ConfigurationError, match="empty"):
        Gate(settings_for("redis://localhost:1/0", secret=""), insecure=False)


def test_an_insecure_gateway_lets_everybody_in_and_says_so(
    settings_for: SettingsFor, caplog: pytest.LogCaptureFixture
) -> None:
    """No token is looked at, not even a wrong one."""
    with caplog.at_level(logging.WARNING, "celery_streams"):
        gate = Gate(settings_for("redis://localhost:1/0", secret=None), insecure=True)
    assert "insecure" in caplog.text
    for scope in (request(), request("Bearer wrong", "Bearer x", query="token=y")):
        assert gate.access(scope) is UNRESTRICTED
    gate.require(UNRESTRICTED, "admin", "runs/x")


# Asking


def test_a_token_comes_in_a_header_or_in_the_query(gate: Gate, mint: Callable[..., str]) -> None:
    """The scheme in any case; the parameter beside others, percent-encoded or not."""
    token = mint()
    for scope in (
        request(f"Bearer {token}"),
        request(f"bearer   {token} "),
        request(query=f"token={token}"),
        request(query=f"offset=-1&token={token}&live=sse"),
        request(query=f"%74oken={token.replace('.', '%2E')}"),
    ):
        assert gate.access(scope).allows("read", "runs/x/default")


def test_a_request_without_a_token_is_asked_for_one(gate: Gate) -> None:
    """401, with a challenge that has no error, since nothing was wrong with what was sent."""
    for scope in (request(), request(query="offset=1&tokens=x&Token=y&a=token=z")):
        problem = refused(gate, scope)
        assert (problem.status, problem.code) == (401, "token-missing")
        assert problem.headers["www-authenticate"] == 'Bearer realm="celery-streams"'


@pytest.mark.parametrize(
    "authorization",
    [
        "", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "Bearer a b", "Bearer a,Bearer b",
        "Bearer é", b"Bearer \xff", "Bearer a\n", "Bearer\ta", "tokentoken", "Bearer x.y.z",
    ],
)  # fmt: skip
def test_a_header_that_is_no_token_is_refused(gate: Gate, authorization: str | bytes) -> None:
    """401 with ``invalid_token``, whatever stands there, and without repeating it."""
    problem = refused(gate, request(authorization))
    assert problem.status == 401
    assert 'error="invalid_token"' in problem.headers["www-authenticate"]
    for text in (problem.detail, str(problem), problem.body().decode()):
        assert "dXNlcjpwYXNz" not in text
        assert "x.y.z" not in text


@pytest.mark.parametrize("query", ["token=", "token", "token=%ff", "token=%00", "token=a+b"])
def test_a_parameter_that_is_no_token_is_refused(gate: Gate, query: str) -> None:
    """401; an empty one counts as given."""
    problem = refused(gate, request(query=query))
    assert (problem.status, problem.code) == (401, "token-rejected")


def test_two_tokens_are_one_too_many(gate: Gate, mint: Callable[..., str]) -> None:
    """400, also if they are equal, good, or spelled differently: which one counts is no guess."""
    token = mint()
    for scope in (
        request(f"Bearer {token}", f"Bearer {token}"),
        request(f"Bearer {token}", query=f"token={token}"),
        request(query=f"token={token}&token={token}"),
        request(query=f"token={token}&%74%6F%6b%65%6e="),
    ):
        problem = refused(gate, scope)
        assert (problem.status, problem.code) == (400, "several-tokens")


def test_what_a_refusal_says_of_a_bad_token_is_not_the_token(
    gate: Gate, mint: Callable[..., str], settings_for: SettingsFor
) -> None:
    """Signed by somebody else, or changed: 401, and no part of it in the answer."""
    stranger = Tokens(settings_for("redis://localhost:1/0", secret="somebody else's secret here"))
    for token in (stranger.mint(["read:*"]), mint() + "x", mint()[:-5]):
        problem = refused(gate, request(f"Bearer {token}"))
        assert (problem.status, problem.code) == (401, "token-rejected")
        told = problem.body().decode() + str(problem) + str(problem.headers)
        assert not any(part in told for part in token.split("."))


def test_a_token_for_something_else_is_forbidden(gate: Gate, mint: Callable[..., str]) -> None:
    """403 that names the scope it would take, in a header that no name can break."""
    access = gate.access(request(f"Bearer {mint('read:runs/x')}"))
    gate.require(access, "read", "runs/x/default")
    for action, resource in (("write", "runs/x"), ("read", "runs/xy"), ("read", 'runs/a" \r\nb')):
        with pytest.raises(Problem) as caught:
            gate.require(access, action, resource)  # type: ignore[arg-type]
        assert (caught.value.status, caught.value.code) == (403, "forbidden")
        challenge = caught.value.headers["www-authenticate"]
        assert f'error="insufficient_scope", scope="{action}:runs/' in challenge
        assert challenge.isascii()
        assert challenge.isprintable()
        assert challenge.count('"') == 6


def test_a_problem_is_a_document_of_rfc_9457() -> None:
    """All five members; the title is the status's phrase, also for a status without one."""
    problem = Problem(404, "no-stream", 'there is no "x"', headers={"Retry-After": "1"})
    assert PROBLEM_JSON == "application/problem+json"
    assert json.loads(problem.body()) == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "code": "no-stream",
        "detail": 'there is no "x"',
    }
    assert problem.headers == {"retry-after": "1"}
    assert json.loads(Problem(499, "x", "y").body())["title"] == "Error"


# Counting


def test_a_token_has_so_many_connections_and_others_have_theirs() -> None:
    """429 with Retry-After above the limit; what is closed, however it ends, is free again."""
    limit = ConnectionLimit(2)
    one, other = Access((), token_id="one"), Access((), token_id="other")
    with limit.held(one):
        with pytest.raises(RuntimeError, match="broken"), limit.held(one):
            raise RuntimeError("broken")
        with limit.held(one), limit.held(other):
            assert limit.tokens == 2
            with pytest.raises(Problem) as caught, limit.held(one):
                pytest.fail("that is one too many")
            assert caught.value.status == 429
            assert int(caught.value.headers["retry-after"]) > 0
        with limit.held(one):
            pass
    assert limit.tokens == 0


def test_without_tokens_connections_are_not_counted() -> None:
    """An insecure gateway has nobody to count against."""
    limit = ConnectionLimit(1)
    with limit.held(UNRESTRICTED), limit.held(UNRESTRICTED):
        assert limit.tokens == 0


# Logs

# No letters: whatever of it is left in a line, it is not left by coincidence.
VALUES = st.text("0123456789.-_~", min_size=12)
PARAMETERS = st.text("abcxyz%&=+;?/0123456789 \t\u00e9", max_size=20)


@st.composite
def spelled(draw: st.DrawFn, word: str = "token") -> str:
    """``word``, with any of its letters percent-encoded in any case."""
    letters = []
    for letter in word:
        upper, encoded = draw(st.booleans()), draw(st.booleans())
        code = f"%{ord(letter):02x}"
        letters.append((code.upper() if upper else code) if encoded else letter)
    return "".join(letters)


@given(PARAMETERS, spelled(), VALUES, PARAMETERS)
def test_a_query_that_has_a_token_is_logged_without_it(
    before: str, name: str, value: str, after: str
) -> None:
    """Every spelling of the parameter, among any others."""
    query = f"{before}&{name}={value}&{after}"
    hidden = redacted(query.encode()).decode()
    assert value not in hidden.replace(before, "").replace(after, "")
    assert hidden.startswith(before.split("&", maxsplit=1)[0])


@given(st.lists(st.tuples(st.sampled_from(["token", "%74oken", "tok%65n", "offset", "x"]), VALUES)))
def test_what_the_gate_takes_for_a_token_is_what_logs_hide(pairs: list[tuple[str, str]]) -> None:
    """Parsed again, no parameter named token has its value; all others have theirs."""
    query = "&".join(f"{name}={value}" for name, value in pairs)
    left = [pair.partition("=") for pair in redacted(query.encode()).decode().split("&") if pair]
    assert len(left) == len(pairs)
    for (name, _, shown), (_, value) in zip(left, pairs, strict=True):
        assert shown == ("[hidden]" if unquote_plus(name) == "token" else value)


TOKEN = "eyJhbGciOiJIUzI1NiJ9." + base64.urlsafe_b64encode(b'{"scope":"x"}').decode() + ".c2ln"


def logged(message: object, *args: Any) -> str:
    """The line that comes of a call of a logger with the filter."""
    record = logging.LogRecord("uvicorn.access", 20, __file__, 1, message, args, None)
    assert RedactTokens().filter(record)
    return record.getMessage()


@pytest.mark.parametrize(
    "query",
    [
        f"token={TOKEN}",
        f"offset=-1&token={TOKEN}&live=sse",
        f"%74%6Fke%6E={TOKEN}",
        f"%2574oken={TOKEN}",
        f"next={quote(f'/s?token={TOKEN}', safe='')}",
        f"access_token={TOKEN}",
        f"TOKEN={TOKEN}",
        f"token=%20{TOKEN}",
        f"token=\t {TOKEN}",
        f"token={TOKEN};x",
        f"token={TOKEN}&token={TOKEN}",
    ],
)
def test_an_access_line_shows_no_token(query: str) -> None:
    """As uvicorn logs it: five arguments, of which its formatter takes each."""
    path = f"/v1/stream/runs/x/default?{query}"
    line = logged('%s - "%s %s HTTP/%s" %d', "127.0.0.1:5", "GET", path, "1.1", 200)
    assert not any(part in line for part in TOKEN.split("."))
    assert line.startswith('127.0.0.1:5 - "GET /v1/stream/runs/x/default?')
    assert line.endswith('HTTP/1.1" 200')


def test_no_other_line_shows_one_either() -> None:
    """Whole messages, format strings that end where the token starts, objects, mappings."""
    lines = [
        logged(f"refused /x?token={TOKEN} twice"),
        logged("refused /x?token=%s twice", TOKEN),
        logged("scope %s", {"query_string": f"token={TOKEN}".encode(), "n": 1}),
        logged("scope %(query)s", {"query": f"token={TOKEN}"}),
        logged("query %r", f"token={TOKEN}".encode()),
        logged("Authorization: %s", f"Bearer {TOKEN}"),
        logged("Authorization: Bearer %s", TOKEN),
        logged("headers %s", [(b"authorization", f"Bearer {TOKEN}".encode())]),
        logged(ValueError(f"/x?token={TOKEN}")),
    ]
    for line in lines:
        assert not any(part in line for part in TOKEN.split(".")), line
    assert lines[0] == "refused /x?token=[hidden] twice"
    assert lines[1] == "refused /x?token=[hidden] twice"


def test_lines_without_a_token_are_left_alone() -> None:
    """Numbers stay numbers, and a word is not a secret."""
    assert logged("%d of %s: %.1f", 3, "tokens", 2.5) == "3 of tokens: 2.5"
    assert logged("a token is 100%% right") == "a token is 100%% right"
    assert logged("the bearer waits %s", None) == "the bearer waits None"


# Behind a real server


async def _application(gate: Gate, settings: StreamsSettings, scope: Any, receive: Any, send: Any):
    """Checks the request, then the token; answers 204 or the problem's status."""
    try:
        check_request(scope, settings)
        gate.access(scope)
        status = 204
    except Problem as problem:
        status = problem.status
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture(params=["httptools", "h11"])
def port(
    request: pytest.FixtureRequest, gate: Gate, settings: StreamsSettings
) -> Iterator[Callable[[bytes], int]]:
    """``port(b"GET ...")``: the status with which uvicorn answers, with each of its parsers."""
    app = functools.partial(_application, gate, settings)
    config = uvicorn.Config(
        app, interface="asgi3", http=request.param, lifespan="off", ws="none", log_config=None
    )
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()

    def ask(head: bytes) -> int:
        with socket.create_connection(listening.getsockname()) as client:
            client.settimeout(10)
            client.sendall(head + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
            return int(client.makefile("rb").readline().split()[1])

    try:
        yield ask
    finally:
        server.should_exit = True
        thread.join(10)


def test_a_server_passes_on_what_is_checked_and_its_log_shows_no_token(
    port: Callable[[bytes], int], mint: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    """The raw path and every header reach the checks; access lines are uvicorn's own."""
    token = mint().encode()
    filtered = RedactTokens()
    logging.getLogger("uvicorn.access").addFilter(filtered)
    try:
        with caplog.at_level(logging.INFO, "uvicorn"):
            assert port(b"GET /x?token=" + token + b" HTTP/1.1") == 204
            assert port(b"GET /x?%74o%6Ben=" + token + b"&offset=1 HTTP/1.1") == 204
            assert port(b"GET /x HTTP/1.1\r\nAuthorization: Bearer " + token) == 204
            assert port(b"GET /x HTTP/1.1") == 401
            query = b"?token=" + token + b" HTTP/1.1"
            for path in (b"/a/../b", b"/a/%2e%2e/b", b"/a%2Fb", b"/a%5cb", b"/a%00b", b"/%ff"):
                assert port(b"GET " + path + query) == 400
            assert port(b"GET /x" + query + b"\r\nStream-Seq: 1\r\nStream-Seq: 1") == 400
            assert port(b"GET /x" + query + b"\r\nHost: y") == 400
            assert port(b"GET /" + b"x" * 9000 + query) == 414
            assert port(b"GET /x" + query + b"\r\nCookie: " + b"x" * 17000) == 431
    finally:
        logging.getLogger("uvicorn.access").removeFilter(filtered)
    lines = [record.getMessage() for record in caplog.records if record.name == "uvicorn.access"]
    assert '"GET /x?token=[hidden] HTTP/1.1" 204' in lines[0]
    assert '"GET /x?%74o%6Ben=[hidden]&offset=1 HTTP/1.1" 204' in lines[1]
    assert not any(part in caplog.text for part in token.decode().split("."))
