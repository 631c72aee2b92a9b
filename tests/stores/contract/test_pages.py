"""Long pages, which are read in two steps: whatever happens between them, they are sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from celery_streams.contracts import Page
from celery_streams.errors import OffsetGone, StreamError
from celery_streams.redis.client import Call
from celery_streams.slots import Slot
from celery_streams.stores.pages import FEW, PAGE_BYTES, SMALL
from tests.stores.contract.backend import SLOT, Backend, Hand, chunks_of

MANY = 3 * FEW
Action = Callable[[], object]


class Between:
    """Does something before the second step of the next page, or amid its two commands.

    The store's own link sends all commands; only the moment they are sent at is chosen here.
    """

    def __init__(self, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        self._link: Any = backend.link if backend.loop is None else backend.loop.inner._link
        self._send: Any = self._link.call_many
        self._asynchronous = backend.loop is not None
        self._moment = ""
        self._action: Action | None = None
        self.done = 0
        call_many = self._later if self._asynchronous else self._now
        monkeypatch.setattr(self._link, "call_many", call_many)

    def arrange(self, moment: str, action: Action) -> None:
        self._moment, self._action = moment, action

    def _now(self, calls: Sequence[Call[Any]], **options: Any) -> list[Any]:
        if self._action is None or calls[0].command != "XRANGE":
            found: list[Any] = self._send(calls, **options)
            return found
        if self._moment == "before":
            self._act()
            return self._now(calls)
        first = self._send(calls[:1])
        self._act()
        return [*first, *self._send(calls[1:])]

    async def _later(self, calls: Sequence[Call[Any]], **options: Any) -> list[Any]:
        if self._action is None or calls[0].command != "XRANGE":
            found: list[Any] = await self._send(calls, **options)
            return found
        if self._moment == "before":
            self._act()
            return await self._later(calls)
        first = await self._send(calls[:1])
        self._act()
        return [*first, *await self._send(calls[1:])]

    def _act(self) -> None:
        action, self._action = self._action, None
        assert action is not None
        self.done += 1
        action()


@pytest.fixture
def between(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Between:
    """The second step of the store's pages."""
    return Between(backend, monkeypatch)


@pytest.fixture
def elsewhere(backend: Backend) -> Iterator[Backend]:
    """Somebody else, with connections of its own; sync, as what is done in between has to be."""
    with Backend(backend.settings) as another:
        yield another


@pytest.fixture(params=["before", "amid"])
def moment(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def fill(backend: Backend, count: int = MANY) -> Hand:
    writer = backend.writer()
    for number in range(count):
        writer.append(number)
    return writer


def numbers(page: Page) -> list[Any]:
    return chunks_of(page.entries)


def test_a_long_page_is_what_several_short_ones_are(backend: Backend) -> None:
    """The limit counts all entries; a page may begin in a batch; the last one ends at the end."""
    writer = backend.writer()
    for number in range(0, 2 * MANY, 2):
        writer.append(number, number + 1)
    short = [backend.store.read(SLOT, at, limit=1).entries[0] for at in range(0, 2 * MANY, 2)]
    page = backend.store.read(SLOT, 0)
    assert list(page.entries) == short
    assert page.head == backend.store.head(SLOT)
    for limit in (FEW - 1, FEW, FEW + 1, MANY - 1):
        assert list(backend.store.read(SLOT, 0, limit=limit).entries) == short[:limit]
    assert chunks_of(backend.store.read(SLOT, 3).entries, offset=3) == list(range(3, 2 * MANY))


def test_a_long_page_takes_two_steps_and_a_short_one_takes_one(
    backend: Backend, between: Between
) -> None:
    """Whoever follows live pays one round trip; the other tests here test what they say."""
    fill(backend)
    between.arrange("before", lambda: None)
    backend.store.read(SLOT, MANY - FEW)
    assert between.done == 0
    backend.store.read(SLOT, 0)
    assert between.done == 1


def test_a_long_page_is_bounded_by_bytes_when_its_entries_grow(backend: Backend) -> None:
    """It ends with the entry that fills it, though the first ones promised room for many more."""
    writer = fill(backend, FEW)
    for _ in range(2 * PAGE_BYTES // SMALL):
        writer.append("x" * (SMALL - 2))
    page = backend.store.read(SLOT, 0, limit=4096)
    sizes = [len(entry.payload) for entry in page.entries]
    assert sum(sizes[:-1]) < PAGE_BYTES <= sum(sizes)
    assert [len(str(chunk)) for chunk in backend.chunks(offset=FEW)] == [SMALL - 2] * (
        2 * PAGE_BYTES // SMALL
    )


def test_what_a_second_step_can_bring_is_bounded(backend: Backend, between: Between) -> None:
    """A log with one entry that is large is read by bytes from its beginning on."""
    writer = fill(backend)
    writer.append("x" * SMALL)
    between.arrange("before", lambda: None)
    assert len(numbers(backend.store.read(SLOT, 0))) == MANY + 1
    assert between.done == 0


def test_an_append_in_between_is_no_part_of_the_page(
    backend: Backend, elsewhere: Backend, between: Between, moment: str
) -> None:
    """Entries and head are of one moment, that of the first step."""
    fill(backend)
    between.arrange(moment, lambda: elsewhere.writer().append("later"))
    page = backend.store.read(SLOT, 0)
    assert between.done == 1
    assert page.head is not None
    assert numbers(page) == list(range(MANY))
    assert page.head.end == MANY


def test_an_end_in_between_is_told_by_the_next_page(
    backend: Backend, elsewhere: Backend, between: Between, moment: str
) -> None:
    """A page that says the stream has ended has everything; this one does not say so."""
    writer = fill(backend)
    writer.store = elsewhere.store
    between.arrange(moment, writer.close)
    page = backend.store.read(SLOT, 0)
    assert between.done == 1
    assert page.head is not None
    assert (numbers(page), page.head.closed) == (list(range(MANY)), None)
    last = backend.store.read(SLOT, MANY).head
    assert last is not None
    assert last.closed == "CLOSED"


def test_a_trim_in_between_leaves_no_gap(backend: Backend, between: Between) -> None:
    """The page ends before what is gone; going on there says that it is."""
    fill(backend)
    fewer = backend.settings.model_copy(update={"max_chunks": 2 * FEW})
    with Backend(fewer) as elsewhere:
        writer = elsewhere.writer()
        between.arrange("before", lambda: [writer.append(n) for n in range(MANY, MANY + 16)])
        page = backend.store.read(SLOT, 0)
    assert between.done == 1
    assert numbers(page) == list(range(FEW))
    with pytest.raises(OffsetGone):
        backend.store.read(SLOT, FEW)


@pytest.mark.parametrize("again", [0, MANY // 2, MANY, 2 * MANY])
def test_a_stream_deleted_in_between_is_not_mixed_with_its_successor(
    backend: Backend, elsewhere: Backend, between: Between, moment: str, again: int
) -> None:
    """A page has chunks of the stream it began with only, whatever has its name by then."""
    fill(backend)

    def replace() -> None:
        elsewhere.store.delete(SLOT)
        if again:
            writer = elsewhere.writer()
            for number in range(again):
                writer.append(-number - 1)

    between.arrange(moment, replace)
    page = backend.store.read(SLOT, 0)
    assert between.done == 1
    assert page.head is not None
    found = numbers(page)
    assert found == list(range(len(found)))
    assert page.head.end == MANY
    assert len(found) in (FEW, MANY)


def test_a_second_step_that_fails_is_an_error(backend: Backend, between: Between) -> None:
    """What the server refuses is not taken for the end of the page."""
    fill(backend)
    client: Any = backend.link.client
    between.arrange("before", lambda: client.set(backend.layout.log(SLOT), "no stream"))
    with pytest.raises(StreamError, match="WRONGTYPE"):
        backend.store.read(SLOT, 0)
    assert between.done == 1


def test_the_largest_entry_is_known_from_the_first_one_on(backend: Backend) -> None:
    """The bound of a second step holds for the whole log, or there is none."""
    slot = Slot.session("chat")
    writer = backend.writer(slot)
    meta = backend.layout.meta(slot)
    client: Any = backend.link.client
    for size, largest in [(10, 12), (100, 102), (50, 102), (102, 104)]:
        writer.append("x" * size)
        assert int(client.hget(meta, "largest")) == largest
    client.hdel(meta, "largest")  # a log of before it was counted
    writer.append("x" * 10)
    assert client.hget(meta, "largest") is None
