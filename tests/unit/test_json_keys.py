"""Keys of dictionaries that JSON has no keys for: what becomes of them is documented."""

from __future__ import annotations

import math
from typing import Any

import pytest

from celery_streams.chunks import decode, encode_json
from celery_streams.contracts import JSON
from celery_streams.errors import InvalidChunk


@pytest.mark.parametrize(
    ("chunk", "read"),
    [
        ({7: "a", 2.5: "b", True: "c"}, {"7": "a", "2.5": "b", "true": "c"}),
        ({None: 1, False: 2, b"a": 3}, {"None": 1, "false": 2, "a": 3}),
        ({(1, 2): 1, math.nan: 2}, {"1,2": 1, "nan": 2}),
        ({1: "a", "1": "b"}, {"1": "b"}),
    ],
)
def test_keys_that_are_no_strings_become_strings_as_the_reference_says(
    chunk: Any, read: Any
) -> None:
    """Without an error; of two that become the same one the last is read."""
    assert decode(encode_json(chunk), JSON) == read


@pytest.mark.parametrize("key", [object(), frozenset({1})])
def test_keys_that_have_no_text_are_refused(key: Any) -> None:
    """As the reference says."""
    with pytest.raises(InvalidChunk, match="JSON cannot carry"):
        encode_json({"outer": {key: 1}})
