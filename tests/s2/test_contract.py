"""What every store promises, on S2: the tests are those of the Redis store."""

from __future__ import annotations

import pytest

from celery_streams.errors import ChunksLost, CredentialsRejected, StreamNotFound
from celery_streams.slots import Slot
from tests.s2.conftest import Connect, Place, S2Backend
from tests.stores.contract import test_contract as contract
from tests.stores.contract.backend import SLOT

#: Said below for S2, where what the server answers is not the same.
_SAID_BELOW = {
    "test_closing_needs_a_stream_and_valid_credentials",
    "test_chunks_the_store_lost_are_reported_not_papered_over",
    "test_deleting_removes_the_stream_and_says_whether_there_was_one",
    "test_everything_expires_after_the_retention",
}
globals().update(
    {
        name: test
        for name, test in vars(contract).items()
        if name.startswith("test_") and name not in _SAID_BELOW
    }
)


def test_what_is_said_below_still_exists_there() -> None:
    """No test of the contract is left out because it was renamed."""
    assert vars(contract).keys() >= _SAID_BELOW


def test_closing_needs_a_stream_and_valid_credentials(backend: S2Backend) -> None:
    """S2 looks at the token before it looks for the stream."""
    writer = backend.writer()
    backend.authority.revoke(SLOT)
    with pytest.raises(CredentialsRejected):
        writer.close()
    assert backend.store.head(SLOT).closed is None
    writer.credentials = backend.open()
    backend.store.delete(SLOT)
    with pytest.raises(StreamNotFound):
        writer.close()


def test_chunks_the_store_lost_are_reported_not_papered_over(
    backend: S2Backend, place: Place
) -> None:
    """A stream made anew does not go on as if the writer's first batch were there."""
    writer = backend.writer()
    writer.append("a")
    place.flush()
    with pytest.raises(CredentialsRejected):
        writer.append("b")
    writer.credentials = backend.open()
    with pytest.raises(ChunksLost, match="expects batch 0"):
        writer.append("b")
    assert backend.chunks() == []


def test_deleting_removes_the_stream_and_says_whether_there_was_one(backend: S2Backend) -> None:
    """Its run's other streams stay; the name can be used again."""
    backend.writer(Slot.run("run-1", "other")).append("kept")
    writer = backend.writer()
    writer.append("a")
    assert backend.store.delete(SLOT)
    assert not backend.store.delete(SLOT)
    assert backend.chunks(Slot.run("run-1", "other")) == ["kept"]
    with pytest.raises(CredentialsRejected):
        writer.append("b")
    backend.writer().append("anew")
    assert backend.chunks() == ["anew"]


def test_the_server_is_told_how_long_to_keep_everything(connect: Connect, place: Place) -> None:
    """Retention, and that an emptied stream goes."""
    import httpx

    backend = connect(retention=100, credentials_ttl=50)
    backend.writer().append("a")
    lite = place.server.target
    (name,) = lite.streams()
    answer = httpx.get(
        httpx.URL(lite.endpoint).copy_with(
            raw_path=f"/v1/streams/{name.replace('/', '%2F')}".encode()
        ),
        headers={"s2-basin": backend.address.basin},
    ).json()
    assert answer["retention_policy"] == {"age": 100}
    assert answer["delete_on_empty"] == {"min_age_secs": 100}
