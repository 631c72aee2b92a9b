"""The transports of the AI SDK and of Durable Streams, unmodified, in Node, on a real agent."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_streams import Streams
from celery_streams.chat.chunks import MODELS, Data
from tests.chat.client import serving_agents
from tests.gateway.serving import Gateway
from tests.servers import ValkeyProcess
from tests.workers import BROKER_DB, ROOT, Worker

HERE = Path(__file__).resolve().parent / "node"
BUILD = ROOT / "build" / "transports"
SECRET = "the transports' secret"


def node_missing() -> str:
    """Why there is no Node to run with; empty if there is."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return "Node and npm are not installed (make nodejs)"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True)
    if int(version.stdout.lstrip("v").split(".")[0]) < 20:
        return f"Node {version.stdout.strip()} is too old; 20 or newer is needed"
    return ""


@pytest.fixture(scope="module")
def packages() -> Path:
    """Our files beside the packages they need, in ``build``."""
    if reason := node_missing():
        if os.environ.get("CI") or os.environ.get("REQUIRE_NODE"):
            pytest.fail(f"{reason} (CI or REQUIRE_NODE is set)", pytrace=False)
        pytest.skip(reason)
    BUILD.mkdir(parents=True, exist_ok=True)
    manifest = (HERE / "package.json").read_text()
    current = BUILD / "package.json"
    if not (BUILD / ".installed").exists() or current.read_text() != manifest:
        shutil.rmtree(BUILD / "node_modules", ignore_errors=True)
        current.write_text(manifest)
        command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"]
        subprocess.run(command, cwd=BUILD, check=True, timeout=300)
        (BUILD / ".installed").touch()
    for file in HERE.glob("*.mjs"):
        shutil.copy(file, BUILD)
    return BUILD


def members(model: Any) -> dict[str, bool]:
    """A model's members as they are on the wire, and whether each must be there."""
    found = {}
    for name, field in model.model_fields.items():
        required = name == "type" or field.is_required()
        found[field.alias or name] = required
    return found


@pytest.fixture(scope="module")
def guarded(agents: Worker) -> Iterator[Gateway]:
    """A gateway that asks for tokens, and closes connections early."""
    env = {"CELERY_STREAMS_SECRET": SECRET, "CELERY_STREAMS_GATEWAY_SSE_LIFETIME": "1.5"}
    with serving_agents(agents, "--host", "127.0.0.1", **env) as gateway:
        yield gateway


@pytest.fixture
def stage(store: ValkeyProcess, agents: Worker, guarded: Gateway) -> Iterator[dict[str, Any]]:
    """What the tests in Node are told: where everything is, and tokens for chats of their own."""
    app = Celery("the transports", set_as_current=False)
    streams = Streams(app, url=agents.streams_url, secret=SECRET)
    chats = [uuid.uuid4().hex for _ in range(40)]
    yield {
        "url": f"http://127.0.0.1:{guarded.port}",
        "chats": [[chat, streams.session(chat).token()] for chat in chats],
        "redis": {"host": "127.0.0.1", "port": store.port, "db": BROKER_DB},
        "models": {
            **{kind: members(model) for kind, model in MODELS.items()},
            "data-": members(Data),
        },
    }
    streams.close()
    app.close()


@pytest.mark.timeout(400)  # npm may have to install the packages
@pytest.mark.parametrize("name", ["schema", "default", "durable"])
def test_an_unmodified_transport_works(packages: Path, stage: dict[str, Any], name: str) -> None:
    """Every test of one of the files in ``tests/chat/node``; none is skipped."""
    done = subprocess.run(
        ["node", "--test", "--test-reporter=tap", f"{name}.test.mjs"],
        cwd=packages, env={**os.environ, "TRANSPORTS_STAGE": json.dumps(stage)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    told = dict(re.findall(r"^# (tests|pass|skipped|todo|cancelled) (\d+)$", done.stdout, re.M))
    wanted = (HERE / f"{name}.test.mjs").read_text().count("\ntest(")
    assert done.returncode == 0, done.stdout + done.stderr
    assert wanted > 0
    assert (told["pass"], told["skipped"], told["todo"]) == (str(wanted), "0", "0"), done.stdout
