"""``streams.define``: what does not fit the type is refused where it is written."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery
from pydantic import BaseModel, ConfigDict, Field, computed_field

from celery_streams import InvalidChunk, InvalidName, OutsideTask, Streams
from tests.servers import ValkeyProcess


class Token(BaseModel):
    """A model with a constraint and a nested list."""

    text: str
    scores: list[float] = []
    rank: int = Field(default=0, ge=0)


@dataclass
class Row:
    """Any class pydantic validates will do."""

    id: int
    name: str


class Aliased(BaseModel):
    """A field with another name outside."""

    text: str = Field(alias="t")


class Strict(BaseModel):
    """What JSON has no type for comes back from the type it has."""

    model_config = ConfigDict(strict=True)
    tags: set[str]


class Computed(BaseModel):
    """A value that is written by nobody and taken from nobody."""

    model_config = ConfigDict(extra="forbid")
    word: str

    @computed_field
    @property
    def length(self) -> int:
        return len(self.word)


@pytest.fixture
def streams(valkey: ValkeyProcess) -> Iterator[Streams]:
    """Streams of an app that executes tasks where they are called."""
    app = Celery(f"typed-{uuid.uuid4().hex}", set_as_current=False)
    app.conf.task_always_eager = True
    streams = Streams(app, url=valkey.url, secret="test secret")

    @app.task(bind=True, name="write", shared=False)
    def write(self: Any, key: str, kind: Any, values: list[Any]) -> list[str]:
        tokens = streams.define(key, kind)
        refused = []
        for value in values:
            try:
                tokens.write(value)
            except InvalidChunk as error:
                refused.append(f"{error.path}: {error}")
        return refused

    yield streams
    streams.close()


def _write(streams: Streams, kind: Any, values: list[Any]) -> tuple[str, list[str]]:
    app: Any = streams._app
    result = app.tasks["write"].apply(("tokens", kind, values))
    return result.id, result.get()


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Token, [Token(text="a"), Token(text="b", scores=[0.5], rank=3)]),
        (Row, [Row(1, "a"), Row(2, "b")]),
        (int | str, [1, "a", 2]),
        (list[Token], [[Token(text="a")], []]),
        (dict[str, int], [{"a": 1}]),
        (Aliased, [Aliased(t="a")]),
        (Strict, [Strict(tags={"a", "b"})]),
        (Computed, [Computed(word="abc")]),
    ],
)
def test_what_was_written_is_read_as_its_type(
    streams: Streams, kind: Any, values: list[Any]
) -> None:
    """Models, dataclasses, unions and containers come back equal, sync and async."""
    run_id, refused = _write(streams, kind, values)
    assert refused == []
    typed = streams.define("tokens", kind)
    assert list(typed.read(run_id, timeout=5)) == values

    async def read() -> list[Any]:
        return [value async for value in typed.aread(run_id, timeout=5)]

    assert asyncio.run(read()) == values


@pytest.mark.parametrize(
    ("kind", "bad", "path"),
    [
        (Token, {"text": "a", "scores": [0.5, "x"]}, "$.scores[1]"),
        (Token, {"text": "a", "rank": -1}, "$.rank"),
        (Token, "text", "$"),
        (Row, {"id": "x", "name": "a"}, "$.id"),
        (int | str, 1.5, "$"),
        (list[Token], [{"text": "a"}, {}], "$[1].text"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_and_the_next_one_written(
    streams: Streams, kind: Any, bad: Any, path: str
) -> None:
    """The error names the stream and the place; nothing of the value is written."""
    good: Any = {Token: Token(text="good"), Row: Row(1, "good")}.get(kind, [])
    good = "good" if kind == int | str else good
    run_id, refused = _write(streams, kind, [bad, good])
    (message,) = refused
    assert message.startswith(path)
    assert "does not fit the stream 'tokens'" in message
    assert list(streams.define("tokens", kind).read(run_id, timeout=5)) == [good]


def test_a_typed_reader_resumes_like_any_other(streams: Streams) -> None:
    """It says where it stands and how the stream ended, and can be closed."""
    run_id, _ = _write(streams, int, [0, 1, 2])
    tokens = streams.define("tokens", int)
    with tokens.read(run_id, timeout=5) as reader:
        assert next(reader) == 0
    again = tokens.read(run_id, offset=reader.offset, timeout=5)
    assert (list(again), again.offset, again.closed) == ([1, 2], 3, "SUCCESS")


def test_a_stored_chunk_of_an_older_type_is_named_when_it_is_read(streams: Streams) -> None:
    """A reader with another type gets an error at that chunk, not a wrong value."""
    run_id, _ = _write(streams, int | str, ["text"])
    with pytest.raises(InvalidChunk, match="a stored chunk does not fit the stream 'tokens'"):
        list(streams.define("tokens", Token).read(run_id, timeout=5))


def test_a_typed_stream_has_a_valid_key_and_writes_inside_tasks_only(streams: Streams) -> None:
    """Its key is checked when it is defined."""
    with pytest.raises(InvalidName, match=r"stream key '\.\./x'"):
        streams.define("../x", Token)
    with pytest.raises(OutsideTask, match=r"streams\.write_to"):
        streams.define("tokens", Token).write(Token(text="a"))


class Raw(BaseModel):
    """A model whose bytes JSON cannot carry."""

    data: bytes


@pytest.mark.parametrize(("kind", "value"), [(Any, object()), (Raw, Raw(data=b"\xff\xfe"))])
def test_a_value_that_cannot_be_serialized_is_refused(
    streams: Streams, kind: Any, value: Any
) -> None:
    """Fitting the type is not enough: what pydantic cannot write is a clear error, too."""
    with pytest.raises(InvalidChunk, match="cannot be serialized"):
        streams.define("raw", kind)._fitting(value)
