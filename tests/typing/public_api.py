"""Checked by mypy, never run: what an editor tells a user about the public API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

from pydantic import BaseModel

from celery_streams import Head, Streams, Writer, WriteResult, current_chat, current_streams
from celery_streams.reading.reader import AsyncReader, Reader
from celery_streams.stats import Counts


class Token(BaseModel):
    text: str


streams = Streams()
tokens = streams.define("tokens", Token)


def inside_a_task() -> None:
    current_streams.write("token", key="default", target="root")
    assert_type(current_streams.append({"a": 1}), int)
    assert_type(current_streams.attempt, int)
    assert_type(current_streams.head("default"), Head)
    assert_type(current_streams.pipe(["a"]), Iterator[str])
    with current_streams.writer(key="k") as writer:
        assert_type(writer, Writer)
        assert_type(writer.merge(["a"]), int)
        assert_type(writer.wait(), WriteResult)
    tokens.write(Token(text="a"))
    tokens.write("a")  # type: ignore[arg-type]
    current_chat.response.write({"type": "text-delta"})
    assert_type(current_chat.session_id, str)


async def async_source() -> AsyncIterator[int]:
    yield 1


def pipe_async() -> None:
    assert_type(current_streams.pipe(async_source()), AsyncIterator[int])


def outside_a_task() -> None:
    assert_type(streams.read("run"), Reader)
    assert_type(streams.aread("run"), AsyncReader)
    assert_type(streams.keys("run"), list[str])
    assert_type(streams.write_to("run", "key"), Writer)
    assert_type(streams.stats(), Counts)
    assert_type(list(tokens.read("run")), list[Token])
    assert_type(streams.session("s").out.read(), Reader)
    chunk: Any
    for chunk in streams.read("run", offset="now"):
        print(chunk)
    streams.read("run", offset="later")  # type: ignore[arg-type]
