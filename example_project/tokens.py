"""Text in pieces, at the pace at which a language model gives them."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterable, Iterator

PACE_VARIABLE = "EXAMPLE_TOKENS_PER_SECOND"
_DEFAULT_PACE = 60.0
#: Line breaks with the indentation after them; words in pieces of up to seven letters with the
#: blank before them; punctuation; any other blank. Every character is in exactly one.
_TOKEN = re.compile(r"\n+ *| ?\w{1,7}| ?[^\w\s]{1,3}|\s")
_PAUSES = {".": 4.0, "!": 4.0, "?": 4.0, ",": 2.0, ":": 2.0}


def split(text: str) -> list[str]:
    """The tokens of ``text``; joined, they are ``text`` again."""
    return _TOKEN.findall(text)


def default_pace() -> float:
    """Tokens a second: the environment variable ``EXAMPLE_TOKENS_PER_SECOND``, else 60."""
    return float(os.environ.get(PACE_VARIABLE) or _DEFAULT_PACE)


def paced(tokens: Iterable[str], per_second: float | None = None) -> Iterator[str]:
    """Yield ``tokens`` unevenly, ``per_second`` on average; 0 for as fast as possible.

    Pauses are longer after punctuation, and vary as a model's do.
    """
    pace = default_pace() if per_second is None else per_second
    for token in tokens:
        if pace > 0:
            weight = _PAUSES.get(token.strip()[-1:], 0.85)
            time.sleep(weight * random.uniform(0.4, 1.6) / pace)
        yield token
