"""Chunks to bytes and back: serialization, its limits, and how a batch is framed.

A batch of JSON chunks is newline-delimited JSON: compact JSON contains no raw newline, so a
batch splits without parsing and costs one byte a chunk. A batch of text or bytes chunks
carries a 4-byte big-endian length before each.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import from_json, to_json

from celery_streams.contracts import JSON
from celery_streams.errors import ChunkTooLarge, ConfigurationError, InvalidChunk
from celery_streams.slots import Slot

_LENGTH = 4
#: First letters of the words for what JSON cannot carry, NaN and Infinity. `in` finds an
#: integer in bytes with one memchr; bytes in bytes take ten times as long on a short chunk.
_N, _I = b"NI"
#: Digits that Python parses into an integer, by default.
_LONGEST_INT = 4300
_LONG_INT = re.compile(rb"\d{%d}" % (_LONGEST_INT + 1))
#: Types that cannot hold a model, in which pydantic may write null for NaN.
_SCALARS = frozenset({str, int, bool, type(None)})
#: The usual types of chunks: no iterators, which would be consumed like lists.
_PLAIN = frozenset({str, dict, list, tuple, int, float, bool, type(None)})
#: How deep the search for the value that cannot be serialized goes.
_MAX_DEPTH = 100

Encoder = Callable[[Any], bytes]


def encode_json(chunk: object) -> bytes:
    """Compact JSON of a plain value, dataclass or pydantic model.

    Keys that are no strings become strings, as pydantic writes them; two that become the same one
    are both written, and readers keep the last. To look at the outermost keys alone would make
    ``write()`` a tenth slower.

    Raises:
        InvalidChunk: JSON cannot carry it (an unknown type, NaN, infinity, a lone surrogate, a
            cycle); the message and ``path`` say where in the chunk.
    """
    if type(chunk) not in _PLAIN and isinstance(chunk, Iterator):
        raise InvalidChunk(
            f"a chunk is one value, and {type(chunk).__name__} yields several; write them with "
            "pipe() or a writer's merge()"
        )
    try:
        data = to_json(chunk)
    except Exception:
        if culprit := _culprit(chunk, "$", 0):
            path, reason = culprit
            message = f"JSON cannot carry the value at {path}: {reason}"
            raise InvalidChunk(message, path=path) from None
        raise  # not the chunk's fault: a soft time limit struck just there
    if (
        _N in data
        or _I in data
        or len(data) > _LONGEST_INT
        or (type(chunk) not in _SCALARS and b"null" in data)
    ):
        _check_readable(chunk, data)
    return data


def encode_text(chunk: object) -> bytes:
    """UTF-8 of a string, for a ``text/*`` stream. Raises :class:`InvalidChunk`."""
    if not isinstance(chunk, str):
        raise InvalidChunk(f"a text stream takes str chunks, not {type(chunk).__name__}")
    try:
        return chunk.encode()
    except UnicodeEncodeError as error:
        raise InvalidChunk(f"the text cannot be encoded as UTF-8: {error}") from None


def encode_bytes(chunk: object) -> bytes:
    """A bytes-like chunk as it is. Raises :class:`InvalidChunk`."""
    if not isinstance(chunk, (bytes, bytearray, memoryview)):
        raise InvalidChunk(f"a binary stream takes bytes chunks, not {type(chunk).__name__}")
    return bytes(chunk)


def encoder_for(content_type: str) -> Encoder:
    """The function that turns a chunk of such a stream into bytes."""
    if content_type == JSON:
        return encode_json
    if "/" not in content_type:
        raise ConfigurationError(
            f"{content_type!r} is not a content type; use {JSON}, text/plain or another "
            "type/subtype"
        )
    return encode_text if content_type.startswith("text/") else encode_bytes


def too_large(data: bytes, limit: int, slot: Slot) -> ChunkTooLarge:
    """The error for a serialized chunk over the limit."""
    kind = _type_of(data)
    described = f" of type {kind!r}" if kind else ""
    return ChunkTooLarge(
        f"a chunk{described} for {slot} has {len(data)} bytes; the limit is {limit} "
        "(CELERY_STREAMS_MAX_CHUNK_BYTES). Write it in smaller pieces, or store it elsewhere "
        "and write a reference",
        size=len(data),
        limit=limit,
        chunk_type=kind,
    )


def frame(chunks: Sequence[bytes], content_type: str) -> bytes:
    """One payload of several chunks; :func:`unframe` takes it apart."""
    if content_type == JSON:
        return b"\n".join(chunks)
    return b"".join(len(chunk).to_bytes(_LENGTH, "big") + chunk for chunk in chunks)


def unframe(payload: bytes, content_type: str) -> list[bytes]:
    """The serialized chunks of one payload, in order."""
    if content_type == JSON:
        return payload.split(b"\n")
    return list(_unframe_sized(payload))


def decode(data: bytes, content_type: str) -> Any:
    """A chunk as its reader sees it: a JSON value, a string or bytes."""
    if content_type == JSON:
        try:
            return from_json(data)
        except ValueError:
            return json.loads(data)  # takes deeper nesting
    return data.decode() if content_type.startswith("text/") else data


def _unframe_sized(payload: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(payload):
        start = at + _LENGTH
        at = start + int.from_bytes(payload[at:start], "big")
        yield payload[start:at]


def _type_of(data: bytes) -> str | None:
    try:
        value = json.loads(data)
    except ValueError:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None


def _check_readable(chunk: object, data: bytes) -> None:
    """Refuse what was serialized, but is not JSON or cannot be read back."""
    constant = b"NaN" in data or b"Infinity" in data  # or part of a string
    if (constant or b"null" in data) and (found := _non_finite(chunk)):
        path, value = found
        raise InvalidChunk(f"JSON cannot carry {value!r} at {path}", path=path)
    if constant or (len(data) > _LONGEST_INT and _LONG_INT.search(data)):
        try:
            json.loads(data, parse_constant=_refuse)
        except ValueError as error:
            raise InvalidChunk(f"JSON cannot carry a value in the chunk: {error}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"it contains {constant}")


def _culprit(value: object, path: str, depth: int) -> tuple[str, str] | None:
    """The path of the innermost value that does not serialize, and why."""
    if depth > _MAX_DEPTH:
        return path, "it is nested too deeply or contains itself"
    for step, child in _children(value):
        if found := _culprit(child, path + step, depth + 1):
            return found
    try:
        to_json(value)
    except Exception as error:
        if "surrogate" in str(error):
            return path, "the string contains a lone surrogate"
        return path, f"{type(value).__name__} is not serializable ({error})"
    return None


def _non_finite(value: object, path: str = "$") -> tuple[str, float] | None:
    if isinstance(value, float) and not math.isfinite(value):
        return path, value
    if isinstance(value, BaseModel) and "ser_json_inf_nan" in value.model_config:
        return None  # it says itself what to make of them
    for step, child in _children(value):
        if found := _non_finite(child, path + step):
            return found
    return None


def _children(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        yield from ((_step(key), key) for key in value if not isinstance(key, (int, bool)))
        yield from ((_step(key), child) for key, child in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"[{place}]", child) for place, child in enumerate(value))
    elif isinstance(value, BaseModel):
        yield from ((f".{name}", child) for name, child in value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield f".{field.name}", getattr(value, field.name)


def _step(key: object) -> str:
    text = str(key)
    return f".{text}" if text.isprintable() else f"[{text!a}]"
