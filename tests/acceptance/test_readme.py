"""README.md and docs/ are true: the example runs as written, names and links exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

import celery_streams
from celery_streams import Streams, StreamsSettings
from celery_streams.cli import streams as group
from celery_streams.stats import COUNTER_NAMES
from tests.servers import ValkeyProcess
from tests.servers.children import end, spawn
from tests.workers import ROOT

DOCS = sorted((ROOT / "docs").glob("*.md"))
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")


def _blocks(path: Path, language: str) -> list[str]:
    return [body for name, body in _BLOCK.findall(path.read_text()) if name == language]


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, str]:
    """An environment whose ``embedded://`` server is this test's own."""
    (tmp_path / "tmp").mkdir()
    ours = ("CELERY_", "OPENAI_", "EXAMPLE_")
    kept = {name: text for name, text in os.environ.items() if not name.startswith(ours)}
    return {**kept, "TMPDIR": str(tmp_path / "tmp"), "CELERY_STREAMS_EMBEDDED_IDLE": "2"}


def test_the_example_runs_as_written(tmp_path: Path, elsewhere: dict[str, str]) -> None:
    """The code block as a file, the worker and the script as the text says: the words arrive."""
    (code,) = _blocks(ROOT / "README.md", "python")
    (tmp_path / "words.py").write_text(code)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    log = tmp_path / "log"
    with log.open("wb") as output:
        worker = spawn(
            [sys.executable, "-m", "celery", "-A", "words", "worker", "--concurrency", "1"],
            cwd=tmp_path, env=elsewhere, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        # The worker may be up or not: a reader can come before its stream.
        done = subprocess.run(
            [sys.executable, "words.py"],
            cwd=tmp_path, env=elsewhere, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    finally:
        end(worker)
    assert done.stdout == "You asked: what is a stream? ", done.stderr + log.read_text()


def test_the_commands_it_names_exist() -> None:
    """``make`` targets are in the Makefile, pip's extras in pyproject.toml."""
    makefile = (ROOT / "Makefile").read_text()
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"make ([a-z-]+)", "\n".join(_blocks(ROOT / "README.md", "console"))))
    assert targets == {"demo", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for extra in re.findall(r"\[(\w+)\]'", text):
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", [ROOT / "README.md", *DOCS], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link names a file of the repository."""
    for target, _ in _LINK.findall(path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_code_in_the_docs_compiles(path: Path) -> None:
    """Every Python block is Python, and imports from the package only what it has."""
    for code in _blocks(path, "python"):
        compile(code, path.name, "exec")
        for names in re.findall(r"^from celery_streams import (.+)$", code, re.MULTILINE):
            for name in names.split(","):
                assert name.strip() in celery_streams.__all__, f"{path.name}: {name}"


def _table(heading: str) -> list[list[str]]:
    section = (ROOT / "docs" / "reference.md").read_text().split(f"## {heading}\n")[1]
    lines = section.split("\n## ")[0].splitlines()
    rows = [line.strip("|").split(" | ") for line in lines if line.startswith("| ")]
    return [[cell.strip().strip("`") for cell in row] for row in rows if "---" not in row[0]][1:]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_the_table_of_settings_is_complete_and_right() -> None:
    """Every setting, in order, with its default as the code has it."""
    documented = [(row[0], row[1]) for row in _table("Settings")]
    fields = StreamsSettings.model_fields
    assert documented == [(name, _shown(field.default)) for name, field in fields.items()]


def test_every_error_counter_and_command_is_documented() -> None:
    """What users can catch, read or type is in the reference."""
    errors = {
        name
        for name in celery_streams.__all__
        if isinstance(getattr(celery_streams, name), type)
        and issubclass(getattr(celery_streams, name), celery_streams.StreamError)
    }
    assert {row[0] for row in _table("Errors")} == errors
    text = (ROOT / "docs" / "reference.md").read_text()
    for name in (*COUNTER_NAMES, *(f"streams {command}" for command in group.commands)):
        assert f"`{name}" in text, name
    for name in celery_streams.__all__:
        assert name in text, name


def test_the_documented_acl_user_can_do_everything(tmp_path: Path) -> None:
    """The rules in docs/howto.md, as written, let ``doctor`` write and read on Valkey 9."""
    (rules,) = re.findall(r"^ACL SETUSER streams on >password (.+)$", _howto(), re.MULTILINE)
    with ValkeyProcess(aof=True, users={"streams": f">password {rules}"}) as server:
        app = Celery("acl", broker="memory://", set_as_current=False)
        streams = Streams(app, url=server.url_for("streams", "password"))
        context = CLIContext(app=app, no_color=True, workdir=None)
        done = CliRunner().invoke(group, ["doctor"], obj=context)
        streams.close()
    assert done.exit_code == 0, done.output
    assert "0 failed" in done.stdout


def test_settings_reach_streams_the_way_django_users_give_them() -> None:
    """``CELERY_STREAMS_...`` in an object of settings, by Celery's own namespace."""
    app = Celery("django-like", set_as_current=False)
    given = SimpleNamespace(CELERY_STREAMS_RETENTION=60, CELERY_BROKER_URL="memory://")
    app.config_from_object(given, namespace="CELERY")
    assert Streams(app).settings.retention == 60.0


def _howto() -> str:
    return (ROOT / "docs" / "howto.md").read_text()
