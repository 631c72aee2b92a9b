"""docker-compose.yml cannot rot: its schema, its commands and its health checks are run."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from tests.s2.servers import INSTALLED
from tests.s2.servers import binary as s2_lite
from tests.servers.children import end, eventually, free_port, spawn
from tests.servers.process import ValkeyProcess
from tests.workers import ROOT

COMPOSE = ROOT / "docker-compose.yml"
_VARIABLE = re.compile(r"\$\$|\$\{(\w+)(?::-([^}]*))?\}")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file, with its variables replaced as compose does."""

    def value(match: re.Match[str]) -> str:
        name, default = match.groups()
        return "$" if name is None else os.environ.get(name) or default or ""

    loaded: dict[str, Any] = yaml.safe_load(_VARIABLE.sub(value, COMPOSE.read_text()))
    return loaded


class Service:
    """One service of the file, as a process on this machine."""

    def __init__(
        self, definition: dict[str, Any], port: int, directory: Path, s2_port: int = 0
    ) -> None:
        self._definition = definition
        self._port = port
        self._s2_port = s2_port
        self._directory = directory
        self.http_port = free_port()
        environment = definition.get("environment", {})
        self._env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOSTNAME": socket.gethostname(),
            **{name: self._local(text) for name, text in environment.items()},
        }

    def start(self) -> subprocess.Popen[bytes]:
        """Run the service's own command."""
        command = self._translated([self._local(word) for word in self._definition["command"]])
        with (self._directory / "log").open("ab") as log:
            return spawn(command, env=self._env, cwd=self._directory, stdout=log, stderr=log)

    def healthy(self) -> bool:
        """Run the service's own health check once."""
        kind, *words = self._definition["healthcheck"]["test"]
        if kind == "CMD-SHELL":
            words = ["sh", "-c", *words]
        command = self._translated([self._local(word) for word in words])
        check = subprocess.run(
            command, env=self._env, cwd=self._directory, capture_output=True, timeout=60
        )
        return check.returncode == 0

    @property
    def log(self) -> str:
        return (self._directory / "log").read_text(errors="replace")

    def _local(self, text: str) -> str:
        """The addresses of a container, on this machine."""
        here = text.replace("valkey:6379", f"127.0.0.1:{self._port}")
        here = here.replace("s2-lite:7070", f"127.0.0.1:{self._s2_port}")
        here = here.replace("7070", str(self._s2_port))
        here = re.sub("^/(data|s2-basins.json)$", rf"{self._directory}/\1", here)
        return here.replace("0.0.0.0", "127.0.0.1").replace("8080", str(self.http_port))

    def _translated(self, words: list[str]) -> list[str]:
        match words:
            case ["valkey-server", *rest]:
                port = ["--port", str(self._port), "--bind", "127.0.0.1"]
                return [ValkeyProcess.binary(), *rest, *port]
            case ["lite", *rest]:
                return [s2_lite(), *rest]
            case ["/app/s2", "list-basins"]:
                url = f"{self._env['S2_ACCOUNT_ENDPOINT']}/v1/basins"
                return [sys.executable, "-c", f"from urllib.request import *; urlopen('{url}')"]
            case ["valkey-cli", *rest]:
                return [
                    sys.executable,
                    "-m",
                    "tests.smoke.valkey_cli",
                    "-p",
                    str(self._port),
                    *rest,
                ]
        return words


@pytest.fixture
def port() -> int:
    """Where the services of one test find Valkey."""
    return free_port()


@pytest.fixture
def running_valkey(compose: dict[str, Any], port: int, tmp_path: Path) -> Iterator[Service]:
    """The service ``valkey``, healthy by its own check."""
    (tmp_path / "valkey").mkdir()
    service = Service(compose["services"]["valkey"], port, tmp_path / "valkey")
    assert not service.healthy(), "the health check says yes before there is a server"
    process = service.start()
    eventually(service.healthy, "valkey is healthy")
    yield service
    end(process)


def test_the_file_follows_the_compose_specification(tmp_path: Path) -> None:
    """Checked against the specification's JSON schema; a misspelt key would be found."""
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, str(COMPOSE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    broken = tmp_path / "broken.yml"
    broken.write_text(COMPOSE.read_text().replace("healthcheck:", "healthchek:"))
    assert subprocess.run([*check, str(broken)], capture_output=True).returncode != 0


def test_every_service_has_a_health_check_and_a_reachable_dependency(
    compose: dict[str, Any],
) -> None:
    """Each service can be waited for, and waits for services that exist."""
    services = compose["services"]
    for service in services.values():
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
        for name, how in service.get("depends_on", {}).items():
            assert name in services
            assert how == {"condition": "service_healthy"}


def test_valkey_becomes_healthy_and_writes_its_log(running_valkey: Service, tmp_path: Path) -> None:
    """The service's command starts a server that persists."""
    assert running_valkey.healthy()
    assert (tmp_path / "valkey" / "appendonlydir").is_dir()


def test_the_worker_becomes_healthy_beside_valkey(
    compose: dict[str, Any], running_valkey: Service, port: int, tmp_path: Path
) -> None:
    """The worker's command and health check, with only the addresses replaced."""
    (tmp_path / "worker").mkdir()
    service = Service(compose["services"]["worker"], port, tmp_path / "worker")
    process = service.start()
    try:
        eventually(
            lambda: process.poll() is not None or service.healthy(),
            "the worker is healthy",
            timeout=60,
            every=0.2,
        )
        assert process.poll() is None, service.log
    finally:
        end(process, patience=20)


def test_the_gateway_becomes_healthy_and_asks_for_tokens(
    compose: dict[str, Any], running_valkey: Service, port: int, tmp_path: Path
) -> None:
    """The gateway's command and health check; with Valkey gone it is not healthy any more."""
    (tmp_path / "gateway").mkdir()
    definition = compose["services"]["gateway"]
    service = Service(definition, port, tmp_path / "gateway")
    assert definition["ports"] == ["127.0.0.1:8080:8080"]
    process = service.start()
    try:
        eventually(
            lambda: process.poll() is not None or service.healthy(),
            "the gateway is healthy",
            timeout=60,
            every=0.2,
        )
        assert process.poll() is None, service.log
        stream = f"http://127.0.0.1:{service.http_port}/v1/stream/x"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(stream, timeout=5)
        with redis.Redis(port=port) as client:
            client.shutdown(nosave=True)
        assert not service.healthy()
    finally:
        assert end(process, patience=20) == 0


@pytest.fixture
def running_s2(
    compose: dict[str, Any], running_valkey: Service, tmp_path: Path
) -> Iterator[tuple[Service, int]]:
    """The service ``s2-lite``, healthy by its own check, with the basin that the others use."""
    if not (INSTALLED / "bin" / "server").exists():
        pytest.skip("s2-lite is not installed: make s2-lite")
    (tmp_path / "s2").mkdir()
    content = compose["configs"]["s2-basins"]["content"]
    (tmp_path / "s2" / "s2-basins.json").write_text(content)
    s2_port = free_port()
    service = Service(compose["services"]["s2-lite"], 0, tmp_path / "s2", s2_port)
    process = service.start()
    eventually(service.healthy, "s2-lite is healthy")
    yield service, s2_port
    end(process)


@pytest.mark.parametrize("name", ["worker-s2", "gateway-s2"])
def test_the_services_of_the_profile_s2_become_healthy(
    compose: dict[str, Any],
    running_s2: tuple[Service, int],
    port: int,
    tmp_path: Path,
    name: str,
) -> None:
    """By their own commands and checks, on databases that the other services do not use."""
    (tmp_path / name).mkdir()
    definition = compose["services"][name]
    assert definition["profiles"] == ["s2"]
    other = compose["services"][name.removesuffix("-s2")]["environment"]
    ours = definition["environment"]
    assert not {text for text in ours.values() if "valkey" in text} & set(other.values())
    service = Service(definition, port, tmp_path / name, running_s2[1])
    process = service.start()
    try:
        eventually(
            lambda: process.poll() is not None or service.healthy(),
            f"{name} is healthy",
            timeout=60,
            every=0.2,
        )
        assert process.poll() is None, service.log
    finally:
        end(process, patience=20)


def _instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def test_the_image_is_not_root_and_has_a_health_check() -> None:
    """The last USER is another than root; the image checks itself without compose, too."""
    instructions = _instructions()
    users = [rest for name, rest in instructions if name == "USER"]
    assert users
    assert users[-1] != "root"
    assert [rest for name, rest in instructions if name == "HEALTHCHECK"]
    assert all("slim" in rest for name, rest in instructions if name == "FROM")


def test_the_image_and_the_compose_file_agree(compose: dict[str, Any]) -> None:
    """The image's own command starts the same app as the service does."""
    (own,) = [json.loads(rest) for name, rest in _instructions() if name == "CMD"]
    service = compose["services"]["worker"]["command"]
    assert own[:4] == service[:4]
    (check,) = [rest for name, rest in _instructions() if name == "HEALTHCHECK"]
    words = shlex.split(check.split("CMD", 1)[1])
    assert words == shlex.split(compose["services"]["worker"]["healthcheck"]["test"][1])


def test_what_the_image_copies_reaches_the_build() -> None:
    """.dockerignore lets through exactly what COPY names."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        source
        for name, rest in _instructions()
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert copied == allowed


def test_the_app_named_in_the_file_is_importable(compose: dict[str, Any]) -> None:
    """``-A`` names a module of the example project."""
    for name in ("worker", "gateway"):
        command = compose["services"][name]["command"]
        assert command[:3] == ["celery", "-A", "example_project.app"]
    assert importlib.util.find_spec("example_project.app") is not None
