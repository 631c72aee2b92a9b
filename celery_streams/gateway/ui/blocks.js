// What a stream holds, as blocks to be shown: flowing text, values, bytes, gaps.

const SOFT = 1_500; // characters of a text block after which the next line starts another
const HARD = 20_000; // and without a line end
const KEPT = 48 * 1024 * 1024; // characters and bytes kept in this page

/** The text of a chunk that is one token of a longer text; null for anything else. */
export function textOf(chunk) {
  if (typeof chunk === "string") return chunk;
  if (chunk === null || typeof chunk !== "object" || Array.isArray(chunk)) return null;
  if (typeof chunk.delta === "string") return chunk.delta;
  if (typeof chunk.choices?.[0]?.delta?.content === "string") return chunk.choices[0].delta.content;
  const text = chunk.text ?? chunk.token ?? chunk.content;
  if (typeof text !== "string") return null;
  const values = Object.values(chunk);
  return values.length <= 4 && values.every((v) => v === null || typeof v !== "object") ? text : null;
}

/** {ratio, done, total} of a chunk that reports progress; null for anything else. */
export function progressOf(chunk) {
  if (chunk === null || typeof chunk !== "object" || Array.isArray(chunk)) return null;
  const is = (value) => typeof value === "number" && Number.isFinite(value);
  const done = chunk.done ?? chunk.current ?? chunk.completed;
  const total = chunk.total ?? chunk.of;
  if (is(done) && is(total) && total >= 0 && done >= 0) {
    return { ratio: total ? Math.min(1, done / total) : 1, done, total };
  }
  const percent = chunk.percent ?? chunk.percentage;
  if (is(percent)) return { ratio: Math.min(1, Math.max(0, percent / 100)) };
  if (is(chunk.progress) && chunk.progress >= 0 && chunk.progress <= 1) {
    return { ratio: chunk.progress };
  }
  return null;
}

export class Blocks {
  list = [];
  /** Number of the first block that is still kept. */
  first = 0;
  chunks = 0;
  progress = null;
  #size = 0;

  get end() {
    return this.first + this.list.length;
  }

  at(number) {
    return this.list[number - this.first];
  }

  add(values, start, end) {
    const single = values.length === end - start;
    for (let i = 0; i < values.length; i++) {
      this.#one(values[i], single ? start + i : start, single ? start + i + 1 : end);
    }
    this.chunks += end - start;
    while (this.#size > KEPT && this.list.length > 1) {
      this.#size -= this.list.shift().size;
      this.first++;
    }
  }

  gap(from, to) {
    this.list.push({ kind: "gap", start: from, end: to, size: 0 });
  }

  /** Everything kept, as text. */
  text() {
    const parts = this.list.map((block, i) => {
      if (block.kind === "text") return block.text;
      const before = i && this.list[i - 1].kind === "text" && !this.list[i - 1].text.endsWith("\n");
      const line = block.kind === "bytes" ? hex(block.value) : stringify(block.value);
      return block.kind === "gap" ? "" : `${before ? "\n" : ""}${line}\n`;
    });
    return parts.join("");
  }

  #one(value, start, end) {
    if (value instanceof Uint8Array) {
      this.#push({ kind: "bytes", value, start, end, size: value.length });
      return;
    }
    const text = textOf(value);
    if (text !== null) {
      this.#text(text, start, end);
      return;
    }
    const progress = progressOf(value);
    if (progress) this.progress = progress;
    // Its size in memory is anybody's guess.
    this.#push({ kind: progress ? "progress" : "value", value, progress, start, end, size: 200 });
  }

  #text(text, start, end) {
    const last = this.list.at(-1);
    if (last?.kind === "text" && last.text.length < HARD) {
      const cut = last.text.length > SOFT ? text.indexOf("\n") + 1 : 0;
      const own = cut ? text.slice(0, cut) : text;
      last.text += own;
      last.end = end;
      last.size += own.length;
      this.#size += own.length;
      if (!cut) return;
      text = text.slice(cut);
      start = end;
    }
    this.#push({ kind: "text", text, start, end, size: text.length });
  }

  #push(block) {
    this.list.push(block);
    this.#size += block.size;
  }
}

export const hex = (bytes) => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join(" ");

export function stringify(value, indent) {
  // JSON.rawJSON keeps the digits; older browsers have neither it nor BigInts from parsing.
  const raw = (_, v) => (typeof v === "bigint" ? (JSON.rawJSON?.(String(v)) ?? String(v)) : v);
  return JSON.stringify(value, raw, indent);
}
