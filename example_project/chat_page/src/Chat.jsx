import { useEffect, useRef, useState } from "react";

import { Message } from "./Message.jsx";
import { useSession } from "./useSession.js";

const EXAMPLES = ["What does functools.partial do?", "And zip?", "Tell me about asyncio"];

export function Chat({ id }) {
  const [text, setText] = useState("");
  const input = useRef(null);
  const end = useRef(null);
  const chat = useSession(id, {
    // The gateway never got it: back to where it was typed.
    onUnsent: (message) => setText((typed) => typed || textOf(message)),
  });
  const busy = chat.status === "submitted" || chat.status === "streaming";
  const last = chat.messages.at(-1);

  useEffect(() => input.current?.focus(), []);
  useEffect(() => {
    const { scrollHeight, scrollTop, clientHeight } = document.documentElement;
    // Follow the answer, unless the reader has scrolled away from its end.
    if (scrollHeight - scrollTop - clientHeight < 160) end.current?.scrollIntoView();
  }, [chat.messages]);
  useEffect(() => {
    const onKey = (event) => event.key === "Escape" && busy && chat.stop();
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  });

  function send(question) {
    if (!question.trim() || busy) return;
    chat.sendMessage({ text: question });
    setText("");
    input.current?.focus();
  }

  return (
    <>
      <header>
        <h1>Documentation assistant</h1>
        <span className={`state ${chat.state}`} role="status">
          {chat.state === "offline" ? "Reconnecting…" : busy ? "Answering" : "Ready"}
        </span>
        <a className="button" href={`#${id}`} target="_blank" rel="opener">
          Second tab
        </a>
        <button type="button" onClick={() => (location.hash = crypto.randomUUID())}>
          New chat
        </button>
      </header>
      <main aria-busy={busy}>
        {chat.messages.length === 0 && chat.state === "settled" && !busy && (
          <section className="hints">
            <p>Ask about anything in Python's standard library. Reload in mid-answer if you like.</p>
            {EXAMPLES.map((each) => (
              <button type="button" key={each} onClick={() => send(each)}>
                {each}
              </button>
            ))}
          </section>
        )}
        {chat.messages.map((message) => (
          <Message
            key={message.id}
            message={message}
            live={busy && message === last && message.role === "assistant"}
          />
        ))}
        {chat.error && !busy && chat.state === "settled" && <p className="error" role="alert">The answer ended with an error.</p>}
        {!busy && chat.state === "settled" && last && (
          <button type="button" className="again" onClick={() => chat.regenerate()}>
            Regenerate
          </button>
        )}
        <div ref={end} />
      </main>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          send(text);
        }}
      >
        <input
          ref={input}
          aria-label="Your question"
          placeholder="What does json.dumps do?"
          value={text}
          onChange={(event) => setText(event.target.value)}
        />
        {busy ? (
          <button type="button" className="stop" onClick={chat.stop} title="Escape">
            Stop
          </button>
        ) : (
          <button type="submit" disabled={!text.trim()}>
            Send
          </button>
        )}
      </form>
    </>
  );
}

function textOf(message) {
  return message.parts.map((part) => part.text ?? "").join("");
}
