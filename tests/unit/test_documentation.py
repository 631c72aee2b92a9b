"""The example's assistant: what it answers, what it refuses to import, how it cuts text."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from example_project import audit, tokens
from example_project.documentation import UnknownTopic, answer, resolve, topic_of
from tests.workers import ROOT


@pytest.mark.parametrize(
    ("question", "topic"),
    [
        ("json.dumps", "json.dumps"),
        ("asyncio", "asyncio"),
        ("what does functools.lru_cache do?", "functools.lru_cache"),
        ("Is `str.split` any good?", "str.split"),
        ("How do I open a file with pathlib?", "pathlib"),
        ("How do I print all of them?", "print"),
        ("xml.etree.ElementTree", "xml.etree.ElementTree"),
    ],
)
def test_a_question_in_english_is_about_the_most_specific_name_in_it(
    question: str, topic: str
) -> None:
    """Quoted before dotted before modules before builtins; English words come last."""
    assert topic_of(question).name == topic


@pytest.mark.parametrize(
    "name",
    [
        "antigravity", "this", "idlelib.idle", "test.regrtest", "tkinter", "turtledemo",
        "pytest", "celery", "example_project.app", "_thread", "json.__builtins__",
        "os.path/../x", "", "json.", "json..dumps", "sys.modules.antigravity",
    ],
)  # fmt: skip
def test_nothing_but_harmless_standard_modules_can_be_named(name: str) -> None:
    """Modules that act when imported, other people's, and private names are all unknown."""
    with pytest.raises(UnknownTopic):
        resolve(name)


def test_asking_about_a_module_that_acts_does_not_import_it() -> None:
    """A fresh interpreter asked about ``this`` and ``antigravity`` prints and imports nothing."""
    code = (
        "import sys; from example_project.documentation import answer\n"
        "answer('import this'); answer('antigravity'); answer('import celery')\n"
        "assert not {'this', 'antigravity', 'celery'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_an_answer_has_signature_summary_details_and_neighbours() -> None:
    """All four parts of the answer about ``json.dumps``."""
    text = answer("json.dumps")
    assert text.startswith("# json.dumps\n\n*function of json*\n\n```python\njson.dumps(\n")
    assert "    *,\n    skipkeys=False" in text, "keyword-only arguments are marked as such"
    assert "Serialize `obj` to a JSON formatted `str`." in text
    assert "## In detail" in text
    assert "- `json.dump`: " in text


def test_a_question_about_nothing_gets_suggestions() -> None:
    """A misspelt name is answered with names like it, not with an error."""
    assert "`json.dumps`" in answer("json.dmps")
    assert "`json`" in answer("jsn")
    assert "I am sorry" in answer("")


def test_every_standard_module_can_be_asked_about() -> None:
    """No answer raises, whatever a module's documentation looks like."""
    for name in ("asyncio", "builtins", "collections.abc", "enum", "os", "re", "sys", "typing"):
        text = answer(name)
        assert text.startswith(f"# {name}\n")
        assert len(text) < 6000


@given(st.text())
def test_tokens_joined_are_the_text(text: str) -> None:
    """Cutting into tokens loses and changes nothing."""
    assert "".join(tokens.split(text)) == text


def test_tokens_are_as_small_as_a_models() -> None:
    """No token is longer than a short word."""
    pieces = tokens.split(answer("asyncio"))
    assert len(pieces) > 50
    assert max(len(piece.strip()) for piece in pieces) <= 7


def test_pacing_changes_nothing_but_the_time() -> None:
    """Paced or not, the same tokens come in the same order."""
    pieces = tokens.split("One, two. Three!")
    assert list(tokens.paced(pieces, 0)) == list(tokens.paced(pieces, 5000)) == pieces


def test_the_audit_counts_lost_and_duplicated_chunks() -> None:
    """The demo's table would show what is missing and what came twice."""
    assert audit.differences("abcd", "abcd") == (0, 0)
    assert audit.differences("abcd", "abd") == (1, 0)
    assert audit.differences("abcd", "abbcd") == (0, 1)
    assert audit.differences([{"n": 1}, {"n": 2}], [{"n": 1}, {"n": 3}]) == (1, 1)


def test_the_audit_is_not_content_with_the_right_sum_of_initializes() -> None:
    """Two for one slot and none for another are not one each; unknown slots are shown."""
    checked = [audit.check("act", slot, "ab", "ab") for slot in ("one", "two")]
    (good,) = audit.rows(checked, {"one": 1, "two": 1})
    assert good.good
    (uneven,) = audit.rows(checked, {"one": 2})
    assert not uneven.good
    assert not audit.rows(checked, {"one": 1, "two": 1, "three": 1})[-1].good


def test_percentiles_are_values_that_were_measured() -> None:
    """The demo's p50 and p99 are the smallest values that so many do not exceed."""
    assert audit.percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert audit.percentile(list(map(float, range(100))), 0.99) == 98.0
