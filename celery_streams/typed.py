"""Streams of one type: ``streams.define("tokens", Token)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from celery_streams.contracts import Offset
from celery_streams.errors import InvalidChunk
from celery_streams.slots import Slot, check_name
from celery_streams.task.current import run_streams

if TYPE_CHECKING:
    from celery_streams.app import Streams
    from celery_streams.reading.reader import AsyncReader, Reader

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

    def read(self, run_id: str, *, offset: Offset = 0, timeout: float | None = 60.0) -> Reader[T]:
        """Iterate over the run's values, as :meth:`celery_streams.Streams.read` does.

        Raises:
            InvalidChunk: a stored chunk does not fit the type (an older version wrote it).
        """
        self._owner.guard("read")
        slot = Slot.run(run_id, self.key)
        return self._owner.open_reader(slot, offset, timeout, self._parsed)

    def aread(
        self, run_id: str, *, offset: Offset = 0, timeout: float | None = 60.0
    ) -> AsyncReader[T]:
        """:meth:`read` for an event loop."""
        self._owner.guard("aread")
        slot = Slot.run(run_id, self.key)
        return self._owner.open_async_reader(slot, offset, timeout, self._parsed)

    def _fitting(self, value: T) -> Any:
        adapter = self._adapter
        try:
            # As it is read back: by the names that validation goes by, nothing computed.
            return adapter.dump_python(
                adapter.validate_python(value), mode="json", by_alias=True, round_trip=True
            )
        except ValidationError as error:
            raise self._refusal(error, "the value") from None
        except (PydanticSerializationError, UnicodeError) as error:
            raise InvalidChunk(
                f"the value for the stream {self.key!r} cannot be serialized: {error}"
            ) from None

    def _parsed(self, data: bytes, content_type: str) -> T:
        try:
            return self._adapter.validate_json(data)
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
