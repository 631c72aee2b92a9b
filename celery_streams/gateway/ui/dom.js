// Small helpers around the document. Text becomes text, never markup.

export const byId = (id) => document.getElementById(id);

/** An element: `h("a", {class: "row", href, onclick}, "text", child)`. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Set text only if it differs, so that nothing is announced or laid out for nothing. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Tell people who listen instead of look. */
export function announce(text) {
  setText(byId("announcer"), text);
}

const whole = new Intl.NumberFormat("en");
export const number = (value) => whole.format(value);
export const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

export function size(bytes) {
  if (bytes < 1024) return plural(bytes, "byte");
  const unit = bytes < 1024 ** 2 ? 1 : bytes < 1024 ** 3 ? 2 : 3;
  return `${(bytes / 1024 ** unit).toFixed(1)} ${["KiB", "MiB", "GiB"][unit - 1]}`;
}

/** How long ago `seconds` (Unix time) was, in words that fit into a list. */
export function ago(seconds) {
  const passed = Math.max(0, Date.now() / 1000 - seconds);
  if (passed < 10) return "just now";
  if (passed < 60) return `${Math.floor(passed)} s ago`;
  if (passed < 3600) return `${Math.floor(passed / 60)} min ago`;
  if (passed < 86400) return `${Math.floor(passed / 3600)} h ago`;
  return new Date(seconds * 1000).toLocaleDateString();
}

/** Copy to the clipboard, also where the page is served without TLS. */
export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const field = h("textarea", { class: "unseen", readonly: true, "aria-hidden": "true" });
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  if (!done) throw new Error("the browser does not let this page copy");
}

const STATES = ["PENDING", "STARTED", "RETRY", "SUCCESS", "FAILURE", "REVOKED", "STALLED"];

/** A run's state as a badge: a coloured dot and the word. */
export function showState(element, state) {
  if (element.dataset.state === state) return;
  element.dataset.state = state;
  element.classList.add("state");
  const word = STATES.includes(state) ? state[0] + state.slice(1).toLowerCase() : state;
  setText(element, word);
}

/** Whether a run in this state writes no more. */
export const isOver = (state) => ["SUCCESS", "FAILURE", "REVOKED"].includes(state);
