// One stream, followed from its beginning to its end through whatever happens on the way.

import { ApiError, request } from "./api.js";
import { events } from "./sse.js";

const SILENCE = 40_000; // the gateway says something every 15 s
const FIRST_PAUSE = 250;
const LONGEST_PAUSE = 8_000;
/** Beyond this, digits would change on their way through a number. */
const LONG_NUMBER = /\d{16}/;

/**
 * `receive.chunks(values, start, end)` gets what arrived, `receive.gap(from, to)` what is no more,
 * `receive.status(tail)` is called when anything about the connection changes.
 *
 * Data counts only together with the control event behind it, which says where it ends. So the
 * next connection starts exactly after what was handed on.
 */
export class Tail {
  status = "connecting"; // live, waiting (to try again), ended, failed, paused
  offset = 0;
  runState = null;
  reconnects = 0;
  upToDate = false;
  retryAt = 0;
  problem = "";

  #url;
  #receive;
  #type;
  #cursor = "";
  #position = "-1";
  #failures = 0;
  #controller = null;
  #heard = 0;
  #wake = () => {};
  #generation = 0;

  constructor(url, contentType, receive) {
    this.#url = url;
    this.#type = contentType;
    this.#receive = receive;
  }

  get over() {
    return this.status === "ended" || this.status === "failed";
  }

  start() {
    const generation = ++this.#generation;
    this.#run(generation);
  }

  /** Let go of the connection; start() goes on where this ended. */
  pause() {
    this.#generation++;
    this.#controller?.abort();
    this.#wake();
    if (!this.over) this.#say("paused");
  }

  stop() {
    this.#receive = { chunks() {}, gap() {}, status() {} };
    this.pause();
  }

  retryNow() {
    this.#failures = 0;
    if (this.status === "failed") this.start();
    else this.#wake();
  }

  async #run(generation) {
    const current = () => generation === this.#generation;
    const watch = setInterval(() => {
      if (this.#controller && performance.now() - this.#heard > SILENCE) this.#controller.abort();
    }, 5_000);
    try {
      while (current()) {
        const began = performance.now();
        const before = this.offset;
        if (this.status !== "live") this.#say("connecting");
        let planned = false;
        try {
          planned = await this.#follow(current);
        } catch (error) {
          if (!current() || this.#isFinal(error)) return;
        }
        if (!current() || this.over) return;
        if (this.offset > before) this.#failures = 0;
        if (planned && performance.now() - began > 1_000) continue; // the server's usual goodbye
        await this.#pauseBeforeRetry();
        if (current()) this.reconnects++;
      }
    } finally {
      clearInterval(watch);
    }
  }

  /** One connection; true if the server ended it in good order. */
  async #follow(current) {
    this.#controller = new AbortController();
    this.#heard = performance.now();
    const { signal } = this.#controller;
    const query = new URLSearchParams({ offset: this.#position, live: "sse" });
    if (this.#cursor) query.set("cursor", this.#cursor);
    const response = await request(`${this.#url}?${query}`, { signal });
    const base64 = response.headers.get("stream-sse-data-encoding") === "base64";
    let data = [];
    for await (const event of events(response.body)) {
      if (!current()) return false;
      this.#heard = performance.now();
      if (event?.event === "data") {
        data.push(event.data);
      } else if (event?.event === "control") {
        const control = JSON.parse(event.data);
        const values = data.length ? await this.#decoded(data, base64, signal) : [];
        if (!current()) return false;
        data = [];
        this.#commit(values, control);
        if (control.streamClosed) return true;
      }
    }
    return data.length === 0;
  }

  #commit(values, control) {
    const start = this.offset;
    const end = Number(control.streamNextOffset);
    const json = this.#type === "application/json";
    if (json && values.length !== end - start) throw new Error("the numbers of chunks differ");
    this.offset = end;
    this.#position = control.streamNextOffset;
    this.#cursor = control.streamCursor ?? "";
    this.runState = control.runState ?? this.runState;
    this.upToDate = control.upToDate === true || control.streamClosed === true;
    if (values.length) this.#receive.chunks(values, start, end);
    this.#failures = 0;
    this.#say(control.streamClosed ? "ended" : "live");
  }

  async #decoded(data, base64, signal) {
    if (base64) return data.map((text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)));
    if (!this.#type) {
      // It did not exist when we came: its first writer has chosen.
      const head = await request(this.#url, { method: "HEAD", signal });
      const type = head.headers.get("content-type");
      if (!type) throw new Error("cut"); // browsers take half a head for a whole one
      this.#type = type.split(";")[0];
    }
    if (this.#type !== "application/json") return data;
    return data.flatMap(parse);
  }

  #isFinal(error) {
    if (!(error instanceof ApiError)) return false;
    if (error.code === "offset-gone") {
      const earliest = error.headers.get("stream-earliest-offset");
      this.#receive.gap(this.offset, Number(earliest));
      this.offset = Number(earliest);
      this.#position = earliest;
      return false;
    }
    if (error.status === 429 || error.status >= 500 || error.status === 408) return false;
    this.problem = error.message;
    this.#say("failed");
    return true;
  }

  async #pauseBeforeRetry() {
    const longest = Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** this.#failures++);
    const pause = longest * (0.5 + Math.random() / 2);
    this.retryAt = Date.now() + pause;
    const done = new AbortController();
    const woken = new Promise((resolve) => {
      this.#wake = resolve;
      setTimeout(resolve, pause);
      addEventListener("online", resolve, { once: true, signal: done.signal });
    });
    this.#say("waiting");
    await woken;
    done.abort();
  }

  #say(status) {
    this.status = status;
    this.#receive.status(this);
  }
}

/** JSON, with whole numbers that are too long for a number as BigInt. */
function parse(text) {
  if (!LONG_NUMBER.test(text)) return JSON.parse(text);
  return JSON.parse(text, (_, value, context) => {
    const inexact = Number.isInteger(value) && !Number.isSafeInteger(value);
    return inexact && /^-?\d+$/.test(context?.source ?? "") ? BigInt(context.source) : value;
  });
}
