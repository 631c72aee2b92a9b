"""Workers without an account token: the gateway mints for them, and ends what they cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from celery_streams import Streams
from celery_streams.errors import CredentialsRejected
from celery_streams.slots import Slot
from celery_streams.stores.s2.address import stream_name
from tests.gateway.serving import Gateway, serving
from tests.s2.member import connected
from tests.s2.servers import BASIN
from tests.s2.tokens import TokenServer
from tests.servers import ValkeyProcess
from tests.workers import RESULT_DB, Worker, worker

_APP = "tests.s2.app"
_SECRET = "test secret"


@pytest.fixture(scope="module")
def redis_url(valkey: ValkeyProcess) -> str:
    valkey.flush()
    return valkey.url_for(db=RESULT_DB)


@pytest.fixture(scope="module")
def gateway(redis_url: str, shared_tokens: TokenServer) -> Iterator[Gateway]:
    """The only process that holds the account's token."""
    environment = {"CELERY_STREAMS_SECRET": _SECRET, "CELERY_STREAMS_REDIS_URL": redis_url}
    url = shared_tokens.url()
    with serving(url, "--host", "127.0.0.1", **environment) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def hosts(
    valkey: ValkeyProcess, gateway: Gateway, shared_tokens: TokenServer
) -> Iterator[list[Worker]]:
    """Three workers on one broker, two processes each."""
    token = Streams(url="redis://unused", secret=_SECRET).token(
        ["admin:runs/*", "admin:sessions/*"], ttl=3600
    )
    environment = {
        "CELERY_STREAMS_AUTHORITY_URL": f"http://127.0.0.1:{gateway.port}",
        "CELERY_STREAMS_AUTHORITY_TOKEN": token,
        "S2_ACCESS_TOKEN": "",
    }
    url = f"s2://{BASIN}?endpoint={shared_tokens.endpoint}"
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                worker(_APP, valkey, streams_url=url, concurrency=2, env=environment)
            )
            for _ in range(3)
        ]


@pytest.fixture
def streams(redis_url: str, tokens: TokenServer) -> Iterator[Streams]:
    """A reader."""
    streams = connected(redis_url, tokens.url(), recheck_interval=0.5)
    yield streams
    streams.close()


def test_the_fleet_makes_one_request_a_slot(
    hosts: list[Worker], gateway: Gateway, streams: Streams, tokens: TokenServer
) -> None:
    """However many chunks, processes and hosts; and every chunk is there once."""
    run_id = "minted-by-the-gateway"
    results = [
        hosts[0].app.send_task(f"{_APP}.write_to", (run_id, number, 150)) for number in range(12)
    ]
    for result in results:
        result.get(timeout=60)
    assert tokens.minted == {stream_name("cs", Slot.run(run_id)): 1}
    with streams.read(run_id, timeout=20) as reader:
        chunks = [next(reader) for _ in range(12 * 150)]
    for number in range(12):
        assert [index for who, index in chunks if who == number] == list(range(150))
    assert streams.head(run_id).end == 12 * 150
    assert gateway.log.text.count("Traceback") == 0


def test_a_run_s_stream_ends_with_it(hosts: list[Worker], streams: Streams) -> None:
    """As it did, though no worker may do that itself."""
    result = hosts[0].app.send_task(f"{_APP}.count", (500,))
    with streams.read(result.id, timeout=20) as reader:
        assert list(reader) == list(range(500))
    assert reader.closed == "SUCCESS"
    assert streams.head(result.id).closed == "SUCCESS"


def test_such_a_worker_cannot_read(redis_url: str, tokens: TokenServer) -> None:
    """It was given no token for that; the error says whose refusal it is."""
    url = f"s2://none@{BASIN}?endpoint={tokens.endpoint}"
    asking = {"authority_url": "http://127.0.0.1:1", "authority_token": "t"}
    streams = connected(redis_url, url, **asking)
    with pytest.raises(CredentialsRejected, match="refused the credentials"):
        streams.head("minted-by-the-gateway")
    streams.close()
