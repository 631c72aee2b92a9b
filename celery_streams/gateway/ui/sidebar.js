// The list of recent runs and sessions: refreshed in place, filtered, walked with arrow keys.

import { ApiError, getJson, signedIn } from "./api.js";
import { ago, byId, h, plural, setText, showState } from "./dom.js";

const EVERY = 3_000;
const LIMIT = 50;

export class Sidebar {
  #lists = byId("lists");
  #search = byId("search");
  #groups = [new Group("runs", "Runs"), new Group("sessions", "Sessions")];
  #open = h("ul", { class: "open" });
  #current = "";
  #timer = 0;

  constructor() {
    this.#lists.append(this.#open, ...this.#groups.map((group) => group.element));
    this.#search.addEventListener("input", () => this.#filter());
    byId("search-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#links()[0]?.click();
    });
    this.#lists.addEventListener("keydown", (event) => this.#walk(event));
    this.#search.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown") this.#step(event, 0);
    });
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.refresh(); });
  }

  /** Ask now, and again and again. */
  async refresh() {
    clearTimeout(this.#timer);
    if (!document.hidden) await Promise.all(this.#groups.map((group) => group.refresh()));
    this.#filter();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.refresh(), EVERY);
  }

  /** Mark what is open. */
  select(route) {
    this.#current = route ? `#/${route.kind}/${encodeURIComponent(route.id)}` : "";
    this.#mark();
  }

  focusSearch() {
    this.#search.focus();
    this.#search.select();
  }

  /** Empty the search; whether there was anything in it. */
  clearSearch() {
    if (!this.#search.value) return false;
    this.#search.value = "";
    this.#filter();
    return true;
  }

  focusCurrent() {
    const links = this.#links();
    const current = links.find((link) => link.getAttribute("href") === this.#current);
    (current ?? links[0] ?? this.#search).focus();
  }

  #mark() {
    for (const link of this.#lists.querySelectorAll("a")) {
      if (link.getAttribute("href") === this.#current) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  #filter() {
    const wanted = this.#search.value.trim();
    for (const group of this.#groups) group.filter(wanted.toLowerCase());
    const known = this.#groups.some((group) => group.has(wanted));
    const rows = wanted && !known ? suggestions(wanted) : [];
    const held = this.#open.contains(document.activeElement) ? document.activeElement.href : null;
    const same = rows.map((r) => r.textContent).join() === this.#open.dataset.rows;
    if (!same) {
      this.#open.replaceChildren(...rows);
      this.#open.dataset.rows = rows.map((r) => r.textContent).join();
      if (held) this.#open.querySelector("a")?.focus();
    }
    this.#open.hidden = rows.length === 0;
    // What was found comes first, and what Enter opens is what stands first.
    const found = this.#groups.some((group) => group.visible > 0);
    const place = found ? this.#lists.lastElementChild : this.#lists.firstElementChild;
    if (place !== this.#open) this.#lists[found ? "append" : "prepend"](this.#open);
    this.#mark();
  }

  #links() {
    const all = [...this.#lists.querySelectorAll("a")];
    return all.filter((link) => !link.closest("[hidden]"));
  }

  #walk(event) {
    const at = this.#links().indexOf(document.activeElement);
    const last = this.#links().length - 1;
    if (event.key === "ArrowDown") this.#step(event, Math.min(last, at + 1));
    else if (event.key === "ArrowUp" && at === 0) this.#toSearch(event);
    else if (event.key === "ArrowUp") this.#step(event, at - 1);
    else if (event.key === "Home") this.#step(event, 0);
    else if (event.key === "End") this.#step(event, last);
  }

  #step(event, place) {
    event.preventDefault();
    this.#links()[place]?.focus();
  }

  #toSearch(event) {
    event.preventDefault();
    this.#search.focus();
  }
}

/** What an id that is not in the list could be of. */
function suggestions(wanted) {
  const [, kind, rest] = /^\/?(runs|sessions|streams)\/(.+)$/.exec(wanted) ?? [];
  const choices = kind ? [[kind, rest]] : [["runs", wanted], ["sessions", wanted]];
  return choices.map(([of, name]) => {
    const [id, key] = of === "streams" ? [name] : name.split("/");
    const href = `#/${of}/${encodeURIComponent(id)}${key ? `/${encodeURIComponent(key)}` : ""}`;
    const word = of.slice(0, -1);
    return h("li", {}, h("a", { href }, h("span", { class: "verb" }, `Open ${word}`),
      h("span", { class: "id" }, h("span", { class: "head" }, name))));
  });
}

class Group {
  visible = 0;

  #kind;
  #rows = new Map();
  #list = h("ul");
  #note = h("p", { class: "note" }, "Loading…");

  constructor(kind, title) {
    this.#kind = kind;
    const id = `title-${kind}`;
    this.element = h("section", { "aria-labelledby": id }, h("h2", { id }, title), this.#list,
      this.#note);
  }

  has(id) {
    return this.#rows.has(id);
  }

  async refresh() {
    try {
      const found = (await getJson(`v1/${this.#kind}?limit=${LIMIT}`))[this.#kind];
      this.#show(found);
      setText(this.#note, found.length ? "" : `No ${this.#kind} yet.`);
    } catch (error) {
      setText(this.#note, explained(error, this.#kind));
    }
  }

  filter(text) {
    this.visible = 0;
    for (const [id, row] of this.#rows) {
      row.element.hidden = !id.toLowerCase().includes(text);
      if (!row.element.hidden) this.visible++;
    }
    this.#note.hidden = text !== "" || this.#note.textContent === "";
    this.element.hidden = text !== "" && this.visible === 0;
  }

  #show(found) {
    const ids = new Set(found.map(({ id }) => id));
    for (const [id, row] of this.#rows) {
      const focused = row.element.contains(document.activeElement);
      if (ids.has(id) || focused) continue;
      row.element.remove();
      this.#rows.delete(id);
    }
    let before = this.#list.firstElementChild;
    for (const item of found) {
      let row = this.#rows.get(item.id);
      if (!row) this.#rows.set(item.id, (row = new Row(this.#kind, item.id)));
      row.show(item);
      // Moved only if it must be: moving takes the focus away.
      if (row.element === before) before = before.nextElementSibling;
      else if (!row.element.contains(document.activeElement)) {
        this.#list.insertBefore(row.element, before);
      }
    }
  }
}

class Row {
  #state = h("span");
  #facts = h("span", { class: "facts" });

  constructor(kind, id) {
    const href = `#/${kind}/${encodeURIComponent(id)}`;
    // The end of an id is what tells it from others: the middle gives way.
    const cut = id.length > 14 ? id.length - 6 : id.length;
    const name = h("span", { class: "id" }, h("span", { class: "unseen" }, id),
      h("span", { class: "head", "aria-hidden": "true" }, id.slice(0, cut)),
      h("span", { "aria-hidden": "true" }, id.slice(cut)));
    const line = h("span", { class: "line" }, kind === "runs" ? this.#state : null, this.#facts);
    this.element = h("li", {}, h("a", { href, title: id }, name, line));
  }

  show({ state, chunks, openedAt }) {
    if (state) showState(this.#state, state);
    const facts = [plural(chunks, "chunk")];
    if (openedAt) facts.push(ago(openedAt));
    setText(this.#facts, facts.join(" · "));
  }
}

function explained(error, kind) {
  if (!(error instanceof ApiError)) return "The server cannot be reached.";
  if (error.status === 401) return signedIn() ? "The token was refused." : "Sign in to see them.";
  if (error.status === 403) return `This token may not list ${kind}. Enter an id above.`;
  return error.message;
}
