// An unmodified transport of @durable-streams/aisdk-transport, in front of the same agent.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { createDurableChatTransport } from '@durable-streams/aisdk-transport';
import { stream as readStream } from '@durable-streams/client';
import { DefaultChatTransport } from 'ai';

import { script } from './samples.mjs';
import { agent, all, newChat, newGate, request, stop, stored, text, until } from './stage.mjs';

const api = `${agent}/durable`;

/** The transport, and the URLs of streams that it was referred to. */
function transportOf(chat, urls = []) {
  async function fetchClient(...args) {
    const response = await fetch(...args);
    const location = response.headers.get('location');
    if (location) urls.push(new URL(location, response.url));
    return response;
  }
  return createDurableChatTransport({ api, headers: chat.headers, fetchClient });
}

function offsetOf(response) {
  return response.headers.get('stream-next-offset');
}

test('every chunk type arrives as it was written, and the stream ends with the turn', async () => {
  const chat = newChat();
  const chunks = await all(await transportOf(chat).sendMessages(request(chat, script)));
  assert.deepEqual(chunks.slice(0, 2).map(({ type }) => type), ['start', 'start-step']);
  assert.deepEqual(chunks.slice(2, -1), script);
  assert.deepEqual(chunks.at(-1), { type: 'finish' });
  const { messages } = await stored(chat);
  assert.equal(messages[1].id, chunks[0].messageId);
});

test('resuming gives the same from the beginning, and nothing when no turn is active', async () => {
  const chat = newChat();
  const transport = transportOf(chat);
  assert.equal(await transport.reconnectToStream({ chatId: chat.id }), null);
  const gate = newGate();
  const first = await until(
    await transport.sendMessages(request(chat, text('one ', gate.step, 'two'))),
    (chunk) => chunk.type === 'text-delta');
  const second = await until(
    await transport.reconnectToStream({ chatId: chat.id }), (chunk) => chunk.type === 'start');
  const theirs = new DefaultChatTransport({ api: agent, headers: chat.headers });
  const third = await until(
    await theirs.reconnectToStream({ chatId: chat.id }), (chunk) => chunk.type === 'start');
  await gate.open();
  const chunks = await first.rest();
  assert.equal(chunks.at(-1).type, 'finish');
  assert.deepEqual(await second.rest(), chunks);
  assert.deepEqual(await third.rest(), chunks);
  assert.equal(await transport.reconnectToStream({ chatId: chat.id }), null);
});

test('an answer longer than a connection goes on in the next, with nothing twice', async () => {
  const chat = newChat();
  const gates = [newGate(), newGate(), newGate()];
  const steps = text(...gates.flatMap((gate, number) => [`${number} `, gate.step]), 'end');
  const stream = await transportOf(chat).sendMessages(request(chat, steps));
  const begun = await until(stream, (chunk) => chunk.delta === '0 ');
  const read = begun.rest();
  for (const gate of gates) {
    // Longer than the gateway keeps one connection (GATEWAY_SSE_LIFETIME of the test's).
    await new Promise((resolve) => setTimeout(resolve, 1700));
    await gate.open();
  }
  const words = (await read).flatMap(({ delta }) => delta ?? []);
  assert.deepEqual(words, ['0 ', '1 ', '2 ', 'end']);
});

test('a page that aborts its request stops nothing, and goes on from an offset', async () => {
  const chat = newChat();
  const urls = [];
  const transport = transportOf(chat, urls);
  const gate = newGate();
  const abort = new AbortController();
  const steps = text('one ', gate.step, 'two');
  const begun = await until(
    await transport.sendMessages(request(chat, steps, { abortSignal: abort.signal })),
    (chunk) => chunk.type === 'text-delta');
  abort.abort();
  await begun.rest().catch(() => {}); // the client just ends, or throws

  // What a reader that keeps its offset does, with the project's own client.
  const [url] = urls;
  const before = await readStream({ url, live: false });
  assert.deepEqual(await before.json(), begun.chunks);
  assert.equal(before.streamClosed, false);
  const after = await readStream({ url, offset: before.offset, live: 'sse', json: true });
  const later = await readStream({ url, offset: before.offset, live: 'long-poll', json: true });
  const rests = [all(after.jsonStream()), all(later.jsonStream())];
  await gate.open();
  const [rest, polled] = await Promise.all(rests);
  assert.deepEqual(rest.map(({ type }) => type), ['text-delta', 'text-end', 'finish']);
  assert.deepEqual(polled, rest);
  const whole = await readStream({ url, live: false });
  assert.deepEqual(await whole.json(), [...begun.chunks, ...rest]);
  assert.equal(whole.streamClosed, true);
});

test('at the end of an answer every read says that it is closed', async () => {
  const chat = newChat();
  const urls = [];
  await all(await transportOf(chat, urls).sendMessages(request(chat, text('one'))));
  await all(await transportOf(chat).sendMessages(request(chat, text('another turn'))));
  const [url] = urls;
  const whole = await fetch(url);
  assert.equal(whole.headers.get('stream-closed'), 'true');
  assert.equal((await whole.json()).length, 6);
  const offset = offsetOf(whole);
  for (const live of ['', '&live=sse', '&live=long-poll']) {
    const response = await fetch(`${url}&offset=${offset}${live}`);
    const body = await response.text();
    if (live === '&live=sse') {
      assert.match(body, /^event: control\ndata:\{"streamNextOffset":"\d+","streamClosed":true/);
      const told = { 'last-event-id': /\nid:(\S+)/.exec(body)[1] };
      assert.equal((await fetch(`${url}&live=sse`, { headers: told })).status, 204);
    } else {
      assert.equal(response.headers.get('stream-closed'), 'true');
      assert.equal(body, live ? '' : '[]');
    }
    assert.ok([200, 204].includes(response.status));
  }
  const head = await fetch(url, { method: 'HEAD' });
  assert.equal(offsetOf(head), offset);
  assert.equal((await fetch(`${url}&offset=now`)).headers.get('stream-next-offset'), offset);
});

test('the address of an answer reads that session, and does nothing else', async () => {
  const chat = newChat();
  const urls = [];
  await all(await transportOf(chat, urls).sendMessages(request(chat, text('one'))));
  const token = urls[0].searchParams.get('token');
  assert.notEqual(token, chat.token);
  const ours = { headers: { authorization: `Bearer ${token}` } };
  assert.equal((await fetch(`${agent}/${chat.id}/messages`, ours)).status, 200);
  assert.equal((await fetch(`${agent}/${chat.id}/stop`, { ...ours, method: 'POST' })).status, 403);
  assert.equal((await fetch(`${agent}/${newChat().id}/messages`, ours)).status, 403);
  const transport = transportOf({ headers: ours.headers });
  await assert.rejects(transport.sendMessages(request(chat, [])), /does not allow/);
  const [, payload] = token.split('.').map((each) => Buffer.from(each, 'base64url').toString());
  const [, original] = chat.token.split('.').map((each) => Buffer.from(each, 'base64url').toString());
  assert.ok(JSON.parse(payload).exp <= JSON.parse(original).exp + 1);
  assert.equal(JSON.parse(payload).jti, JSON.parse(original).jti);

  const bare = new URL(urls[0]);
  bare.searchParams.delete('token');
  assert.equal((await fetch(bare)).status, 401);
  for (const [name, value, status] of [
    ['message', 'msg_nobody', 404], ['message', '', 400], ['from', '-1', 400], ['from', 'x', 400],
    ['offset', '9999', 400], ['offset', 'x', 400], ['live', 'x', 400],
  ]) {
    const url = new URL(urls[0]);
    url.searchParams.set(name, value);
    assert.equal((await fetch(url)).status, status, `${name}=${value}`);
  }
  for (const method of ['PUT', 'POST', 'DELETE']) {
    assert.equal((await fetch(urls[0], { method })).status, 405);
  }
});

test('a message that waits for its turn has an address already', async () => {
  const chat = newChat();
  const transport = transportOf(chat);
  const gate = newGate();
  const first = await until(
    await transport.sendMessages(request(chat, text('one ', gate.step))),
    (chunk) => chunk.type === 'text-delta');
  const second = all(await transport.sendMessages(request(chat, text('two'))));
  await gate.open();
  await first.rest();
  const words = (await second).flatMap(({ delta }) => delta ?? []);
  assert.deepEqual(words, ['two']);
});

test('a stopped turn ends its stream with an abort chunk', async () => {
  const chat = newChat();
  const gate = newGate();
  const begun = await until(
    await transportOf(chat).sendMessages(request(chat, text('one', gate.step))),
    (chunk) => chunk.type === 'text-delta');
  assert.equal((await stop(chat)).status, 202);
  assert.deepEqual((await begun.rest()).at(-1), { type: 'abort', reason: 'stopped' });
});

test('whoever has no token, or one of another chat, is refused with a reason', async () => {
  const chat = newChat();
  const stranger = transportOf({ headers: {} });
  await assert.rejects(stranger.sendMessages(request(chat, [])), /give a token/);
  await assert.rejects(stranger.reconnectToStream({ chatId: chat.id }), /give a token/);
  const other = transportOf(newChat());
  await assert.rejects(other.sendMessages(request(chat, [])), /does not allow/);
});
