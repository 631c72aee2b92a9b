"""What of other people's text reaches a terminal."""

from __future__ import annotations

import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st

from celery_streams.cli.printer import harmless


@given(st.text() | st.text(st.characters(max_codepoint=0xA0)))
@example("\x1b]0;title\x07")
@example("\x9b2J")
@example("one\r\ntwo\rthree\ttab\n")
def test_no_control_character_is_left_but_tabs_and_line_ends(text: str) -> None:
    """C0, DEL and C1 are shown by their numbers; everything else stays as it is."""
    shown = harmless(text)
    assert all(each in "\n\t" or unicodedata.category(each) != "Cc" for each in shown)
    assert harmless(shown) == shown
    if not any(unicodedata.category(each) == "Cc" for each in text):
        assert shown == text
