"""Bad input: a clear error, nothing half-written, and the next write works."""

from __future__ import annotations

import copy
import inspect
import json
import math
import pickle
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, repeat
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from celery_streams import (
    ChunkTooLarge,
    ConfigurationError,
    InvalidChunk,
    InvalidName,
    InvalidOffset,
    ReadTimeout,
    Slot,
    StreamError,
    StreamNotFound,
    Streams,
    Writer,
    WriteTimeout,
    errors,
)
from celery_streams.chunks import decode, encode_json, encoder_for, frame, unframe
from celery_streams.contracts import JSON
from celery_streams.redis.layout import Layout
from celery_streams.slots import MAX_NAME_BYTES, check_name
from tests.lifecycle.client import chunks_of
from tests.servers import ValkeyProcess


class Model(BaseModel):
    """Anything goes."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    value: Any = None
    items: list[Any] = []


class Nulls(BaseModel):
    """A model that says what NaN is to become."""

    model_config = ConfigDict(ser_json_inf_nan="null")
    value: float


@dataclass
class Data:
    """A dataclass around it."""

    value: Any
    more: dict[str, Any] = field(default_factory=dict)


def _cyclic() -> list[Any]:
    cycle: list[Any] = []
    cycle.append({"again": cycle})
    return cycle


@pytest.fixture
def streams(valkey: ValkeyProcess) -> Iterator[Streams]:
    """Streams with a small chunk limit."""
    streams = Streams(url=valkey.url, secret="test secret", max_chunk_bytes=1000)
    yield streams
    streams.close()


@pytest.fixture
def writer(streams: Streams) -> Writer:
    """A writer whose stream has one chunk."""
    writer = streams.write_to(uuid.uuid4().hex, create=True)
    writer.append("before")
    return writer


def _refuses(streams: Streams, writer: Writer, write: Callable[[], object], kind: type) -> Any:
    """The error of a refused write; nothing of it is stored, and the next write works."""
    with pytest.raises(kind) as raised:
        write()
    writer.write("after")
    writer.wait()
    assert chunks_of(streams, writer.slot) == ["before", "after"]
    assert isinstance(raised.value, StreamError)
    return raised.value


@pytest.mark.parametrize(
    ("chunk", "path", "reason"),
    [
        (object(), "$", "object is not serializable"),
        ({"a": [1, {"b": object()}]}, "$.a[1].b", "object is not serializable"),
        ([0, (1, {2, 3}, lambda: 0)], "$[1][2]", "function is not serializable"),
        (Model(items=[1, object()]), "$.items[1]", "object is not serializable"),
        (Data({"x": object()}), "$.value.x", "object is not serializable"),
        (Data(1, {"deep": [Model(value=object())]}), "$.more.deep[0].value", "not serializable"),
        ({"a": [math.nan]}, "$.a[0]", "nan"),
        (math.inf, "$", "inf"),
        (Model(value=[1.0, -math.inf]), "$.value[1]", "-inf"),
        ({"m": Model(value=math.nan)}, "$.m.value", "nan"),
        (Data(math.nan), "$.value", "nan"),
        ("\ud800", "$", "lone surrogate"),
        ({"text": ["fine", "broken \udfff"]}, "$.text[1]", "lone surrogate"),
        ({"\ud800": 1}, "$['\\ud800']", "lone surrogate"),
        (b"\xff\xfe", "$", "bytes is not serializable"),
        (_cyclic(), "$[0].again", "contains itself"),
    ],
)
def test_a_value_json_cannot_carry_is_refused_with_its_path(
    streams: Streams, writer: Writer, chunk: object, path: str, reason: str
) -> None:
    """However deep, and in whatever it is wrapped."""
    for write in (writer.write, writer.append):
        with pytest.raises(InvalidChunk):
            write(chunk)
    error = _refuses(streams, writer, lambda: writer.write(chunk), InvalidChunk)
    assert error.path.startswith(path)
    assert reason in str(error)
    assert error.path in str(error)
    assert isinstance(error, TypeError)


@pytest.mark.parametrize(
    "chunk",
    ["NaN", {"NaN": "Infinity"}, ["-Infinity", None], "null", None, {"I": ["N", None]}],
)
def test_words_that_look_like_bad_numbers_are_fine(
    streams: Streams, writer: Writer, chunk: object
) -> None:
    """NaN, Infinity and null may be text, keys, or really null."""
    writer.append(chunk)
    assert chunks_of(streams, writer.slot) == ["before", chunk]
    assert encode_json(Nulls(value=math.nan)) == b'{"value":null}'


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_every_json_value_survives_a_round_trip_or_is_refused(value: Any) -> None:
    """Framed beside others, split, and decoded: equal, without a raw newline."""
    try:
        data = encode_json(value)
    except InvalidChunk as error:
        assert "inf" in str(error)  # noqa: PT017 - both outcomes are right
        return
    assert b"\n" not in data
    assert unframe(frame([data, b"1", data], JSON), JSON) == [data, b"1", data]
    assert decode(data, JSON) == json.loads(json.dumps(value))


def test_a_chunk_over_the_limit_is_refused_with_its_measures(
    streams: Streams, writer: Writer
) -> None:
    """Size, limit, the chunk's own type, the setting to change; at the limit it is fine."""
    chunk = {"type": "tool-result", "data": "x" * 1000}
    error = _refuses(streams, writer, lambda: writer.write(chunk), ChunkTooLarge)
    assert (error.size, error.limit, error.chunk_type) == (
        len(encode_json(chunk)),
        1000,
        "tool-result",
    )
    for piece in (str(error.size), "1000", "'tool-result'", "CELERY_STREAMS_MAX_CHUNK_BYTES"):
        assert piece in str(error)
    writer.append("x" * 998)
    with pytest.raises(ChunkTooLarge) as raised:
        writer.append("x" * 999)
    assert raised.value.chunk_type is None


@pytest.mark.parametrize(
    ("content_type", "bad", "reason"),
    [
        ("text/plain", 1, "takes str chunks, not int"),
        ("text/plain", b"x", "takes str chunks, not bytes"),
        ("text/plain", "\ud800", "cannot be encoded as UTF-8"),
        ("image/png", "x", "takes bytes chunks, not str"),
    ],
)
def test_text_and_binary_streams_take_their_kind_only(
    content_type: str, bad: object, reason: str
) -> None:
    """The error names both types."""
    with pytest.raises(InvalidChunk, match=reason):
        encoder_for(content_type)(bad)
    with pytest.raises(ConfigurationError, match="is not a content type"):
        encoder_for("plain")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "is empty"),
        ("x" * 256, "has 256 bytes; the limit is 255"),
        ("ü" * 128, "has 256 bytes"),
        ("..", "relative path segment"),
        ("../other", "reserved for keys and URL paths"),
        ("run}/x{y", "reserved for keys"),
        ("a\\b", "reserved for keys"),
        ("a\nb", "control"),
        ("a\x00", "control"),
        ("a\u202eb", "unprintable"),
        (" a", "blank"),
        ("\ud800", "lone surrogate"),
        (7, "must be a string, not int"),
        (None, "must be a string, not NoneType"),
        (b"x", "must be a string, not bytes"),
    ],
)
def test_a_name_that_could_escape_its_run_is_refused(
    streams: Streams, name: Any, reason: str
) -> None:
    """As a key, a run id and a session id; by whatever a name comes in."""
    for use in (
        lambda: streams.write_to("run", name, create=True),
        lambda: streams.write_to(name, create=True),
        lambda: streams.head(name),
        lambda: streams.read("run", name),
        lambda: streams.session(name),
    ):
        with pytest.raises(InvalidName, match=reason):
            use()


@given(st.text(max_size=300))
def test_whatever_name_is_accepted_stays_inside_its_run(name: str) -> None:
    """Accepted means: one segment of a key under the run's own hash tag, and of a URL path."""
    try:
        assert check_name(name, "key") == name
    except InvalidName:
        return
    assert 0 < len(name.encode()) <= MAX_NAME_BYTES
    assert not set(name) & set("{}/\\\n\r\0")
    layout = Layout("cs")
    slot = Slot.run("run", name)
    for key in (layout.meta(slot), layout.log(slot), layout.live(slot), layout.lock(slot)):
        assert key.startswith("cs/{run/run}/")
        assert key.count("{") == key.count("}") == 1
        assert key.count("/") == 4
        assert key.endswith(f"/{name}")
    assert Slot.run(name).owner == name


@pytest.mark.parametrize("offset", ["then", 1.5, None, True, "1", b"now", 2**60])
def test_an_offset_is_a_number_or_now(streams: Streams, offset: Any) -> None:
    """Refused where the reader is made, not when it is used."""
    with pytest.raises(InvalidOffset, match="neither an integer nor 'now'"):
        streams.read("run", offset=offset)


def test_a_run_that_does_not_exist_is_named_with_what_to_do(streams: Streams) -> None:
    """For each call that needs one."""
    for use in (
        lambda: streams.write_to("no-such-run"),
        lambda: streams.head("no-such-run"),
        lambda: streams.keys("no-such-run"),
    ):
        with pytest.raises(StreamNotFound, match="no-such-run"):
            use()


def _error_classes() -> list[type[StreamError]]:
    return [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, StreamError)
    ]


@pytest.mark.parametrize("kind", _error_classes())
def test_every_error_survives_pickle_and_copy_with_its_attributes(kind: type[StreamError]) -> None:
    """Errors travel from worker to client; Celery rebuilds them from their arguments, too."""
    values: dict[str, Any] = {"path": "$.a", "state": "SUCCESS", "chunk_type": "t"}
    names = [
        name
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    given = {name: values.get(name, 7) for name in names}
    error = kind("what happened", **given)
    error.unsent = 3
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == "what happened"
        assert again.unsent == 3
        assert {name: getattr(again, name) for name in names} == given
    assert str(kind(*error.args)) == "what happened"
    assert kind.__name__ in dir(__import__("celery_streams"))


def test_what_could_not_be_read_back_is_refused_where_it_is_written() -> None:
    """An integer of more digits than Python parses would block every reader of the stream."""
    with pytest.raises(InvalidChunk, match="digits"):
        encode_json({"a": 10**4400})
    assert decode(encode_json({"a": "1" * 5000}), JSON) == {"a": "1" * 5000}


def test_deep_nesting_is_read_back() -> None:
    """What the serializer takes, the reader takes."""
    value: object = 1
    for _ in range(240):
        value = [value]
    assert decode(encode_json(value), JSON) == value


@pytest.mark.parametrize(
    "chunk",
    [
        frozenset([float("nan")]),
        {"a": frozenset([math.nan])},
    ],
)
def test_nan_is_refused_in_whatever_it_hides(chunk: object) -> None:
    """Decided on the serialized bytes, so no container is forgotten."""
    with pytest.raises(InvalidChunk, match=r"NaN|Infinity|nan|inf"):
        encode_json(chunk)


@pytest.mark.parametrize("chunk", [iter([1, 2]), (number for number in range(3)), count()])
def test_an_iterator_is_no_chunk(chunk: object) -> None:
    """``write(source)`` is meant as ``pipe(source)``; an endless one would take all memory."""
    with pytest.raises(InvalidChunk, match=r"pipe\(\)"):
        encode_json(chunk)


def test_a_full_buffer_says_what_it_holds_at_most(unreachable: Streams) -> None:
    """Small chunks fill it by their number, long before its bytes are used up."""
    with pytest.raises(WriteTimeout, match="200000 chunks"):
        unreachable.write_to("full", create=True).merge(repeat(1))


@pytest.fixture
def unreachable() -> Iterator[Streams]:
    """Streams whose server is not there."""
    streams = Streams(url="redis://127.0.0.1:1/0", write_timeout=0.2, connect_timeout=0.2)
    yield streams
    with suppress(StreamError):
        streams.runtime.link.close()


def test_a_read_timeout_tells_a_name_nobody_has_written_to(valkey: ValkeyProcess) -> None:
    """From a stream that is silent: the id may be mistyped."""
    streams = Streams(url=valkey.url)
    with pytest.raises(ReadTimeout, match="there is no such stream yet"):
        next(streams.read("mistyped", timeout=0.2))
    with streams.write_to("silent", create=True) as writer:
        writer.write(1)
    with pytest.raises(ReadTimeout, match="the stream has not ended"):
        list(streams.read("silent", timeout=0.2))
    streams.close()


def test_a_name_in_the_apps_configuration_that_is_no_setting_is_refused() -> None:
    """With everything else that is wrong. The environment may have names of others'."""
    app = Celery("misspelt", set_as_current=False)
    app.conf.update(streams_retentoin=5, streams_retention=-1)
    with pytest.raises(ConfigurationError, match=r"RETENTION.*'retentoin'|'retentoin'.*RETENTION"):
        _ = Streams(app).settings


@pytest.mark.parametrize("name", ["retention", "orphan_timeout", "credentials_ttl", "lock_lease"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), "inf"])
def test_a_setting_is_a_finite_number(name: str, value: object) -> None:
    """Refused when it is read, not where it is first turned into milliseconds."""
    with pytest.raises(ConfigurationError, match=name.upper()):
        _ = Streams(None, **{name: value}).settings  # type: ignore[arg-type]
