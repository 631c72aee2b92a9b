// Blocks in the document: a window of them, however many there are, that follows the end.

import { hex } from "./blocks.js";
import { h, number, plural, size } from "./dom.js";
import { tree } from "./tree.js";

const WINDOW = 160; // blocks in the document while it follows the end
const PAGE = 80; // blocks that scrolling adds
const NEAR = 500; // pixels from an end at which it does
const HEX_ROWS = 64;

export class Log {
  following = true;

  #scroller;
  #body;
  #blocks;
  #low = 0;
  #high = 0;
  #lastTop = 0;
  #onFollow;

  /** `scroller` scrolls, `body` inside it holds the blocks. */
  constructor(scroller, body, blocks, onFollow) {
    this.#scroller = scroller;
    this.#body = body;
    this.#blocks = blocks;
    this.#onFollow = onFollow;
    body.replaceChildren();
    scroller.onscroll = () => this.#scrolled();
    this.toEnd();
  }

  /** Show what has come; once per frame. */
  update() {
    const { first, end } = this.#blocks;
    this.#grow();
    if (this.following) {
      if (end - this.#high > WINDOW) {
        this.#restart(Math.max(first, end - WINDOW));
      } else {
        this.#append(end);
        if (this.#high - this.#low > WINDOW + PAGE) this.#dropTop(this.#high - WINDOW);
      }
      this.#stick();
    } else if (this.#high - this.#low < 2 * WINDOW) {
      this.#append(Math.min(end, this.#low + 2 * WINDOW));
    }
    if (this.#low < first) this.#dropTop(Math.min(first, this.#high));
  }

  toEnd() {
    this.following = true;
    this.#onFollow(true);
    const { first, end } = this.#blocks;
    if (this.#high !== end) this.#restart(Math.max(first, end - WINDOW));
    this.#stick();
  }

  toStart() {
    this.following = false;
    this.#onFollow(false);
    this.#restart(this.#blocks.first);
    this.#scroller.scrollTop = this.#lastTop = 0;
  }

  #stick() {
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#lastTop = this.#scroller.scrollTop;
  }

  #restart(low) {
    this.#body.replaceChildren();
    this.#low = this.#high = low;
    this.#append(Math.min(this.#blocks.end, low + WINDOW));
  }

  #append(upTo) {
    if (upTo <= this.#high) return;
    const fragment = document.createDocumentFragment();
    for (; this.#high < upTo; this.#high++) fragment.append(shown(this.#blocks.at(this.#high)));
    this.#body.append(fragment);
  }

  /** The last text may have become longer. */
  #grow() {
    const element = this.#body.lastElementChild;
    const block = this.#blocks.at(this.#high - 1);
    if (block?.kind !== "text" || !element) return;
    const node = element.firstChild;
    if (node.length < block.text.length) node.appendData(block.text.slice(node.length));
    element.dataset.end = block.end;
  }

  #dropTop(low) {
    this.#keepingPlace(() => {
      for (; this.#low < low; this.#low++) this.#body.firstElementChild?.remove();
    });
  }

  #dropBottom(high) {
    for (; this.#high > high; this.#high--) this.#body.lastElementChild?.remove();
  }

  /** Change what is above without moving what is being read. */
  #keepingPlace(change) {
    const before = this.#scroller.scrollHeight;
    const top = this.#scroller.scrollTop;
    change();
    if (!this.following) {
      this.#scroller.scrollTop = top + this.#scroller.scrollHeight - before;
      this.#lastTop = this.#scroller.scrollTop;
    }
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    const below = scrollHeight - scrollTop - clientHeight;
    const whole = this.#high === this.#blocks.end;
    const wanted = this.following ? scrollTop >= this.#lastTop || below < 24 : whole && below < 24;
    this.#lastTop = scrollTop;
    if (wanted !== this.following) {
      this.following = wanted;
      this.#onFollow(wanted);
    }
    if (this.following) return;
    if (scrollTop < NEAR && this.#low > this.#blocks.first) this.#earlier();
    else if (below < NEAR && !whole) this.#later();
  }

  #earlier() {
    const low = Math.max(this.#blocks.first, this.#low - PAGE);
    const fragment = document.createDocumentFragment();
    for (let i = low; i < this.#low; i++) fragment.append(shown(this.#blocks.at(i)));
    this.#keepingPlace(() => {
      this.#body.prepend(fragment);
      this.#low = low;
    });
    this.#dropBottom(Math.min(this.#high, this.#low + 2 * WINDOW));
  }

  #later() {
    this.#append(Math.min(this.#blocks.end, this.#high + PAGE));
    if (this.#high - this.#low > 2 * WINDOW) this.#dropTop(this.#high - 2 * WINDOW);
  }
}

function shown(block) {
  const element = draw(block);
  element.dataset.start = block.start;
  element.dataset.end = block.end;
  return element;
}

function draw(block) {
  switch (block.kind) {
    case "text":
      return h("div", { class: "text" }, document.createTextNode(block.text));
    case "gap": {
      const count = plural(block.end - block.start, "chunk");
      return h("p", { class: "gap" }, `${count} from here on are no longer kept by the server`);
    }
    case "bytes":
      return row(block, bytes(block.value));
    case "progress":
      return row(block, bar(block.progress));
    default:
      return row(block, tree(block.value));
  }
}

const row = (block, content) =>
  h("div", { class: "row" }, h("span", { class: "offset" }, number(block.start)), content);

function bar({ ratio, done, total }) {
  const fill = h("span", { class: "fill" });
  fill.style.transform = `scaleX(${ratio})`;
  const text = total === undefined ? `${percent(ratio)}` : `${number(done)} of ${number(total)}`;
  const track = h("span", { class: "track", "aria-hidden": "true" }, fill);
  return h("div", { class: "step" }, track, h("span", {}, text));
}

export const percent = (ratio) => `${Math.round(ratio * 100)} %`;

function bytes(value) {
  const summary = h(
    "summary", {},
    h("span", { class: "count" }, size(value.length)),
    h("span", { class: "preview" }, hex(value.subarray(0, 24)) + (value.length > 24 ? " …" : "")),
  );
  const details = h("details", { class: "branch" }, summary);
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(dump(value));
  });
  return details;
}

/** Offset, sixteen bytes, and what of them is ASCII. */
function dump(value) {
  const lines = [];
  for (let at = 0; at < value.length && lines.length < HEX_ROWS; at += 16) {
    const part = value.subarray(at, at + 16);
    const ascii = Array.from(part, (b) => (b > 31 && b < 127 ? String.fromCharCode(b) : "·"));
    lines.push(`${at.toString(16).padStart(6, "0")}  ${hex(part).padEnd(47)}  ${ascii.join("")}`);
  }
  const left = value.length - HEX_ROWS * 16;
  if (left > 0) lines.push(`… ${size(left)} more`);
  return h("pre", { class: "dump" }, lines.join("\n"));
}
