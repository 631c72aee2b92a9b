// An unmodified DefaultChatTransport of the AI SDK, in front of a real agent.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  asSchema, DefaultChatTransport, readUIMessageStream, uiMessageChunkSchema, validateUIMessages,
} from 'ai';

import { script } from './samples.mjs';
import { agent, all, newChat, newGate, plain, request, stop, stored, text, until } from './stage.mjs';

function transportOf(chat) {
  return new DefaultChatTransport({ api: agent, headers: () => chat.headers });
}

/** The message that the SDK makes of chunks. */
async function messageOf(chunks, message) {
  const errors = [];
  const stream = new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(chunk);
      controller.close();
    },
  });
  let last;
  for await (const state of readUIMessageStream({ message, stream, onError: (e) => errors.push(e.message) })) {
    last = state;
  }
  return { message: plain(last), errors };
}

test('every chunk type arrives as it was written, and makes the message that is stored', async () => {
  const chat = newChat();
  const transport = transportOf(chat);
  const end = { type: 'finish', finishReason: 'interrupted', messageMetadata: { total: 3 } };
  const begin = { type: 'start', messageMetadata: { first: true } };
  const chunks = await all(await transport.sendMessages(request(chat, [begin, ...script, end])));

  const schema = asSchema(uiMessageChunkSchema);
  for (const chunk of chunks) assert.ok((await schema.validate(chunk)).success, JSON.stringify(chunk));

  const [start, step, first, ...rest] = chunks;
  assert.equal(start.type, 'start');
  assert.match(start.messageId, /^msg_/);
  assert.deepEqual(step, { type: 'start-step' });
  // Their metadata, which is the runtime's to place, comes as a chunk of its own.
  assert.deepEqual(first, { type: 'message-metadata', messageMetadata: begin.messageMetadata });
  assert.deepEqual(rest.slice(0, script.length), script);
  assert.deepEqual(rest.slice(script.length), [
    { type: 'message-metadata', messageMetadata: end.messageMetadata },
    { type: 'finish', finishReason: 'interrupted' },
  ]);

  const { message, errors } = await messageOf(chunks);
  assert.deepEqual(errors, ['a warning']);
  const { messages, active } = await stored(chat);
  assert.equal(active, false);
  assert.deepEqual(messages[1], message);
  await validateUIMessages({ messages });
});

test('resuming gives the same from the beginning, and nothing when no turn is active', async () => {
  const chat = newChat();
  const transport = transportOf(chat);
  assert.equal(await transport.reconnectToStream({ chatId: chat.id }), null);

  const gate = newGate();
  const half = script.length >> 1;
  const steps = [...script.slice(0, half), gate.step, ...script.slice(half)];
  const first = await until(
    await transport.sendMessages(request(chat, steps)),
    (chunk) => JSON.stringify(chunk) === JSON.stringify(script[half - 1]),
  );
  const second = transport.reconnectToStream({ chatId: chat.id });
  const resumed = await until(await second, (chunk) => chunk.type === 'start');
  await gate.open();
  const chunks = await first.rest();
  assert.deepEqual(await resumed.rest(), chunks);
  assert.deepEqual(chunks.slice(2, -1), script);
  assert.equal(await transport.reconnectToStream({ chatId: chat.id }), null);
});

test('a page that aborts its request stops nothing', async () => {
  const chat = newChat();
  const transport = transportOf(chat);
  const gate = newGate();
  const abort = new AbortController();
  const steps = text('one ', gate.step, 'two');
  const stream = await transport.sendMessages(request(chat, steps, { abortSignal: abort.signal }));
  const begun = await until(stream, (chunk) => chunk.type === 'text-delta');
  abort.abort();
  await assert.rejects(begun.rest(), { name: 'AbortError' });
  const resumed = await transport.reconnectToStream({ chatId: chat.id });
  await gate.open();
  const chunks = await all(resumed);
  assert.deepEqual(chunks.slice(0, begun.chunks.length), begun.chunks);
  assert.equal(chunks.at(-1).type, 'finish');
  assert.equal((await stored(chat)).messages[1].parts.at(-1).text, 'one two');
});

test('a stopped turn ends with an abort chunk, and its message is what is stored', async () => {
  const chat = newChat();
  const transport = transportOf(chat);
  const gate = newGate();
  const steps = [...text('one'), { type: 'text-start', id: 'open' }, gate.step];
  const begun = await until(
    await transport.sendMessages(request(chat, steps)), (chunk) => chunk.id === 'open');
  assert.equal((await stop(chat)).status, 202);
  const chunks = await begun.rest();
  assert.deepEqual(chunks.slice(-3), [
    { type: 'text-end', id: 'open' },
    { type: 'message-metadata', messageMetadata: { aborted: true } },
    { type: 'abort', reason: 'stopped' },
  ]);
  assert.deepEqual((await stored(chat)).messages[1], (await messageOf(chunks)).message);
});

test('an exception is an error chunk without its words, then the end', async () => {
  const chat = newChat();
  const chunks = await all(
    await transportOf(chat).sendMessages(request(chat, [...text('partial'), { raise: 'a secret' }])));
  assert.deepEqual(chunks.slice(-2), [
    { type: 'error', errorText: 'An error occurred.' },
    { type: 'finish', finishReason: 'error' },
  ]);
  const { message, errors } = await messageOf(chunks);
  assert.deepEqual(errors, ['An error occurred.']);
  assert.deepEqual((await stored(chat)).messages[1], message);
});

test('a tool output of the page continues the message it is in', async () => {
  const chat = newChat();
  const transport = transportOf(chat);
  const ask = [{ type: 'tool-input-available', toolCallId: 'ask', toolName: 'ask', input: {} }];
  const asked = await all(await transport.sendMessages(request(chat, ask)));
  const { message } = await messageOf(asked);
  const part = { ...message.parts.at(-1), state: 'output-available', output: 'blue' };
  const answered = { ...message, parts: [...message.parts.slice(0, -1), part] };
  const chunks = await all(await transport.sendMessages(
    request(chat, text('thanks'), { messages: [answered], messageId: message.id })));
  assert.equal(chunks[0].messageId, message.id);
  const { messages } = await stored(chat);
  assert.equal(messages.length, 2);
  assert.deepEqual(messages[1], (await messageOf(chunks, structuredClone(answered))).message);
});

test('whoever has no token, or one of another chat, is refused with a reason', async () => {
  const chat = newChat();
  const stranger = transportOf({ headers: {} });
  await assert.rejects(stranger.sendMessages(request(chat, [])), /token-missing|give a token/);
  const other = transportOf(newChat());
  await assert.rejects(other.sendMessages(request(chat, [])), /does not allow/);
  await assert.rejects(other.reconnectToStream({ chatId: chat.id }), /does not allow/);
});
