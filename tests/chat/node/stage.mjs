// What the tests have in common: chats with tokens, scripts for the agent, gates, and reading.

import { connect } from 'node:net';
import { randomUUID } from 'node:crypto';

const given = JSON.parse(process.env.TRANSPORTS_STAGE);
const chats = [...given.chats];

/** The models that celery_streams/chat/chunks.py has, their members and which are required. */
export const models = given.models;

export const agent = `${given.url}/chat/scripted`;

/** A chat that nobody has used: its id, and the headers its page sends. */
export function newChat() {
  const [id, token] = chats.pop();
  return { id, token, headers: { authorization: `Bearer ${token}` } };
}

/** What `sendMessages` takes, for an agent that follows `script`. */
export function request(chat, script, more = {}) {
  const parts = [{ type: 'text', text: 'go' }];
  return {
    trigger: 'submit-message',
    chatId: chat.id,
    messageId: undefined,
    messages: [{ id: randomUUID(), role: 'user', parts }],
    abortSignal: undefined,
    body: { script },
    ...more,
  };
}

/** Everything of a stream, up to its end. */
export async function all(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

/** Reads `stream` on until a chunk is there that `wanted` accepts; returns what came, and the rest. */
export async function until(stream, wanted) {
  const reader = stream.getReader();
  const chunks = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error(`the stream ended after ${JSON.stringify(chunks)}`);
    chunks.push(value);
    if (wanted(value)) break;
  }
  async function rest() {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return chunks;
      chunks.push(value);
    }
  }
  return { chunks, rest, reader };
}

export function text(...words) {
  const id = randomUUID();
  const deltas = words.map((delta) =>
    typeof delta === 'string' ? { type: 'text-delta', id, delta } : delta);
  return [{ type: 'text-start', id }, ...deltas, { type: 'text-end', id }];
}

/** A gate that holds the agent up until it is opened. */
export function newGate() {
  const name = randomUUID();
  return { step: { gate: name }, open: () => command(`RPUSH open:${name} 1`) };
}

function command(line) {
  return new Promise((resolve, reject) => {
    const socket = connect(given.redis.port, given.redis.host);
    socket.on('error', reject);
    socket.on('data', () => socket.end(resolve));
    socket.write(`SELECT ${given.redis.db}\r\n${line}\r\n`);
  });
}

/** What the gateway has of a chat. */
export async function stored(chat) {
  return (await fetch(`${agent}/${chat.id}/messages`, { headers: chat.headers })).json();
}

/** Asks the chat's turn to stop. */
export async function stop(chat) {
  return fetch(`${agent}/${chat.id}/stop`, { method: 'POST', headers: chat.headers });
}

/** As JSON has it: without members that are not defined. */
export function plain(value) {
  return JSON.parse(JSON.stringify(value));
}
