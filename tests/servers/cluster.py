"""A Valkey cluster of child processes, put together by commands."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import redis
import redis.exceptions as rx
from redis.crc import key_slot

from tests.servers.children import eventually
from tests.servers.process import ValkeyProcess

_SLOTS = 16384


@dataclass(slots=True, kw_only=True)
class Cluster:
    """``primaries`` nodes with ``replicas`` replicas each; a context manager.

    A dead primary is noticed after ``node_timeout`` milliseconds.
    """

    primaries: int = 3
    replicas: int = 0
    node_timeout: int = 1000
    aof: bool = False
    nodes: list[ValkeyProcess] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    @property
    def url(self) -> str:
        """URL of the first node that runs."""
        running = (node for node in self.nodes if node.process and node.process.poll() is None)
        return next(running).url.replace("redis://", "redis+cluster://")

    def client(self, **options: Any) -> redis.RedisCluster:
        """A cluster client; the caller closes it."""
        return redis.RedisCluster.from_url(self.url.replace("+cluster", ""), **options)

    def primary_of(self, key: str) -> ValkeyProcess:
        """The node that now serves ``key``, as the running nodes see it."""
        slot = key_slot(key.encode())
        for node in self._running():
            for first, last, primary, *_ in node.client().execute_command("CLUSTER SLOTS"):
                if first <= slot <= last:
                    return self._at(int(primary[1]))
        raise LookupError(f"no node serves slot {slot}")

    def kill_primary_of(self, key: str) -> ValkeyProcess:
        """SIGKILL the node that serves ``key``; returns it (``start()`` brings it back)."""
        primary = self.primary_of(key)
        primary.kill()
        return primary

    def failover(self, key: str) -> ValkeyProcess:
        """Hand ``key`` over to a replica, in order; returns the new primary once it serves.

        A node may refuse to vote soon after another election, and a replica gives an
        attempt up after 5 seconds without saying so: it is asked until it has taken over.
        """
        old = self.primary_of(key)
        for _ in range(5):
            self._replica_of(old).client().execute_command("CLUSTER FAILOVER")
            try:
                return self.wait_taken_over(key, old, timeout=6.0)
            except TimeoutError:
                continue
        raise TimeoutError(f"no replica of {old.port} took {key} over")

    def _replica_of(self, primary: ValkeyProcess) -> ValkeyProcess:
        for node in self._running():
            replicates = node.client().info("replication")
            if replicates["role"] == "slave" and int(replicates["master_port"]) == primary.port:
                return node
        raise LookupError(f"node {primary.port} has no replica")

    def wait_taken_over(
        self, key: str, dead: ValkeyProcess, *, timeout: float = 30.0
    ) -> ValkeyProcess:
        """Wait until another node than ``dead`` serves ``key``; returns that node."""
        eventually(
            lambda: self._serves_elsewhere(key, dead), f"another node serves {key}", timeout=timeout
        )
        return self.primary_of(key)

    def _serves_elsewhere(self, key: str, dead: ValkeyProcess) -> bool:
        return self.primary_of(key) is not dead and all(map(self._ok, self._running()))

    def flush(self) -> None:
        for node in self._running():
            if node.client().info("replication")["role"] == "master":
                node.flush()

    def wait_ok(self, *, timeout: float = 30.0) -> None:
        """Wait until every running node sees the whole cluster working."""
        for node in self._running():
            eventually(partial(self._ok, node), f"{node.port} is ok", timeout=timeout)

    def __enter__(self) -> Self:
        options = {
            "cluster-enabled": "yes",
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": str(self.node_timeout),
            "cluster-require-full-coverage": "no",
            "cluster-replica-validity-factor": "0",
            "repl-diskless-sync-delay": "0",
        }
        with ExitStack() as stack:
            for _ in range(self.primaries * (1 + self.replicas)):
                node = ValkeyProcess(aof=self.aof, options=options)
                self.nodes.append(stack.enter_context(node))
            self._assemble()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for node in self._running():
            node.kill()  # nobody waits for a replica to catch up
        self._stack.close()

    def _assemble(self) -> None:
        primaries, replicas = self.nodes[: self.primaries], self.nodes[self.primaries :]
        for index, node in enumerate(primaries):
            first, last = (_SLOTS * index // self.primaries, _SLOTS * (index + 1) // self.primaries)
            node.client().execute_command("CLUSTER ADDSLOTSRANGE", first, last - 1)
            node.client().execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
        for node in self.nodes[1:]:
            node.client().execute_command("CLUSTER MEET", "127.0.0.1", self.nodes[0].port)
        for node in self.nodes:
            eventually(partial(self._knows_all, node), "all nodes have met")
        for index, node in enumerate(replicas):
            primary = primaries[index % self.primaries]
            node_id = primary.client().execute_command("CLUSTER MYID")
            node.client().execute_command("CLUSTER REPLICATE", node_id)
        self.wait_ok()
        for node in replicas:
            eventually(partial(self._follows, node), "every replica follows its primary")
        if replicas:
            eventually(lambda: all(map(self._knows_roles, self.nodes)), "all know the replicas")

    def _knows_all(self, node: ValkeyProcess) -> bool:
        lines = node.client(decode_responses=True).execute_command("CLUSTER NODES")
        return len(lines) == len(self.nodes) and "handshake" not in str(lines)

    def _follows(self, replica: ValkeyProcess) -> bool:
        return bool(replica.client().info("replication").get("master_link_status") == "up")

    def _knows_roles(self, node: ValkeyProcess) -> bool:
        ranges = node.client().execute_command("CLUSTER SLOTS")
        return all(len(each) == 3 + self.replicas for each in ranges)

    def _ok(self, node: ValkeyProcess) -> bool:
        try:
            info = node.client(decode_responses=True).execute_command("CLUSTER INFO")
        except rx.RedisError:
            return False
        return info["cluster_state"] == "ok" and info["cluster_slots_ok"] == str(_SLOTS)

    def _running(self) -> list[ValkeyProcess]:
        return [node for node in self.nodes if node.process and node.process.poll() is None]

    def _at(self, port: int) -> ValkeyProcess:
        return next(node for node in self.nodes if node.port == port)
