// Requests to the gateway. The token travels in a header only, and lives in this tab only.

const KEY = "celery-streams-token";
const base = new URL(".", location.href.split("#")[0]);

let token = sessionStorage.getItem(KEY) ?? "";

/** Called with a sentence when a request needs a (better) token. */
let ask = () => {};

export class ApiError extends Error {
  constructor(status, code, detail, headers) {
    super(detail);
    this.status = status;
    this.code = code;
    this.headers = headers;
  }
}

export const onUnauthorized = (callback) => { ask = callback; };
export const signedIn = () => token !== "";

export function signIn(given) {
  token = given.trim().replace(/^bearer\s+/i, "");
  if (token) sessionStorage.setItem(KEY, token);
  else sessionStorage.removeItem(KEY);
}

/** The URL of a path below the gateway's prefix, or of an absolute one that it gave. */
export const urlOf = (path) => new URL(path, base);

/** A response that is good, or an ApiError. */
export async function request(path, { method = "GET", signal, headers = {} } = {}) {
  const sent = token;
  const all = sent ? { ...headers, authorization: `Bearer ${sent}` } : headers;
  const options = { method, signal, headers: all, cache: "no-store", credentials: "omit" };
  const response = await fetch(urlOf(path), { ...options, redirect: "error" });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const detail = problem.detail ?? response.statusText ?? "the request failed";
  if (response.status === 401 && sent === token) ask(sent ? detail : "");
  throw new ApiError(response.status, problem.code ?? "", detail, response.headers);
}

export async function getJson(path, options) {
  return (await request(path, options)).json();
}

export const encodePath = (path) => path.split("/").map(encodeURIComponent).join("/");
