"""``python -m benchmarks.gateway``: the HTTP gateway beside other servers of the protocol.

Every server gets the same load from the same generator, one after the other, on this machine.
``bare`` is no server: it only writes, and shows what of that is the floor.
CPU is that of the server's process, appends included, over the chunks its subscribers received.
A server that sends chunks together (``chunks_per_read``) pays less for each: compare the
latency, too. Lost is what is missing ten seconds after the last append, or came out of order.
``BENCH_JSON=file`` writes the figures as JSON too.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from benchmarks.figures import Budget, Figure, at_least, at_most, show, write_json
from benchmarks.gateway.catch_up import beside_xrange, through_posts
from benchmarks.gateway.fan_out import FanOut, Outcome, fan_out, hold
from benchmarks.gateway.servers import BARE, GATEWAY, NODE, RAKAIA, serving, why_not
from benchmarks.stage import Stage, own_server

QUESTIONS = ("fan-out", "quarter", "crowd", "idle", "catch-up")
#: What the bare writer is asked, too.
_BARE = ("fan-out", "crowd")
_POSTED = "gateway_post"
_PREFIXES = {GATEWAY: GATEWAY, NODE: "node", RAKAIA: "rakaia", BARE: "bare"}
#: Above this the generator's own share of a core may be what is measured.
_BUSY = 0.75
#: Cores that other processes may use, and milliseconds an append may leave late.
_OTHERS, _LATE_MS = 0.4, 20.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    usual: FanOut
    crowd: FanOut
    idle_streams: int
    idle_each: int
    idle_seconds: float
    chunks: int
    rounds: int
    limit: int
    questions: tuple[str, ...]


_FULL = Sizes(
    FanOut(streams=100, each=10, rate=20, warm_up=3, seconds=10),
    FanOut(streams=10, each=200, rate=20, warm_up=1, seconds=6),
    idle_streams=100, idle_each=100, idle_seconds=3, chunks=1_000_000, rounds=3, limit=900,
    questions=QUESTIONS,
)  # fmt: skip
_QUICK = Sizes(
    FanOut(streams=10, each=10, rate=20, warm_up=0.5, seconds=1),
    FanOut(streams=2, each=100, rate=20, warm_up=0.5, seconds=1),
    idle_streams=10, idle_each=20, idle_seconds=0.5, chunks=20_000, rounds=1, limit=90,
    questions=("fan-out", "crowd", "idle", "catch-up"),
)  # fmt: skip


def main() -> None:
    """Ask, and show the answers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it works")
    parser.add_argument("--servers", nargs="+", choices=_PREFIXES, default=list(_PREFIXES))
    parser.add_argument("--questions", nargs="+", choices=QUESTIONS)
    arguments = parser.parse_args()
    sizes = _QUICK if arguments.quick else _FULL
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # of the servers, too
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(sizes.limit)
    bench = _Benchmark(sizes)
    servers = []
    for name in arguments.servers:
        if problem := why_not(name):
            print(f"{name} is not measured: {problem}", flush=True)
        else:
            servers.append(name)
    if not servers:
        sys.exit("no server to measure")
    with own_server() as stage:
        for question in arguments.questions or sizes.questions:
            ask = getattr(bench, question.replace("-", "_"))
            print(f"{question}:", flush=True)
            for name in servers:
                if name == BARE and question not in _BARE:
                    continue
                start = time.monotonic()
                ask(name, stage)
                print(f"        {time.monotonic() - start:.0f} s", flush=True)
    signal.alarm(0)
    show(bench.figures())
    if path := os.environ.get("BENCH_JSON"):
        write_json(bench.figures(), Path(path))


def _give_up(*_: object) -> NoReturn:
    raise TimeoutError("the benchmark takes too long")


class _Benchmark:
    """Collects the answers of every server, and puts them beside each other."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._values: dict[str, dict[str, float]] = {}
        self._loads: list[float] = []

    def fan_out(self, name: str, stage: Stage) -> None:
        """1,000 subscribers on 100 streams; the gateway's appends come from both sides."""
        if name == GATEWAY:
            straight = replace(self._sizes.usual, straight=True)
            self._fan_out(name, GATEWAY, straight, stage)
            self._fan_out(name, _POSTED, self._sizes.usual, stage)
        else:
            self._fan_out(name, _PREFIXES[name], self._sizes.usual, stage)

    def crowd(self, name: str, stage: Stage) -> None:
        """2,000 subscribers on 10 streams."""
        load = replace(self._sizes.crowd, straight=name == GATEWAY)
        outcome = self._measure(name, load, stage)
        self._set(f"{_PREFIXES[name]}_2000", _of(outcome))

    def quarter(self, name: str, stage: Stage) -> None:
        """A quarter of the appends, for servers that cannot keep up with all of them."""
        usual = self._sizes.usual
        load = replace(usual, rate=usual.rate / 4, straight=name == GATEWAY)
        self._set(f"{_PREFIXES[name]}_quarter", _of(self._measure(name, load, stage)))

    def idle(self, name: str, stage: Stage) -> None:
        """10,000 subscribers to whom nothing happens."""
        stage.clear()
        sizes = self._sizes
        with serving(name, stage.url) as server:
            rss, count, dropped = hold(
                server, sizes.idle_streams, sizes.idle_each, sizes.idle_seconds
            )
        print(f"    {name}: {count:,} idle subscribers, {dropped} dropped, {rss:.0f} MiB")
        self._set(_PREFIXES[name], {"idle_rss_mib": rss, "idle_dropped": dropped})

    def catch_up(self, name: str, stage: Stage) -> None:
        """A million chunks, read page by page."""
        stage.clear()
        sizes = self._sizes
        with serving(name, stage.url) as server:
            if name == GATEWAY:
                ours, bare = beside_xrange(server, stage, sizes.chunks, sizes.rounds)
                self._set("xrange", {"catch_up_mb_s": bare})
            else:
                ours = through_posts(server, sizes.chunks, sizes.rounds)
        print(f"    {name}: {ours:.1f} MB/s")
        self._set(_PREFIXES[name], {"catch_up_mb_s": ours})

    def _fan_out(self, name: str, prefix: str, load: FanOut, stage: Stage) -> None:
        outcome = self._measure(name, load, stage)
        values = _of(outcome)
        if name == GATEWAY:
            values["redis_cpu_us_per_event"] = outcome.redis_cpu_us
            values["redis_connections"] = outcome.redis_connections
        self._set(prefix, values)

    def _measure(self, name: str, load: FanOut, stage: Stage) -> Outcome:
        stage.clear()
        way = "straight to Redis" if load.straight else "by POST"
        print(
            f"    {name}: {load.streams * load.each:,} subscribers, "
            f"{load.streams * load.rate:,.0f} appends/s {way}",
            flush=True,
        )
        with serving(name, stage.url) as server:
            outcome = fan_out(server, stage, load)
        print(f"        {outcome}", flush=True)
        if max(outcome.generator_load, outcome.writers_load) > _BUSY:
            print("        WARNING: the generator was the bottleneck", flush=True)
        if outcome.others_load > _OTHERS or outcome.late_ms > _LATE_MS:
            print("        WARNING: others kept the machine busy; latencies are theirs", flush=True)
        if outcome.lost:
            print("        the server did not keep up: latencies are those of a queue", flush=True)
        self._loads.append(outcome.generator_load)
        return outcome

    def _set(self, prefix: str, values: dict[str, float]) -> None:
        self._values.setdefault(prefix, {}).update(values)

    def figures(self) -> list[Figure]:
        """All that were measured; Node's beside those of the others."""
        figures = []
        for name, unit, budgeted in _MEASURES:
            for prefix in (GATEWAY, _POSTED, "rakaia", "node", "bare"):
                load, _, measure = name.rpartition("/")
                suffix = f"_{load}" if load else ""
                value = self._values.get(prefix + suffix, {}).get(measure)
                if value is None:
                    continue
                theirs = self._values.get("node" + suffix, {}).get(measure)
                budget = budgeted if prefix in (GATEWAY, _POSTED) else None
                beside = None if prefix == "node" or theirs is None else NODE
                # What does not come in time from a server without a budget is late, not lost.
                late = measure == "lost" and prefix not in (GATEWAY, _POSTED)
                label = f"{prefix}{suffix}_{'undelivered' if late else measure}"
                figures.append(
                    Figure(
                        label, value, unit, beside, theirs if beside else None,
                        budget(value) if budget else None,
                    )
                )  # fmt: skip
        figures += self._catch_up_ratio()
        if self._loads:
            figures.append(Figure("generator_peak_load", max(self._loads), "cores"))
        return figures

    def _catch_up_ratio(self) -> list[Figure]:
        bare = self._values.get("xrange", {}).get("catch_up_mb_s")
        if bare is None:
            return []
        ratio = self._values[GATEWAY]["catch_up_mb_s"] / bare
        return [
            Figure("xrange_catch_up_mb_s", bare, "MB/s"),
            Figure("catch_up_ratio", ratio, "x", "XRANGE pages", 1.0, at_least(ratio, 0.7, "x")),
        ]


def _of(outcome: Outcome) -> dict[str, float]:
    return {
        "cpu_us_per_event": outcome.cpu_us,
        "p50_ms": outcome.p50_ms,
        "p99_ms": outcome.p99_ms,
        "chunks_per_read": outcome.chunks_per_read,
        "lost": outcome.lost + outcome.refused,
    }


def _none(value: float) -> Budget:
    return at_most(value, 0)


#: What is measured of every server (``load/``: under that load), in the order of the table.
_MEASURES: tuple[tuple[str, str, Callable[[float], Budget] | None], ...] = (
    ("cpu_us_per_event", "us", lambda value: at_most(value, 22, "us")),
    ("chunks_per_read", "chunks", None),
    ("p50_ms", "ms", None),
    ("p99_ms", "ms", lambda value: at_most(value, 60, "ms")),
    ("lost", "events", _none),
    ("redis_cpu_us_per_event", "us", None),
    ("redis_connections", "", None),
    ("quarter/cpu_us_per_event", "us", None),
    ("quarter/chunks_per_read", "chunks", None),
    ("quarter/p50_ms", "ms", None),
    ("quarter/p99_ms", "ms", None),
    ("quarter/lost", "events", _none),
    ("2000/cpu_us_per_event", "us", None),
    ("2000/chunks_per_read", "chunks", None),
    ("2000/p99_ms", "ms", None),
    ("2000/lost", "events", _none),
    ("idle_rss_mib", "MiB", lambda value: at_most(value, 500, "MiB")),
    ("idle_dropped", "", _none),
    ("catch_up_mb_s", "MB/s", None),
)


if __name__ == "__main__":
    main()
