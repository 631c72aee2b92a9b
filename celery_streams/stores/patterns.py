"""Patterns over the paths of streams: ``*`` is one segment, ``**`` any number of them."""

from __future__ import annotations

from dataclasses import dataclass

from celery_streams.errors import InvalidName
from celery_streams.slots import MAX_PATH_BYTES, Scope, Slot, check_name

_WILD = ("*", "**")
_ROOTS: dict[str, Scope] = {"runs": "run", "sessions": "session"}


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern, taken apart. It is compared with ``str(slot)``: ``runs/<id>/<key>``,
    ``sessions/<id>/out``, or the path that a client has chosen."""

    segments: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read a pattern.

        Raises:
            InvalidName: it can match no stream, or part of a segment is a wildcard.
        """
        if len(text.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
            raise InvalidName(f"the pattern has more than {MAX_PATH_BYTES} bytes")
        segments: list[str] = []
        for segment in text.split("/"):
            if segment not in _WILD:
                check_name(segment, "pattern segment")
                if "*" in segment:
                    raise InvalidName(
                        f"pattern segment {segment!a}: * and ** stand for whole segments"
                    )
            elif segment == "**" and segments and segments[-1] == "**":
                continue  # says it twice
            segments.append(segment)
        return cls(tuple(segments))

    def matches(self, path: str) -> bool:
        """Whether the pattern covers ``path``. Takes their lengths' product at most."""
        names = path.split("/")
        # reached: the places of the pattern that what was looked at of the path can lead to.
        reached = self._past_stars({0})
        for name in names:
            after = set()
            for place in reached:
                if place < len(self.segments):
                    segment = self.segments[place]
                    if segment == "**":
                        after.add(place)
                    elif segment in ("*", name):
                        after.add(place + 1)
            reached = self._past_stars(after)
            if not reached:
                return False
        return len(self.segments) in reached

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """Where streams that it matches can be."""
        first = self.segments[0]
        if first in _WILD:
            return ("run", "session", "path")
        return (_ROOTS.get(first, "path"),)

    @property
    def literal(self) -> tuple[str, ...]:
        """The segments before the first wildcard."""
        for place, segment in enumerate(self.segments):
            if segment in _WILD:
                return self.segments[:place]
        return self.segments

    @property
    def shortest(self) -> int:
        """How many segments the shortest path has that it matches."""
        return sum(segment != "**" for segment in self.segments)

    def __str__(self) -> str:
        return "/".join(self.segments)

    def _past_stars(self, places: set[int]) -> set[int]:
        found = set(places)
        for place in places:
            while place < len(self.segments) and self.segments[place] == "**":
                place += 1
                found.add(place)
        return found


def slot_at(path: str) -> Slot:
    """The stream with the stream-root-relative ``path``.

    Raises:
        InvalidName: no stream can be there.
    """
    first, _, rest = path.partition("/")
    if first == "__ds":
        raise InvalidName("paths below __ds are reserved")
    if first == "runs":
        run_id, _, key = rest.partition("/")
        return Slot.run(run_id, key or "default")
    if first == "sessions":
        session_id, _, channel = rest.partition("/")
        return Slot.session(session_id, channel or "out")  # type: ignore[arg-type]
    return Slot.path(path)
