"""The Durable Streams conformance suite (npm) against the gateway.

::

    python -m tests.conformance.run                     # every configuration
    python -m tests.conformance.run --only two -t "SSE Mode"
    python -m tests.conformance.run --reference         # the same suite, the project's own server

Node modules live in ``build/conformance``; a failed, missing or wrongly skipped test, and an
error in a gateway's log, make it end with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.s2.servers import INSTALLED, S2Lite
from tests.servers import Cluster, ValkeyProcess
from tests.servers.children import end, spawn
from tests.workers import ROOT, Log

HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "conformance"
VITEST = BUILD / "node_modules" / "vitest" / "vitest.mjs"
SUBSCRIPTIONS = "Reserved subscription APIs"
ON_S2 = r"^(?!Reserved subscription)"
#: Seconds after which one run of the suite is broken off.
PATIENCE = 900.0
#: What a gateway finds in its environment, besides the URL. The suite's clients give up after
#: 5 s, so a long poll ends sooner; its webhook receivers listen on http://127.0.0.1.
GATEWAY = {
    "CELERY_STREAMS_SECRET": "conformance secret",
    "CELERY_STREAMS_GATEWAY_LONG_POLL_TIMEOUT": "0.5",
    "CELERY_STREAMS_GATEWAY_WEBHOOK_LOCALHOST": "1",
    "PYTHONPATH": str(ROOT),
    "PYTHONUNBUFFERED": "1",
}
LISTEN = ("--host", "127.0.0.1", "--port", "0", "--no-access-log")
SERVE = (
    sys.executable, "-m", "celery", "-A", "tests.conformance.app:celery",
    "streams", "serve", "--insecure", *LISTEN,
)  # fmt: skip
UVICORN = (
    sys.executable, "-m", "uvicorn", "tests.conformance.app:app", *LISTEN,
    "--timeout-graceful-shutdown", "1",
    # As `streams serve` does: a busy client must not find its idle connection closed.
    "--timeout-keep-alive", "75",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What the suite runs against, and which of its tests.

    ``serve``: `celery streams serve`, whose connections are its own; else plain uvicorn.
    """

    title: str
    serve: bool = False
    servers: int = 1
    cluster: bool = False
    s2: bool = False
    reference: bool = False
    subscriptions: bool = True
    pattern: str = ""


CONFIGURATIONS = {
    "one": Configuration(title="one process of `streams serve`", serve=True),
    "two": Configuration(title="two behind a round-robin", servers=2),
    "cluster": Configuration(title="one process, on a cluster", cluster=True),
    "s2": Configuration(title="chunks on s2-lite", s2=True, subscriptions=False, pattern=ON_S2),
}
REFERENCE = {
    "one": Configuration(title="reference", reference=True),
    "two": Configuration(title="reference behind a round-robin", servers=2, reference=True),
}


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What one run of the suite came to. Without problems it was good."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    note: str = ""

    def line(self, title: str) -> str:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        problems = "".join(f"; {each}" for each in self.problems)
        return f"{title}: {self.passed} passed{failed} in {self.seconds:.1f} s{self.note}{problems}"


@dataclass(slots=True, kw_only=True)
class Child:
    """A process that says on which address it listens."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    log: Log

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def stop(self) -> None:
        """SIGTERM, and wait for its end and the end of its log."""
        end(self.process, patience=5)
        self.log.join()


@contextmanager
def child(name: str, command: Sequence[str], env: Mapping[str, str]) -> Iterator[Child]:
    """Start a server that prints its address once it listens."""
    process = spawn(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **env},
        cwd=BUILD,
    )
    log = Log(process)
    try:
        text = log.wait_for("http://127.0.0.1:", timeout=60)
        address = re.search(r"(http://127\.0\.0\.1:\d+)", text)
        assert address is not None
        yield Child(name=name, url=address[1], process=process, log=log)
    finally:
        end(process, patience=5)
        log.join()


@contextmanager
def gateways(configuration: Configuration) -> Iterator[list[Child]]:
    """Gateway processes on one Valkey server, or cluster, or on s2-lite beside one."""
    command = SERVE if configuration.serve else UVICORN
    with ExitStack() as stack:
        enter = stack.enter_context
        url = enter(Cluster()).url if configuration.cluster else enter(ValkeyProcess()).url
        env = {**GATEWAY, "CELERY_STREAMS_URL": url}
        if configuration.s2:
            env |= {
                "CELERY_STREAMS_URL": enter(S2Lite()).url,
                "CELERY_STREAMS_REDIS_URL": url,
            }
        names = [f"gateway {number + 1}" for number in range(configuration.servers)]
        yield [enter(child(name, command, env)) for name in names]


@contextmanager
def servers(configuration: Configuration) -> Iterator[list[Child]]:
    """The servers of a configuration; the reference server is one, however many it stands for."""
    if configuration.reference:
        with child("reference", ["node", "reference.mjs"], {}) as reference:
            yield [reference] * configuration.servers
    else:
        with gateways(configuration) as children:
            yield children


def conform(configuration: Configuration) -> Outcome:
    """Run the suite against one configuration."""
    with ExitStack() as stack:
        behind = stack.enter_context(servers(configuration))
        front = behind[0]
        if len(behind) > 1:
            command = ["node", "roundrobin.mjs", *(str(each.port) for each in behind)]
            front = stack.enter_context(child("round-robin", command, {}))
        outcome = suite(front.url, configuration)
        if front is not behind[0]:
            front.stop()
            share_out(front, outcome)
    for name, text in {each.name: each.log.text for each in behind}.items():
        if errors := text.count("Traceback"):
            outcome.problems.append(f"{name} logged {errors} errors")
        if outcome.failed or outcome.problems:
            print(f"-- the end of {name}'s log\n{text[-4000:]}", flush=True)
    return outcome


def share_out(proxy: Child, outcome: Outcome) -> None:
    """Note how many requests each server got; it is a problem if one got none."""
    found = re.search(r"requests: ([\d +]+)", proxy.log.text)
    if found is None:
        outcome.problems.append("the round-robin did not say what it forwarded")
        return
    outcome.note = f" ({found[1].strip()} requests)"
    if "0" in found[1].split():
        outcome.problems.append("a server got no request")


def suite(url: str, configuration: Configuration) -> Outcome:
    """Run vitest and read its report."""
    report = BUILD / "report.json"
    report.unlink(missing_ok=True)
    command = ["node", str(VITEST), "run", "--reporter=dot", "--reporter=json"]
    command.append(f"--outputFile.json={report}")
    if configuration.s2:  # each acknowledgement waits for S2's log, five times as long as Redis's
        command.append("--testTimeout=30000")
    if configuration.pattern:
        command += ["-t", configuration.pattern]
    env = {
        **os.environ,
        "CONFORMANCE_URL": url,
        "CONFORMANCE_SUBSCRIPTIONS": "1" if configuration.subscriptions else "0",
    }
    if not sys.stdout.isatty():
        env = {**env, "NO_COLOR": "1", "FORCE_COLOR": "0"}
    started = time.monotonic()
    vitest = spawn(command, stdin=subprocess.DEVNULL, env=env, cwd=BUILD)
    try:
        code = vitest.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        end(vitest)
        return Outcome(problems=[f"broken off after {PATIENCE:g} s"], seconds=PATIENCE)
    if not report.exists():
        return Outcome(problems=[f"vitest ended with {code} and without a report"])
    outcome = judge(json.loads(report.read_text()), configuration)
    outcome.seconds = time.monotonic() - started
    if code and not outcome.failed:
        outcome.problems.append(f"vitest ended with {code}")
    return outcome


def judge(report: dict, configuration: Configuration) -> Outcome:
    """What a report says: a test that the configuration asks for must have run."""
    outcome = Outcome()
    missing = []
    for test in (each for file in report["testResults"] for each in file["assertionResults"]):
        name, status = test["fullName"], test["status"]
        wanted = re.search(configuration.pattern, name) is not None
        if not configuration.subscriptions and name.startswith(SUBSCRIPTIONS):
            wanted = False
        if status == "passed":
            outcome.passed += 1
        elif status == "failed":
            outcome.failed.append(name)
        elif wanted:
            missing.append(name)
    if missing:
        outcome.problems.append(f"{len(missing)} did not run, the first is {missing[0]!r}")
    if not outcome.passed and not outcome.failed:
        outcome.problems.append("no test ran")
    return outcome


def install(*, reference: bool) -> None:
    """Bring ``build/conformance`` up to date: our files, and the Node modules they need."""
    BUILD.mkdir(parents=True, exist_ok=True)
    manifest = (HERE / "package.json").read_text()
    if not (BUILD / "package.json").exists() or (BUILD / "package.json").read_text() != manifest:
        shutil.rmtree(BUILD / "node_modules", ignore_errors=True)
        (BUILD / ".installed").unlink(missing_ok=True)
    for file in [*HERE.glob("*.mjs"), HERE / "package.json"]:
        shutil.copy(file, BUILD)
    missing = not (BUILD / ".installed").exists()
    if reference:
        missing |= not (BUILD / "node_modules" / "@durable-streams" / "server").exists()
    if missing:
        (BUILD / ".installed").unlink(missing_ok=True)
        command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"]
        subprocess.run([*command, *([] if reference else ["--omit=dev"])], cwd=BUILD, check=True)
        (BUILD / ".installed").touch()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.run", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", choices=CONFIGURATIONS, help="one configuration, not all")
    parser.add_argument("-t", metavar="PATTERN", default="", help="tests whose names match")
    parser.add_argument("--no-subscriptions", action="store_true", help="without that group")
    parser.add_argument(
        "--reference", action="store_true", help="against the Durable Streams project's server"
    )
    return parser.parse_args()


def chosen(options: argparse.Namespace) -> list[Configuration]:
    """The configurations that the command line asks for."""
    known = REFERENCE if options.reference else CONFIGURATIONS
    names = [options.only] if options.only else ["one"] if options.reference else list(known)
    if names[0] not in known:
        sys.exit("the reference server keeps its streams in memory: there is no cluster of it")
    found = []
    for each in map(known.__getitem__, names):
        pattern = f"{each.pattern}.*(?:{options.t})" if each.pattern and options.t else options.t
        subscriptions = each.subscriptions and not options.no_subscriptions
        found.append(
            Configuration(
                title=each.title,
                serve=each.serve,
                servers=each.servers,
                cluster=each.cluster,
                s2=each.s2,
                reference=each.reference,
                subscriptions=subscriptions,
                pattern=pattern or each.pattern,
            )
        )
    return found


def main() -> int:
    options = arguments()
    configurations = chosen(options)
    install(reference=options.reference)
    lines, good = [], True
    for each in configurations:
        if each.s2 and not (INSTALLED / "bin" / "server").exists():
            lines.append(f"{each.title}: SKIPPED, because s2-lite is missing (make s2-lite)")
            continue
        print(f"-- conformance: {each.title}", flush=True)
        outcome = conform(each)
        good &= not outcome.failed and not outcome.problems
        lines += [outcome.line(each.title), *(f"    failed: {name}" for name in outcome.failed)]
    print("\n".join(["-- conformance", *lines]), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
