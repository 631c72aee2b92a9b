// The protocol's reference server, in memory: node reference.mjs PORT
import { DurableStreamTestServer } from "@durable-streams/server";

const server = new DurableStreamTestServer({ host: "127.0.0.1", port: Number(process.argv[2]) });
await server.start();
