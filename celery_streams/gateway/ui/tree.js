// A JSON value as a tree of <details>, each level made when it is opened.

import { h, number, plural } from "./dom.js";
import { stringify } from "./blocks.js";

const PREVIEW = 120; // characters
const STEP = 100; // members shown at once

const isTree = (value) => value !== null && typeof value === "object";
const kind = (value) => (value === null ? "null" : typeof value);

/** The value itself; a tree is closed unless it is small. */
export function tree(value) {
  return isTree(value) ? branch(null, value) : leaf(null, value);
}

function leaf(name, value) {
  const text = typeof value === "bigint" ? String(value) : stringify(value);
  return h("div", { class: "leaf" }, ...label(name), h("span", { class: kind(value) }, text));
}

function branch(name, value) {
  const members = Object.entries(value);
  const array = Array.isArray(value);
  if (!members.length) {
    return h("div", { class: "leaf" }, ...label(name), h("span", {}, array ? "[ ]" : "{ }"));
  }
  const count = array ? plural(members.length, "item") : "";
  const summary = h(
    "summary", {}, ...label(name),
    h("span", { class: "preview" }, preview(value)),
    count ? h("span", { class: "count" }, count) : null,
  );
  const details = h("details", { class: "branch" }, summary);
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) {
      const inside = h("div", { class: "members" });
      details.append(inside);
      more(inside, members, 0);
    }
  });
  return details;
}

function more(inside, members, from) {
  const upTo = Math.min(members.length, from + STEP);
  for (const [name, value] of members.slice(from, upTo)) {
    inside.append(isTree(value) ? branch(name, value) : leaf(name, value));
  }
  if (upTo === members.length) return;
  const left = `${number(members.length - upTo)} more`;
  const button = h("button", { type: "button", class: "quiet" }, left);
  button.addEventListener("click", () => {
    button.remove();
    more(inside, members, upTo);
  });
  inside.append(button);
}

function label(name) {
  return name === null ? [] : [h("span", { class: "label" }, h("span", { class: "name" }, name), ": ")];
}

/** The beginning of the value's JSON, without making all of it. */
function preview(value) {
  const parts = [];
  let length = 0;
  for (const [name, member] of Object.entries(value)) {
    let text;
    if (Array.isArray(member)) text = member.length ? `[${member.length}]` : "[]";
    else if (isTree(member)) text = "{…}";
    else if (typeof member === "string" && member.length > 60) text = `"${member.slice(0, 60)}…"`;
    else text = typeof member === "bigint" ? String(member) : stringify(member);
    const part = Array.isArray(value) ? text : `${name}: ${text}`;
    parts.push(part);
    length += part.length;
    if (length > PREVIEW) {
      parts.push("…");
      break;
    }
  }
  const inner = parts.join(", ");
  return Array.isArray(value) ? `[${inner}]` : `{ ${inner} }`;
}
