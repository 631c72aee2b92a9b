// The Durable Streams conformance suite against the server at CONFORMANCE_URL (see run.py).
import { runConformanceTests } from "@durable-streams/server-conformance-tests"

const { CONFORMANCE_URL, CONFORMANCE_SUBSCRIPTIONS, CONFORMANCE_LONG_POLL_MS } = process.env

if (!CONFORMANCE_URL) throw new Error("CONFORMANCE_URL is not set: run tests.conformance.run")

runConformanceTests({
  baseUrl: CONFORMANCE_URL,
  subscriptions: CONFORMANCE_SUBSCRIPTIONS === "1",
  // What the suite allows a long poll to take; not set: its own default.
  longPollTimeoutMs: CONFORMANCE_LONG_POLL_MS ? Number(CONFORMANCE_LONG_POLL_MS) : undefined,
})
