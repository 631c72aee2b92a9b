// A script with every chunk type of the protocol, and every member of each.

const provider = { providerMetadata: { acme: { trace: 1, nested: { deep: [true, null] } } } };
const tool = { toolName: 'search', title: 'Search', toolMetadata: { kind: 'read' } };
const source = { type: 'source', sourceType: 'url', id: 's1', url: 'https://example.com/a' };
const file = { mediaType: 'image/png', url: 'data:image/png;base64,iVBORw0KGgo=' };

/** What an agent writes between the `start` and `start-step`, and the `finish`, of the runtime. */
export const script = [
  { type: 'text-start', id: 't', ...provider },
  { type: 'text-delta', id: 't', delta: 'Hé\u2028\nllo "', ...provider },
  { type: 'text-delta', id: 't', delta: '\u{1F600} data: [DONE]\n\n' },
  { type: 'text-end', id: 't', ...provider,
    citations: [{ source, startIndex: 0, endIndex: 2, citedText: 'Hé' }] },
  { type: 'reasoning-start', id: 'r', ...provider },
  { type: 'reasoning-delta', id: 'r', delta: 'hm', ...provider },
  { type: 'reasoning-end', id: 'r', ...provider },

  // A call whose input streams, and whose output comes in pieces.
  { type: 'tool-input-start', toolCallId: 'c1', ...tool, ...provider, inputEncoding: 'json',
    providerExecuted: true, dynamic: false },
  { type: 'tool-input-delta', toolCallId: 'c1', inputTextDelta: '{"q": "a' },
  { type: 'tool-input-delta', toolCallId: 'c1', inputTextDelta: 'b"}' },
  { type: 'tool-input-available', toolCallId: 'c1', ...tool, ...provider, input: { q: 'ab' },
    providerExecuted: true, dynamic: false },
  { type: 'tool-output-available', toolCallId: 'c1', output: { n: 1 }, preliminary: true },
  { type: 'tool-output-available', toolCallId: 'c1', output: null, preliminary: false,
    providerExecuted: true, dynamic: false, toolMetadata: { kind: 'done' }, ...provider },

  // One of a tool that the page does not know, which fails.
  { type: 'tool-input-start', toolCallId: 'c2', toolName: 'shell', dynamic: true,
    inputEncoding: 'text' },
  { type: 'tool-input-delta', toolCallId: 'c2', inputTextDelta: 'ls -' },
  { type: 'tool-input-available', toolCallId: 'c2', toolName: 'shell', dynamic: true,
    input: 'ls -l' },
  { type: 'tool-output-error', toolCallId: 'c2', errorText: 'no', dynamic: true, ...provider,
    providerExecuted: false, toolMetadata: { exit: 1 } },

  // One whose input is no good, with and without a beginning.
  { type: 'tool-input-start', toolCallId: 'c3', toolName: 'search' },
  { type: 'tool-input-delta', toolCallId: 'c3', inputTextDelta: '{"q": ' },
  { type: 'tool-input-error', toolCallId: 'c3', ...tool, ...provider, input: '{"q": ',
    errorText: 'not JSON', providerExecuted: false, dynamic: false },
  { type: 'tool-input-error', toolCallId: 'c4', toolName: 'shell', input: null, dynamic: true,
    errorText: 'no input' },

  // Ones that ask first.
  { type: 'tool-input-available', toolCallId: 'c5', toolName: 'pay', input: { sum: 5 } },
  { type: 'tool-approval-request', toolCallId: 'c5', approvalId: 'a5', isAutomatic: true,
    approvalDescriptor: { by: 'policy' }, inputSchemaInput: { sum: '5' }, reason: 'much',
    signature: 'sig' },
  { type: 'tool-approval-response', approvalId: 'a5', approved: false, reason: 'too much',
    providerExecuted: true, ...provider },
  { type: 'tool-output-denied', toolCallId: 'c5' },
  { type: 'tool-input-available', toolCallId: 'c6', toolName: 'pay', input: {} },
  { type: 'tool-approval-request', toolCallId: 'c6', approvalId: 'a6', inputSchemaInput: null },

  // An error of a call whose input never came to its end; and one that is still streaming.
  { type: 'tool-input-start', toolCallId: 'c7', toolName: 'search' },
  { type: 'tool-input-delta', toolCallId: 'c7', inputTextDelta: '{"list": [1, {"a": "b' },
  { type: 'tool-output-error', toolCallId: 'c7', errorText: 'broke' },
  { type: 'tool-input-start', toolCallId: 'c8', toolName: 'search', inputEncoding: 'json' },
  { type: 'tool-input-delta', toolCallId: 'c8', inputTextDelta: '{"list": [1, {"a": "b' },

  { type: 'source-url', sourceId: 's1', url: 'https://example.com/a', title: 'A', ...provider },
  { type: 'source-document', sourceId: 's2', mediaType: 'text/plain', title: 'B',
    filename: 'b.txt', ...provider },
  { type: 'file', ...file, ...provider },
  { type: 'reasoning-file', ...file, ...provider },
  { type: 'custom', kind: 'acme.widget', ...provider },
  { type: 'steering-message', id: 'u2', parts: [{ type: 'text', text: 'shorter, please' }] },

  { type: 'data-progress', id: 'p', data: { done: 1 }, transient: false },
  { type: 'data-progress', id: 'p', data: { done: 2 } },
  { type: 'data-progress', data: null },
  { type: 'data-note', data: [1, 'two'], transient: true },
  { type: 'error', errorText: 'a warning' },
  { type: 'message-metadata', messageMetadata: { model: { name: 'm', tokens: [1] } } },
  { type: 'message-metadata', messageMetadata: { model: { tokens: [2] }, cost: 0.5 } },
  { type: 'finish-step' },

  // A step that is taken back, and done again. The same tool call is another one there.
  { type: 'start-step' },
  { type: 'text-start', id: 't' },
  { type: 'text-delta', id: 't', delta: 'gone' },
  { type: 'tool-input-available', toolCallId: 'c1', toolName: 'search', input: { q: 'again' } },
  { type: 'reset-step' },
  { type: 'tool-input-available', toolCallId: 'c1', toolName: 'search', input: { q: 'again' } },
  { type: 'tool-output-available', toolCallId: 'c1', output: 'second' },
  { type: 'text-start', id: 't' },
  { type: 'text-delta', id: 't', delta: 'kept' },
  { type: 'text-end', id: 't' },
  { type: 'finish-step' },
];

/** What the runtime writes itself, with the members it gives them; all of it is optional. */
export const runtimes = {
  start: { type: 'start', messageId: 'm', messageMetadata: { a: 1 } },
  finish: { type: 'finish', finishReason: 'interrupted', messageMetadata: { b: 2 } },
  abort: { type: 'abort', reason: 'stopped' },
};
