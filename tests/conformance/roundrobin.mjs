// node roundrobin.mjs PORT...: a reverse proxy that sends each request to the next port, also
// the requests of one connection. Bodies pass as they come, a broken side breaks the other.
import http from "node:http"

const ports = process.argv.slice(2).map(Number)
const counts = ports.map(() => 0)
let requests = 0

const server = http.createServer((request, response) => {
  const turn = requests++ % ports.length
  counts[turn]++
  let answered = false
  const headers = endToEnd(request.rawHeaders) // Host included: servers see the proxy's address
  // A server that refuses a large body says so before it is sent, and not into a broken pipe.
  const large = request.headers["content-length"] > 64 * 1024
  if (large) headers.push("Expect", "100-continue")
  const upstream = http.request({
    host: "127.0.0.1",
    port: ports[turn],
    method: request.method,
    path: request.url,
    headers,
    agent: false, // a connection of its own: none is reused that the server just closed
  })
  upstream.on("response", (answer) => {
    answered = true
    response.writeHead(answer.statusCode, answer.statusMessage, endToEnd(answer.rawHeaders))
    response.flushHeaders()
    answer.pipe(response)
    answer.on("error", () => response.destroy())
  })
  upstream.on("error", (error) => {
    if (answered) return // then its answer ends, or breaks off, by itself
    response.writeHead(502, { "content-type": "text/plain" }).end(`round-robin: ${error.message}`)
  })
  response.on("close", () => upstream.destroy())
  if (large) upstream.on("continue", () => request.pipe(upstream))
  else request.pipe(upstream)
})

// Longer than a busy client pauses: it must not send on a connection that is being closed.
server.keepAliveTimeout = 75_000

function endToEnd(rawHeaders) {
  const kept = []
  for (let i = 0; i < rawHeaders.length; i += 2) {
    if (!/^(connection|keep-alive|expect)$/i.test(rawHeaders[i])) kept.push(rawHeaders[i], rawHeaders[i + 1])
  }
  return kept
}

server.listen(0, "127.0.0.1", () => {
  console.log(`round-robin on http://127.0.0.1:${server.address().port}`)
})

process.on("SIGTERM", () => {
  console.log(`requests: ${counts.join(" + ")}`)
  process.exit(0)
})
