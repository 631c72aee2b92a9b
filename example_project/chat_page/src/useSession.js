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
  const chat = useChat({ id, transport });
  const [state, setState] = useState("looking"); // then "settled" or "offline"
  const latest = useRef();
  latest.current = { chat, onUnsent };

  const looking = useRef(false);
  const timer = useRef();
  async function look() {
    clearTimeout(timer.current);
    if (looking.current || !idle(latest.current.chat)) return;
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
    const { chat, onUnsent } = latest.current;
    if (!idle(chat)) return false; // something was sent meanwhile
    setState(session.active ? "looking" : "settled");
    const known = new Set([...session.messages, ...session.pending].map((each) => each.id));
    const last = chat.messages.at(-1);
    if (last?.role === "user" && !known.has(last.id)) onUnsent(last);
    chat.setMessages(session.messages);
    if (!session.active) return false;
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

  /** End the answer for everybody; the stream then ends by itself. */
  async function stop() {
    try {
      await request("POST", id, "stop");
    } catch {
      setState("offline");
    }
  }

  return { ...chat, stop, state };
}

function idle(chat) {
  return chat.status === "ready" || chat.status === "error";
}

async function request(method, id, what) {
  const response = await fetch(`${AGENT}/${id}/${what}`, { method });
  if (!response.ok) throw new Error(`the gateway answered ${response.status}`);
  return response.json();
}
