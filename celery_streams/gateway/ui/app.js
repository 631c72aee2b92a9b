// The page: which run is open (from the address), signing in, and the keyboard.

import { onUnauthorized, signedIn, signIn } from "./api.js";
import { announce, byId, setText } from "./dom.js";
import { Panel } from "./panel.js";
import { Sidebar } from "./sidebar.js";

const sidebar = new Sidebar();
const dialog = byId("sign-in");
let panel = null;

/** `#/runs/<id>/<key>`; a client's own stream has its whole path in the place of the id. */
function parseRoute(hash) {
  const parts = /^#\/(runs|sessions|streams)\/([^/]+)(?:\/([^/]+))?\/?$/.exec(hash);
  if (!parts) return null;
  try {
    const [kind, id, key] = parts.slice(1).map((part) => part && decodeURIComponent(part));
    return { kind, id, key };
  } catch {
    return null;
  }
}

function show() {
  const route = parseRoute(location.hash);
  const same = panel && route && panel.route.kind === route.kind && panel.route.id === route.id;
  if (same) {
    panel.select(route.key);
    return;
  }
  panel?.close();
  byId("panel").hidden = !route;
  byId("welcome").hidden = Boolean(route);
  document.body.classList.toggle("opened", Boolean(route));
  panel = route ? new Panel(route) : null;
  document.title = route ? `${route.id} · Streams` : "Streams";
  sidebar.select(route);
  panel?.focus();
}

let dismissed = false;

function showSession() {
  const button = byId("session");
  button.hidden = !signedIn() && !dismissed;
  setText(button, signedIn() && !dismissed ? "Sign out" : "Sign in");
}

onUnauthorized((problem) => {
  if (dialog.open || dismissed) return;
  setText(byId("sign-in-reason"), problem
    ? `The server refused the token: ${problem}`
    : "This server asks for an access token.");
  dialog.showModal();
});

byId("sign-in-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = byId("token");
  signIn(field.value);
  field.value = "";
  dismissed = false;
  dialog.close();
  showSession();
  announce("Signed in");
  sidebar.refresh();
  panel?.retry();
});

// Whoever closes it is not asked again and again.
dialog.addEventListener("cancel", () => {
  dismissed = true;
  showSession();
});

byId("session").addEventListener("click", () => {
  if (dismissed) {
    dialog.showModal();
    return;
  }
  signIn("");
  location.hash = "#/";
  location.reload();
});

byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  (byId("log") ?? byId("main")).focus();
});

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
  const typing = event.target instanceof HTMLInputElement;
  if (event.key === "/" && !typing) {
    event.preventDefault();
    if (panel && matchMedia("(max-width: 760px)").matches) location.hash = "#/";
    sidebar.focusSearch();
  } else if (event.key === "Escape") {
    if (typing && sidebar.clearSearch()) return;
    if (typing) {
      event.target.blur();
    } else if (panel) {
      location.hash = "#/";
      show();
      sidebar.select(null);
      sidebar.focusCurrent();
    }
  }
});

addEventListener("hashchange", show);
showSession();
show();
sidebar.refresh();
