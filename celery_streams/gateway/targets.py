"""What a URL names: :class:`Target`."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from celery_streams.errors import InvalidName
from celery_streams.gateway.problems import Problem
from celery_streams.slots import Slot
from celery_streams.tokens import resource_of

STREAM_ROOT = "/v1/stream/"
#: First segment of the protocol's own paths (PROTOCOL 6).
RESERVED = "__ds"


@dataclass(frozen=True, slots=True)
class Target:
    """A stream, and the resource a token must be good for."""

    slot: Slot
    resource: str
    path: str

    @property
    def awaited(self) -> bool:
        """Whether a reader may come before the stream: its task will open it."""
        return self.slot.scope != "path"


def parse_target(path: str) -> Target:
    """The stream at ``path``, relative to the stream root, decoded.

    Raises:
        Problem: 400 for a path that names no stream.
    """
    if path.partition("/")[0] == RESERVED:
        raise Problem(404, "not-found", "there is no such control resource")
    try:
        slot = Slot.at(path)
    except InvalidName as error:
        raise Problem(400, "invalid-path", str(error)) from None
    return Target(slot, resource_of(slot), path)


def parse_reference(reference: str, root_path: str) -> Target:
    """The stream a header refers to by the path of its URL (``Stream-Forked-From``)."""
    path = unquote(reference)
    for prefix in (root_path + STREAM_ROOT, STREAM_ROOT):
        if path.startswith(prefix):
            return parse_target(path.removeprefix(prefix))
    raise Problem(
        400, "invalid-source", f"Stream-Forked-From must be a path below {root_path}{STREAM_ROOT}"
    )
