// The chunks that we know are those of the installed AI SDK, member by member.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { asSchema, uiMessageChunkSchema } from 'ai';

import { runtimes, script } from './samples.mjs';
import { models } from './stage.mjs';

const schema = asSchema(uiMessageChunkSchema);

/** The types that the SDK's schema names when it refuses one it does not know. */
async function typesOfTheSchema() {
  const { success, error } = await schema.validate({ type: '?' });
  assert.equal(success, false);
  const [{ code, errors }] = (error.cause ?? error).issues;
  assert.equal(code, 'invalid_union');
  return errors.map((issues) => {
    const { values = ['data-'] } = issues.find(({ path }) => path[0] === 'type');
    return values[0];
  });
}

/** The members of each type, and whether one may be missing, out of the SDK's declarations. */
function declared() {
  const text = readFileSync(new URL('./node_modules/ai/dist/index.d.ts', import.meta.url), 'utf8');
  const union = /\ntype UIMessageChunk<[^]*?> = \{\n([^]*?)\n\};\n/.exec(text)[1];
  const found = {};
  for (const one of union.split(/\n\} \| (?:DataUIMessageChunk<\w+> \| )?\{\n/)) {
    const members = Object.fromEntries(
      [...one.matchAll(/^ {2}(\w+)(\??): (.*);$/gm)].map(([, name, optional]) => [name, !optional]));
    found[/^ {2}type: '([\w-]+)';$/m.exec(one)[1]] = members;
  }
  found['data-'] = { type: true, id: false, data: true, transient: false };
  return found;
}

function sorted(names) {
  return [...names].sort();
}

test('we know the chunk types of the SDK, and no others', async () => {
  assert.deepEqual(sorted(Object.keys(models)), sorted(await typesOfTheSchema()));
});

test('our models have the members of the SDK, and the same are required', async () => {
  const theirs = declared();
  assert.deepEqual(sorted(Object.keys(theirs)), sorted(await typesOfTheSchema()));
  for (const [type, members] of Object.entries(theirs)) {
    assert.deepEqual(
      { type, ...Object.fromEntries(sorted(Object.keys(models[type])).map((k) => [k, models[type][k]])) },
      { type, ...Object.fromEntries(sorted(Object.keys(members)).map((k) => [k, members[k]])) },
    );
  }
});

test('the script of these tests has every type with every member, and the SDK accepts it', async () => {
  const seen = {};
  for (const chunk of [...script, ...Object.values(runtimes)]) {
    const type = chunk.type.startsWith('data-') ? 'data-' : chunk.type;
    for (const name of Object.keys(chunk)) (seen[type] ??= new Set()).add(name);
    const { success, error } = await schema.validate(chunk);
    assert.ok(success, `${JSON.stringify(chunk)}: ${error}`);
  }
  for (const [type, members] of Object.entries(declared())) {
    assert.deepEqual(sorted(seen[type] ?? []), sorted(Object.keys(members)), type);
  }
});
