import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport } from "ai";
import { useEffect, useRef, useState } from "react";

// Where the application mounts the gateway.
const GATEWAY = "/streams";
const AGENT = `${GATEWAY}/chat/assistant`;
const RETRY_MS = 500;

const transport = new DefaultChatTransport({ api: AGENT });

/**
 * `useChat`, kept in step with the session: whenever nothing is being received, the page looks
 * at the session, and joins the answer that is being written. So a reload, another tab's message
 * and a connection that broke are all the same to it.
 */
export function useSession(id, { onUnsent }) {
  const chat = useChat({ id, transport, experimental_throttle: 40 });
  const [state, setState] = useState("looking"); // then "settled" or "offline"
  const { viewed, fetchBranches, leave, versionsAt } = useBranches(id, chat, toLatest);
  const latest = useRef();
  latest.current = { chat, onUnsent, viewed };

  const looking = useRef(false);
  const timer = useRef();
  async function look() {
    clearTimeout(timer.current);
    if (looking.current || latest.current.viewed || !idle(latest.current.chat)) return;
    looking.current = true;
    let again = false;
    try {
      again = await join();
    } catch {
      setState("offline");
      again = true;
    } finally {
      looking.current = false;
    }
    if (again) timer.current = setTimeout(look, RETRY_MS);
  }

  /** Show the session as it is; whether to look again soon. */
  async function join() {
    const session = await request("GET", id, "messages");
    const { chat, onUnsent, viewed } = latest.current;
    if (viewed || !idle(chat)) return false; // something was done meanwhile
    setState(session.active ? "looking" : "settled");
    const known = new Set([...session.messages, ...session.pending].map((each) => each.id));
    const last = chat.messages.at(-1);
    if (last?.role === "user" && !known.has(last.id)) onUnsent(last);
    chat.setMessages(session.messages);
    if (!session.active) {
      await fetchBranches();
      return false;
    }
    await chat.resumeStream();
    return true;
  }

  useEffect(() => {
    if (idle(chat)) look();
    else setState("looking");
  }, [chat.status]);

  useEffect(() => {
    // The session's requests, whichever tab sent them.
    let source, opening;
    const inbox = `${GATEWAY}/v1/stream/sessions/${id}/in`;
    async function open() {
      try {
        // So that there is something to follow before the first message.
        await fetch(inbox, { method: "PUT", headers: { "content-type": "application/json" } });
      } catch {
        opening = setTimeout(open, RETRY_MS);
        return;
      }
      if (opening === null) return;
      source = new EventSource(`${inbox}?live=sse&offset=now`);
      source.addEventListener("open", look);
      source.addEventListener("data", look);
      source.addEventListener("error", () => {
        if (source.readyState === EventSource.CLOSED) opening = setTimeout(open, RETRY_MS);
      });
    }
    open();
    return () => {
      clearTimeout(opening);
      clearTimeout(timer.current);
      opening = null;
      source?.close();
    };
  }, [id]);

  /** End the answer that is shown, for everybody; the stream then ends by itself. */
  async function stop() {
    const last = chat.messages.at(-1); // the question, before the answer's first chunk
    const which = last?.role === "assistant" ? `?message=${encodeURIComponent(last.id)}` : "";
    try {
      await request("POST", id, `stop${which}`);
    } catch {
      setState("offline");
    }
  }

  /** Send a message, in the branch that is shown. */
  function send(message) {
    const body = leave();
    return chat.sendMessage(message, { body });
  }

  /** Have the answer `messageId`, or the last question, answered again. */
  function again(messageId) {
    const body = leave();
    return chat.regenerate({ messageId, body });
  }

  function toLatest() {
    leave();
    latest.current.viewed = null;
    look();
  }

  return { ...chat, send, again, stop, state, viewed, toLatest, versionsAt };
}

/**
 * The branches that edits and regenerates have left. One can be looked at: the messages of the page
 * are its messages then, and the next thing that is sent is for it (`branch` in the body).
 */
function useBranches(id, chat, toLatest) {
  const [branches, setBranches] = useState([]); // the first one first
  const [viewed, setViewed] = useState(null);

  async function fetchBranches() {
    setBranches((await request("GET", id, "branches")).branches.reverse());
  }

  async function show(branch) {
    try {
      const { messages } = await request("GET", id, `branches/${branch.id}`);
      setViewed(branch.id);
      chat.setMessages(messages);
    } catch {
      toLatest(); // it is gone, or the gateway is
    }
  }

  /** What stands in the place of a message that is shown: how many, which one, and another. */
  function versionsAt(place) {
    const before = place > 0 ? chat.messages[place - 1].id : null;
    const others = branches.filter((branch) => branch.after === before);
    if (others.length === 0 || !idle(chat)) return {};
    const shown = others.findIndex((branch) => branch.id === viewed);
    return {
      versions: others.length + 1,
      version: shown < 0 ? others.length : shown,
      onVersion: (number) => (number < others.length ? show(others[number]) : toLatest()),
    };
  }

  function leave() {
    setViewed(null);
    return viewed ? { branch: viewed } : {};
  }

  return { viewed, fetchBranches, leave, versionsAt };
}

function idle(chat) {
  return chat.status === "ready" || chat.status === "error";
}

async function request(method, id, what) {
  const response = await fetch(`${AGENT}/${id}/${what}`, { method });
  if (!response.ok) throw new Error(`the gateway answered ${response.status}`);
  return response.json();
}
