"""Streams of one type: ``streams.define("tokens", Token)``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from celery_streams.contracts import Offset
from celery_streams.errors import InvalidChunk
from celery_streams.slots import check_name
from celery_streams.task.current import run_streams

if TYPE_CHECKING:
    from celery_streams.app import Streams

T = TypeVar("T")


class TypedStream(Generic[T]):
    """The stream ``key`` of any run, whose chunks are all of one type."""

    def __init__(self, owner: Streams, key: str, kind: type[T]) -> None:
        self.key = check_name(key, "stream key")
        self._owner = owner
        self._adapter: TypeAdapter[T] = TypeAdapter(kind)

    def write(self, value: T, *, target: str = "self") -> None:
        """Queue one value inside a task; never a round trip.

        Raises:
            InvalidChunk: ``value`` does not fit the type; nothing was written.
        """
        run_streams().write(self._fitting(value), key=self.key, target=target)

    def append(self, value: T, *, target: str = "self", timeout: float | None = None) -> int:
        """Write one value, wait until it is durable, return its sequence number."""
        streams = run_streams()
        return streams.append(self._fitting(value), key=self.key, target=target, timeout=timeout)

    def read(self, run_id: str, *, offset: Offset = 0, timeout: float | None = 60.0) -> Iterator[T]:
        """Iterate over the run's values, as :meth:`celery_streams.Streams.read` does.

        Raises:
            InvalidChunk: a stored chunk does not fit the type (an older version wrote it).
        """
        for chunk in self._owner.read(run_id, self.key, offset=offset, timeout=timeout):
            yield self._parsed(chunk)

    async def aread(
        self, run_id: str, *, offset: Offset = 0, timeout: float | None = 60.0
    ) -> AsyncIterator[T]:
        """:meth:`read` for an event loop."""
        async for chunk in self._owner.aread(run_id, self.key, offset=offset, timeout=timeout):
            yield self._parsed(chunk)

    def _fitting(self, value: T) -> Any:
        try:
            return self._adapter.dump_python(self._adapter.validate_python(value), mode="json")
        except ValidationError as error:
            raise self._refusal(error, "the value") from None
        except (PydanticSerializationError, UnicodeError) as error:
            raise InvalidChunk(
                f"the value for the stream {self.key!r} cannot be serialized: {error}"
            ) from None

    def _parsed(self, chunk: Any) -> T:
        try:
            return self._adapter.validate_python(chunk)
        except ValidationError as error:
            raise self._refusal(error, "a stored chunk") from None

    def _refusal(self, error: ValidationError, what: str) -> InvalidChunk:
        first = error.errors(include_url=False)[0]
        path = "$" + "".join(
            f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"]
        )
        return InvalidChunk(
            f"{what} does not fit the stream {self.key!r}: {first['msg']} at {path}"
            + (f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""),
            path=path,
        )
