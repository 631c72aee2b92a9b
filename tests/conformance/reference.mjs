// The Durable Streams project's own server in Node, set up as its own conformance test does.
import { DurableStreamTestServer } from "@durable-streams/server"

const server = new DurableStreamTestServer({ port: 0, longPollTimeout: 500, webhooks: true })
await server.start()
console.log(`reference on ${server.url}`)
