"""Access tokens: scoped to one stream, minted once for the fleet, and once again."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from celery_streams.contracts import Authority
from celery_streams.errors import ConfigurationError, CredentialsRejected, StoreUnavailable
from celery_streams.slots import Slot
from celery_streams.stores.s2.address import S2Address, parse_s2_address, stream_name
from celery_streams.stores.s2.authority import S2Authority
from tests.conftest import SettingsFor
from tests.s2.conftest import Connect, S2Backend
from tests.s2.fleet import Fleet, all_there
from tests.s2.servers import BASIN
from tests.s2.tokens import ACCOUNT, TokenServer
from tests.stores.contract.backend import SLOT

_NAME = stream_name("cs", SLOT)


@pytest.fixture(params=["sync"])
def kind(request: pytest.FixtureRequest) -> str:
    """The control plane is for threads."""
    return str(request.param)


def test_the_authority_is_one(backend: S2Backend) -> None:
    """It has every method of the protocol."""
    assert isinstance(backend.authority, Authority)


def test_a_token_holds_for_one_stream_and_no_more_than_writing_needs(
    backend: S2Backend, tokens: TokenServer
) -> None:
    """Exactly this stream of this basin; it may not create, delete, list or mint anything."""
    credentials = backend.open()
    (token,) = tokens.tokens.values()
    assert token.scope["streams"] == {"exact": _NAME}
    assert token.scope["basins"] == {"exact": BASIN}
    assert set(token.scope["ops"]) == {"append", "read"}
    assert token.id.endswith(credentials.mint_id)
    assert token.expires_at == pytest.approx(time.time() + 86_400, abs=60)
    assert token.expires_at == pytest.approx(credentials.expires_at, abs=1)
    assert credentials.token not in repr(credentials)


def test_trimming_is_allowed_where_chunks_are_trimmed(
    connect: Connect, tokens: TokenServer
) -> None:
    """And nowhere else."""
    connect(max_chunks=10).open()
    (token,) = tokens.tokens.values()
    assert set(token.scope["ops"]) == {"append", "read", "trim"}


def test_a_token_for_another_stream_is_refused(backend: S2Backend) -> None:
    """Also for one whose name begins alike."""
    for other in (Slot.run("run-1", "default2"), Slot.session("run-1"), Slot.run("run-2")):
        writer = backend.writer()
        writer.credentials = backend.open(other)
        with pytest.raises(CredentialsRejected):
            writer.append("a")


def test_many_tokens_share_the_connections_of_one_process(
    backend: S2Backend, tokens: TokenServer
) -> None:
    """The SDK would open one for each; the store's and the authority's are two."""
    before = len(tokens.connections)
    for number in range(30):
        backend.writer(Slot.run(f"run-{number}")).append(number)
    assert len(tokens.tokens) == 30
    assert len(tokens.connections) <= before + 2


def test_revoking_withdraws_the_streams_tokens_and_no_others(
    backend: S2Backend, tokens: TokenServer
) -> None:
    """Several mints at once."""
    for _ in range(3):
        backend.open()
    backend.open(Slot.run("run-1", "other"))
    assert backend.authority.revoke(SLOT) == 3
    assert backend.authority.revoke(SLOT) == 0
    assert len(tokens.tokens) == 1


def test_a_stream_cannot_be_opened_as_another_type(backend: S2Backend) -> None:
    """The error names both; nothing is minted."""
    backend.open(content_type="text/plain")
    with pytest.raises(ConfigurationError, match=r"text/plain.*application/json"):
        backend.open()


def test_a_server_without_tokens_gets_streams_all_the_same(
    connect: Connect, tokens: TokenServer
) -> None:
    """``skip_access_tokens``: nothing is minted."""
    url = f"s2://{BASIN}?endpoint={tokens.target.endpoint}&skip_access_tokens=1"
    backend = connect(url)
    writer = backend.writer()
    writer.append("a")
    assert backend.authority.revoke(SLOT) == 0
    assert backend.chunks() == ["a"]
    assert not tokens.requests


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("s2://basin-one", S2Address("basin-one")),
        ("s2://t0ken@basin-one", S2Address("basin-one", token="t0ken")),
        (
            "s2://basin-one?endpoint=http://h:1/&skip_access_tokens=1",
            S2Address("basin-one", "http://h:1", "http://h:1", skip_access_tokens=True),
        ),
    ],
)
def test_the_urls_of_basins(url: str, address: S2Address) -> None:
    """The URL's own token comes before the environment's."""
    assert parse_s2_address(url, {}) == address
    assert parse_s2_address(url, {"S2_ACCESS_TOKEN": "other"}).token == (address.token or "other")


@pytest.mark.parametrize(
    "url",
    ["s2://", "redis://basin", "s2://t0ken@b?end=1", "s2://b/path", "s2://b?skip_access_tokens=x"],
)
def test_urls_that_say_nothing(url: str) -> None:
    """The error never shows the token."""
    with pytest.raises(ConfigurationError, match="store URL") as error:
        parse_s2_address(url, {})
    assert "t0ken" not in str(error.value)


def test_minting_needs_the_accounts_token(settings_for: SettingsFor, tokens: TokenServer) -> None:
    """None at all is a setting that is missing; a wrong one is refused."""
    settings = settings_for("redis://unused")
    with pytest.raises(ConfigurationError, match="S2_ACCESS_TOKEN"):
        S2Authority(S2Address(BASIN), settings)
    authority = S2Authority(S2Address(BASIN, tokens.endpoint, token="wrong"), settings)
    with pytest.raises(CredentialsRejected):
        authority.initialize(SLOT)
    authority.shut()


def test_a_wrong_basin_is_a_setting_that_is_wrong(
    settings_for: SettingsFor, tokens: TokenServer
) -> None:
    """No retry would help."""
    for basin in ("no-such-basin", "x"):
        address = S2Address(basin, tokens.endpoint, token=ACCOUNT)
        with pytest.raises(ConfigurationError, match="store"):
            S2Authority(address, settings_for("redis://unused")).initialize(SLOT)


# -- the fleet ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 6])
def test_one_mint_for_all_chunks_of_all_processes(
    fleet: Callable[..., Fleet], tokens: TokenServer, count: int
) -> None:
    """A cold slot, hit by all of them at once."""
    running = fleet()
    running.start(count, 2000, 0)
    said = running.result()
    assert tokens.minted == {_NAME: 1}
    assert sum(each["initializes"] for each in said) == 1
    all_there(running.chunks(), count, 2000)


@pytest.mark.parametrize("fault", ["revoked", "expired"])
def test_one_more_mint_when_the_token_ends_in_a_hot_loop(
    fleet: Callable[..., Fleet], tokens: TokenServer, fault: str
) -> None:
    """And every chunk arrives once, in each writer's order."""
    running = fleet()
    running.start(4, 400, 4.0)
    deadline = time.monotonic() + 20
    while tokens.requests["append"] < 60:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if fault == "revoked":
        assert tokens.revoke_all() == 1
    else:
        tokens.expire_all()
    running.result()
    assert sum(tokens.refused.values()) >= 1
    assert tokens.minted == {_NAME: 2}
    all_there(running.chunks(), 4, 400)


def test_tokens_are_renewed_before_they_expire(
    fleet: Callable[..., Fleet], tokens: TokenServer
) -> None:
    """By one process for all: nobody is ever refused. Not even an append that others overtake
    again and again, for longer than its token lasts: a slow server makes that happen.
    """
    running = fleet(credentials_ttl=4.0, refresh_ahead=0.5)
    tokens.slow = 0.08
    try:
        running.start(3, 20, 10.0)
        running.result()
    finally:
        tokens.slow = 0.0
    assert not tokens.refused, tokens.expired
    assert 2 <= tokens.minted[_NAME] <= 6
    all_there(running.chunks(), 3, 20)


def test_a_throttled_loop_waits_as_long_as_it_is_told(
    fleet: Callable[..., Fleet], tokens: TokenServer
) -> None:
    """429 is no reason for another mint; nothing is sent before its time."""
    running = fleet()
    running.start(1, 200, 3.0)
    deadline = time.monotonic() + 20
    while tokens.requests["append"] < 20:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    tokens.throttle("append", 2, 0.7)
    running.result()
    assert tokens.minted == {_NAME: 1}
    assert len(tokens.throttled_at) == 2
    for name, moment in tokens.throttled_at:
        after = [at for what, at in tokens.asked_at if at > moment and what in ("append", "read")]
        assert min(after) - moment >= 0.65, name
    all_there(running.chunks(), 1, 200)


def test_a_throttled_mint_is_asked_for_again(
    fleet: Callable[..., Fleet], tokens: TokenServer
) -> None:
    """After as long as S2 says."""
    tokens.throttled_at.clear()
    tokens.throttle("issue-access-token", 1, 0.5)
    running = fleet()
    running.start(2, 50, 0)
    running.result()
    assert tokens.minted == {_NAME: 1}
    first, second = [at for what, at in tokens.asked_at if what == "issue-access-token"]
    assert second - first >= 0.45
    all_there(running.chunks(), 2, 50)


def test_a_control_plane_that_is_away_is_unavailable(
    settings_for: SettingsFor,
) -> None:
    """Soon enough for whoever holds the slot's lock."""
    settings = settings_for("redis://unused", connect_timeout=0.5, socket_timeout=0.5)
    address = S2Address(BASIN, "http://127.0.0.1:9", token="t")
    authority = S2Authority(address, settings)
    start = time.monotonic()
    with pytest.raises(StoreUnavailable):
        authority.initialize(SLOT)
    assert time.monotonic() - start < 5
    authority.shut()
