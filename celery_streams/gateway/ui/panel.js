// One run, session or stream: its state, its streams as tabs, and what they hold, live.

import { ApiError, encodePath, getJson, request, signedIn, urlOf } from "./api.js";
import { Blocks } from "./blocks.js";
import { announce, byId, copy, h, isOver, number, plural, setText, showState } from "./dom.js";
import { Log, percent } from "./log.js";
import { Tail } from "./tail.js";

const EVERY = 4_000;
const FIRST_LOOKS = 500; // while nothing is known yet
/** Streams followed at once: browsers allow six connections to one HTTP/1.1 server. */
const AT_ONCE = 3;
const HIDDEN = 20_000; // after so long in the background, connections are let go

const TITLES = { runs: "Run", sessions: "Session", streams: "Stream" };

export class Panel {
  #root = byId("panel");
  #route;
  #streams = new Map();
  #selected = null;
  #timer = 0;
  #hiding = 0;
  #frame = 0;
  #log = null;
  #state = null;
  #attempts = 0;
  #reported = "";

  constructor(route) {
    this.#route = route;
    this.#build();
    if (route.kind === "sessions") for (const key of ["out", "in"]) this.#stream(key);
    if (route.kind === "streams") this.#stream("");
    document.addEventListener("visibilitychange", this.#visibility);
    this.#look();
  }

  get route() {
    return this.#route;
  }

  /** Another stream of the same run. */
  select(key) {
    this.#route = { ...this.#route, key };
    if (key || this.#streams.size) this.#choose(key ?? this.#default());
  }

  close() {
    clearTimeout(this.#timer);
    clearTimeout(this.#hiding);
    cancelAnimationFrame(this.#frame);
    document.removeEventListener("visibilitychange", this.#visibility);
    for (const stream of this.#streams.values()) stream.tail?.stop();
    this.#root.replaceChildren();
  }

  retry() {
    this.#look();
    for (const { tail } of this.#streams.values()) {
      if (tail && tail.status !== "ended") tail.retryNow();
    }
  }

  focus() {
    this.#parts.heading.focus();
  }

  // -- what the server says of it ---------------------------------------------------------

  async #look() {
    clearTimeout(this.#timer);
    const { kind, id } = this.#route;
    try {
      if (kind === "streams") {
        if (!this.#streams.get("").type) await this.#head();
      } else if (!document.hidden) {
        const known = await getJson(`v1/${kind}/${encodeURIComponent(id)}`);
        this.#known(known);
      }
    } catch (error) {
      if (error instanceof ApiError && error.status === 400) this.#fail(error.message);
    }
    if (!this.#root.isConnected || this.#root.firstChild !== this.#parts.top) return;
    const { key } = this.#route;
    if (!this.#selected && (this.#streams.size || key)) this.#choose(key ?? this.#default());
    else if (!this.#selected) this.#choose("default");
    const over = isOver(this.#state) && [...this.#streams.values()].every((s) => s.tail?.over);
    clearTimeout(this.#timer);
    const pause = this.#state === "PENDING" ? FIRST_LOOKS : EVERY;
    if (!over && kind !== "streams") this.#timer = setTimeout(() => this.#look(), pause);
  }

  async #head() {
    const stream = this.#streams.get("");
    const head = await request(stream.url, { method: "HEAD" });
    stream.type = (head.headers.get("content-type") ?? "").split(";")[0];
  }

  #known({ state, attempts, streams }) {
    for (const { key, url, contentType } of streams) {
      const stream = this.#stream(key, url);
      stream.type = contentType.split(";")[0];
    }
    if (state) this.#showRun(state, attempts);
    this.#followOthers();
  }

  #showRun(state, attempts) {
    if (state !== this.#state && this.#state !== null) announce(`The run is ${state}`);
    this.#state = state;
    this.#attempts = Math.max(attempts ?? 0, this.#attempts);
    showState(this.#parts.state, state);
    this.#parts.state.hidden = false;
    setText(this.#parts.attempts, this.#attempts ? plural(this.#attempts, "attempt") : "");
  }

  // -- streams ----------------------------------------------------------------------------

  #stream(key, url) {
    let stream = this.#streams.get(key);
    if (stream) return stream;
    const { kind, id } = this.#route;
    const path = kind === "streams" ? encodePath(id) : [kind, id, key].map(encodeURIComponent).join("/");
    const count = h("span", { class: "count" });
    const tab = h("a", { role: "tab", id: `tab-${this.#streams.size}`, "aria-controls": "log",
      href: this.#href(key) }, h("span", {}, key), count);
    stream = { key, url: url ?? `v1/stream/${path}`, type: "", tab, count, blocks: new Blocks(), tail: null };
    this.#streams.set(key, stream);
    this.#parts.tabs.append(tab);
    this.#parts.tabs.hidden = kind === "streams";
    return stream;
  }

  #default() {
    const keys = [...this.#streams.keys()];
    return keys.includes("default") ? "default" : keys[0];
  }

  #choose(key) {
    const stream = this.#stream(key);
    if (this.#selected === stream) return;
    this.#selected = stream;
    for (const { tab } of this.#streams.values()) {
      tab.setAttribute("aria-selected", String(tab === stream.tab));
      tab.tabIndex = tab === stream.tab ? 0 : -1;
    }
    this.#parts.scroller.setAttribute("aria-labelledby", stream.tab.id);
    this.#follow(stream);
    this.#followOthers();
    this.#log = new Log(this.#parts.scroller, this.#parts.body, stream.blocks, (following) => {
      this.#parts.jump.hidden = following;
    });
    this.#reported = "";
    this.#draw();
  }

  #follow(stream) {
    if (!stream.tail) {
      stream.tail = new Tail(stream.url, stream.type, {
        chunks: (values, start, end) => stream.blocks.add(values, start, end),
        gap: (from, to) => stream.blocks.gap(from, to),
        status: () => this.#changed(stream),
      });
      stream.tail.start();
    } else if (stream.tail.status === "paused") {
      stream.tail.start();
    }
  }

  /** A few of the others, too: their counts and their progress are shown. */
  #followOthers() {
    if (!this.#selected) return;
    const others = [...this.#streams.values()].filter((each) => each !== this.#selected);
    let free = AT_ONCE - 1;
    for (const stream of others) {
      if (!stream.tail?.over && free-- <= 0) stream.tail?.pause();
      else this.#follow(stream);
    }
  }

  #changed(stream) {
    const { tail } = stream;
    if (this.#route.kind === "runs" && tail.runState && tail.runState !== this.#state) {
      this.#showRun(tail.runState, 0);
      this.#look();
    }
    if (tail.status === "failed" && !signedIn()) this.#reported = "";
    if (!this.#frame) this.#frame = requestAnimationFrame(() => this.#draw());
  }

  #visibility = () => {
    clearTimeout(this.#hiding);
    if (document.hidden) {
      this.#hiding = setTimeout(() => {
        for (const { tail } of this.#streams.values()) if (tail && !tail.over) tail.pause();
      }, HIDDEN);
      return;
    }
    if (this.#selected) this.#follow(this.#selected);
    this.#followOthers();
    this.#look();
  };

  // -- the document -----------------------------------------------------------------------

  #parts = {};

  #build() {
    const { kind, id } = this.#route;
    const p = this.#parts;
    p.heading = h("h2", { tabindex: "-1" }, id);
    p.state = h("span", { hidden: true });
    p.attempts = h("span", { class: "facts" });
    p.fill = h("span", { class: "fill" });
    p.progress = h("div", { class: "progress", role: "progressbar", "aria-label": "Progress",
      "aria-valuemin": "0", "aria-valuemax": "100", hidden: true }, h("span", { class: "track" }, p.fill));
    p.progressText = h("span", { class: "progress-text" });
    p.progressLine = h("div", { class: "progress-line", hidden: true }, p.progress, p.progressText);
    p.tabs = h("div", { class: "tabs", role: "tablist", "aria-label": "Streams", hidden: true,
      onkeydown: (event) => this.#walkTabs(event) });
    p.dot = h("span", { class: "dot", "aria-hidden": "true" });
    p.connection = h("span", { class: "word" });
    p.detail = h("span", { class: "facts", id: "connection-detail" });
    p.retry = h("button", { type: "button", class: "quiet", hidden: true, onclick: () => this.retry() },
      "Try now");
    p.chunks = h("span", { class: "chunks", id: "chunks" });
    p.scroller = h("div", { class: "log", id: "log", role: "tabpanel", tabindex: "0",
      "aria-live": "off" });
    p.body = h("div", { class: "blocks", id: "blocks" });
    p.foot = h("p", { class: "foot", id: "foot" });
    p.scroller.append(p.body, p.foot);
    p.jump = h("button", { type: "button", class: "jump", hidden: true,
      onclick: () => { this.#log?.toEnd(); p.scroller.focus({ preventScroll: true }); } }, "Jump to end");
    p.top = h("header", { class: "top" },
      h("div", { class: "title" },
        h("a", { class: "back", href: "#/", "aria-label": "Back to the list" }, "←"),
        h("div", { class: "names" },
          h("p", { class: "kind" }, TITLES[kind], p.state, p.attempts),
          p.heading)),
      p.progressLine,
      h("div", { class: "bar" }, p.tabs,
        h("div", { class: "tools" },
          this.#copier("Copy text", () => this.#selected?.blocks.text() ?? "", "what the stream holds"),
          this.#copier("curl", () => this.#curl(), "the curl command for this stream"),
          this.#copier("Python", () => this.#python(), "the Python code for this stream"))));
    const status = h("div", { class: "status" }, h("span", { class: "connection" }, p.dot, p.connection),
      p.detail, p.retry, p.chunks);
    this.#root.replaceChildren(p.top, status, p.scroller, p.jump);
  }

  #draw() {
    this.#frame = 0;
    const stream = this.#selected;
    if (!stream?.tail) return;
    this.#log.update();
    const { blocks, tail } = stream;
    setText(this.#parts.chunks, plural(blocks.chunks, "chunk"));
    for (const each of this.#streams.values()) {
      setText(each.count, each.blocks.chunks ? number(each.blocks.chunks) : "");
    }
    this.#showConnection(tail);
    this.#showProgress();
    this.#showEnd(tail, blocks);
    // The foot changes the height at the end, too.
    if (this.#log.following) this.#log.update();
  }

  #showConnection(tail) {
    const words = { connecting: tail.reconnects ? "Reconnecting" : "Connecting", live: "Live",
      waiting: "Reconnecting", ended: "Ended", failed: "Cannot be read", paused: "Paused" };
    const word = words[tail.status];
    const details = { waiting: "the connection is lost; nothing is", failed: tail.problem };
    const again = tail.reconnects ? `reconnected ${tail.reconnects === 1 ? "once" : `${tail.reconnects} times`}` : "";
    this.#parts.dot.dataset.status = tail.status;
    setText(this.#parts.connection, word);
    setText(this.#parts.detail, details[tail.status] ?? again);
    this.#parts.retry.hidden = tail.status !== "waiting" && tail.status !== "failed";
    if (this.#reported !== tail.status && word !== "Connecting") {
      if (this.#reported || tail.status === "failed") announce(`${word}. ${tail.problem}`);
      this.#reported = tail.status;
    }
  }

  #showProgress() {
    const own = this.#selected.blocks.progress;
    const found = own ?? [...this.#streams.values()].map((s) => s.blocks.progress).find(Boolean);
    this.#parts.progressLine.hidden = this.#parts.progress.hidden = !found;
    if (!found) return;
    const { ratio, done, total } = found;
    this.#parts.fill.style.transform = `scaleX(${ratio})`;
    const text = total === undefined ? percent(ratio) : `${number(done)} of ${number(total)} · ${percent(ratio)}`;
    this.#parts.progress.setAttribute("aria-valuenow", String(Math.round(ratio * 100)));
    this.#parts.progress.setAttribute("aria-valuetext", text);
    setText(this.#parts.progressText, text);
  }

  #showEnd(tail, blocks) {
    const { foot } = this.#parts;
    let text = "";
    if (tail.status === "ended") text = "End of stream";
    else if (tail.status === "live" && !blocks.chunks) text = "Nothing has been written yet.";
    else if (!blocks.chunks && tail.status === "failed") text = tail.problem;
    foot.className = `foot ${tail.status}`;
    foot.hidden = text === "";
    setText(foot, text);
  }

  #fail(problem) {
    announce(problem);
    setText(this.#parts.foot, problem);
  }

  // -- small things -----------------------------------------------------------------------

  #href(key) {
    const { kind, id } = this.#route;
    const own = `#/${kind}/${encodeURIComponent(id)}`;
    return key ? `${own}/${encodeURIComponent(key)}` : own;
  }

  #walkTabs(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...this.#streams.values()];
    const next = all[(all.indexOf(this.#selected) + step + all.length) % all.length];
    location.hash = this.#href(next.key);
    next.tab.focus();
  }

  #copier(label, text, what) {
    const button = h("button", { type: "button", class: "quiet", "aria-label": `${label}: copy ${what}`,
      title: `Copy ${what}` }, label);
    button.addEventListener("click", async () => {
      let said = "Copied";
      try {
        await copy(text());
      } catch {
        said = "Not copied";
      }
      announce(said);
      setText(button, said);
      button.classList.add("done");
      setTimeout(() => { setText(button, label); button.classList.remove("done"); }, 1_500);
    });
    return button;
  }

  #curl() {
    const url = urlOf(`${this.#selected.url}?offset=-1&live=sse`).href;
    const token = signedIn() ? ' -H "Authorization: Bearer $TOKEN"' : "";
    return `curl -N${token} ${quoted(url)}`;
  }

  #python() {
    const { kind, id } = this.#route;
    const { key, url } = this.#selected;
    if (kind === "streams") {
      return `from urllib.request import urlopen\n\nprint(urlopen(${JSON.stringify(urlOf(url).href)}).read())`;
    }
    const channel = key === "in" ? "inbox" : "out";
    const call = kind === "runs"
      ? `streams.read(${[id, key].map((each) => JSON.stringify(each)).join(", ")})`
      : `streams.session(${JSON.stringify(id)}).${channel}.read()`;
    return `# streams = Streams(app)\nfor chunk in ${call}:\n    print(chunk)`;
  }
}

/** Text as one word of a shell. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
