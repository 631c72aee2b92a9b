"""What is stored in Redis can be read by its own fleet, as its own slot's, only."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_streams.contracts import Credentials
from celery_streams.credentials.sealing import Minted, Sealer, secret_of
from celery_streams.redis.address import parse_address
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from tests.credentials.conftest import Join
from tests.credentials.fleet import SLOT


def minted(slot: Slot = SLOT) -> Minted:
    return Minted(Credentials(slot, "mint", "a token", 1234567.875), 1234000.125)


def test_what_was_sealed_opens_unchanged() -> None:
    """Nothing is lost, the fractions of the times included: evicting compares credentials."""
    sealer = Sealer(b"secret")
    assert sealer.open(SLOT, sealer.seal(minted())) == minted()


def test_the_token_is_not_readable_in_what_is_stored() -> None:
    """Whoever can read Redis does not thereby hold credentials."""
    assert b"a token" not in Sealer(b"secret").seal(minted())


def test_two_seals_of_one_content_differ() -> None:
    """Compare-and-delete can tell two installs apart even if an authority repeats itself."""
    sealer = Sealer(b"secret")
    assert sealer.seal(minted()) != sealer.seal(minted())


def test_an_entry_copied_under_another_slot_does_not_open() -> None:
    """The slot is part of what is authenticated: of scope, owner and key, each counts."""
    sealer = Sealer(b"secret")
    sealed = sealer.seal(minted(Slot.run("r", "out")))
    assert sealer.open(Slot.run("r", "out"), sealed) is not None
    for other in (Slot.run("r", "in"), Slot.run("q", "out"), Slot.session("r", "out")):
        assert sealer.open(other, sealed) is None


@given(st.binary(max_size=200))
def test_no_value_makes_opening_raise(value: bytes) -> None:
    """Whatever lies under the key, the outcome is a miss."""
    assert Sealer(b"secret").open(SLOT, value) is None


def test_the_key_depends_on_the_secret_else_on_the_login_not_on_the_host() -> None:
    """Hosts that reach one server by different names share its entries."""

    def secret(url: str, **overrides: Any) -> bytes:
        return secret_of(StreamsSettings(url=url, **overrides), parse_address(url))

    inside, outside = "redis://u:pw@10.0.0.7:6379/0", "redis://u:pw@cache.example:6380/1"
    assert secret(inside) == secret(outside)
    assert secret(inside) != secret("redis://u:other@10.0.0.7:6379/0")
    assert secret(inside, secret="a") == secret("redis://elsewhere/0", secret="a")
    assert secret(inside, secret="a") != secret(inside, secret="b")


def test_an_undecryptable_entry_is_a_miss_and_one_warning(
    join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    """A fleet half of which has a new secret keeps working; the log says so once."""
    old, new = join(), join(secret="another")
    slots = [Slot.run("run-1", f"key-{number}") for number in range(3)]
    for slot in slots:
        old.get(slot)
    with caplog.at_level(logging.WARNING, "celery_streams.credentials"):
        assert [new.get(slot).mint_id for slot in slots] == ["mint-2"] * 3
    assert len(caplog.records) == 1
    assert "CELERY_STREAMS_SECRET" in caplog.text


def test_whatever_lies_under_the_key_is_replaced(join: Join) -> None:
    """A corrupt entry costs one initialize, and the next process finds a good one."""
    member = join()
    member.link.client.set("cs/{run/run-1}/cred/default", b"\x01 nonsense")
    assert member.get(SLOT) == join().get(SLOT)
    assert member.authority.calls() == 1
