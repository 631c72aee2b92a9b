import { useEffect, useRef, useState } from "react";

import { Icon } from "./Markdown.jsx";
import { Message, textOf } from "./Message.jsx";
import { useSession } from "./useSession.js";

const EXAMPLES = ["What does functools.partial do?", "And zip?", "Tell me about asyncio"];
/** As near to the end as counts as being there, pixels. */
const NEAR = 160;

export function Chat({ id }) {
  const [text, setText] = useState("");
  const input = useRef(null);
  const chat = useSession(id, {
    // The gateway never got it: back to where it was typed.
    onUnsent: (message) => setText((typed) => typed || textOf(message)),
  });
  const busy = chat.status === "submitted" || chat.status === "streaming";
  const settled = !busy && chat.state === "settled";
  const last = chat.messages.at(-1);
  const [away, toEnd] = useEnd(chat.messages);

  useEffect(() => input.current?.focus(), []);
  useEffect(() => {
    const onKey = (event) => event.key === "Escape" && busy && chat.stop();
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  });

  function send(question) {
    if (!question.trim() || busy) return;
    chat.send({ text: question });
    setText("");
    toEnd();
    input.current?.focus();
  }

  return (
    <>
      <Header id={id} busy={busy} state={chat.state} />
      <main aria-busy={busy}>
        {chat.messages.length === 0 && settled && (
          <section className="hints">
            <h2>What would you like to know?</h2>
            <p>Ask about anything in Python's standard library. Reload in mid-answer if you like.</p>
            <div>
              {EXAMPLES.map((each) => (
                <button type="button" key={each} onClick={() => send(each)}>
                  {each}
                </button>
              ))}
            </div>
          </section>
        )}
        {chat.messages.map((message, place) => (
          <Message
            key={`${message.id}/${chat.viewed ?? ""}`}
            message={message}
            live={busy && message === last && message.role === "assistant"}
            {...chat.versionsAt(place)}
            onEdit={
              settled && message.role === "user"
                ? (changed) => chat.send({ text: changed, messageId: message.id })
                : undefined
            }
            onRegenerate={
              settled && message === last && message.role === "assistant"
                ? () => chat.again(message.id)
                : undefined
            }
          />
        ))}
        {busy && last?.role === "user" && (
          <p className="waiting" aria-hidden="true"><i /><i /><i /></p>
        )}
        {settled && (chat.error || last?.role === "user") && (
          <p className="error" role="alert">
            <span>{chat.error ? "The answer ended with an error." : "There is no answer."}</span>
            {last?.role === "user" && (
              <button type="button" onClick={() => chat.again()}>
                Try again
              </button>
            )}
          </p>
        )}
      </main>
      <footer>
        {away && (
          <button type="button" className="to-end" onClick={toEnd} aria-label="To the end">
            <Icon name="down" />
          </button>
        )}
        {chat.viewed && (
          <p className="viewed" role="status">
            <span>This is a former version. What you send goes on from it.</span>
            <button type="button" onClick={chat.toLatest}>
              Back to the latest
            </button>
          </p>
        )}
        <form
          onSubmit={(event) => {
            event.preventDefault();
            send(text);
          }}
        >
          <textarea
            ref={input}
            rows={Math.min(6, text.split("\n").length)}
            aria-label="Your question"
            placeholder="What does json.dumps do?"
            value={text}
            onChange={(event) => setText(event.target.value)}
            onKeyDown={(event) => {
              if (event.key !== "Enter" || event.shiftKey || event.nativeEvent.isComposing) return;
              event.preventDefault();
              send(text);
            }}
          />
          {busy ? (
            <button type="button" className="round stop" onClick={chat.stop} title="Stop (Escape)" aria-label="Stop">
              <Icon name="stop" />
            </button>
          ) : (
            <button type="submit" className="round" disabled={!text.trim()} aria-label="Send">
              <Icon name="send" />
            </button>
          )}
        </form>
      </footer>
    </>
  );
}

function Header({ id, busy, state }) {
  return (
    <header>
      <div>
        <h1>Documentation assistant</h1>
        <span className="state" data-state={state === "offline" ? "offline" : busy ? "busy" : "ready"} role="status">
          {state === "offline" ? "Reconnecting…" : busy ? "Answering" : "Ready"}
        </span>
        <a className="button" href={`#${id}`} target="_blank" rel="opener">
          <Icon name="tabs" /> <span>Second tab</span>
        </a>
        <button type="button" onClick={() => (location.hash = crypto.randomUUID())}>
          <Icon name="plus" /> <span>New chat</span>
        </button>
      </div>
    </header>
  );
}

/** Follow the end of the page while `content` grows, unless the reader has scrolled away. */
function useEnd(content) {
  const [away, setAway] = useState(false);
  const following = useRef(true);
  function toEnd() {
    following.current = true;
    scrollTo({ top: document.documentElement.scrollHeight });
  }
  useEffect(() => {
    const look = () => {
      const { scrollHeight, scrollTop, clientHeight } = document.documentElement;
      following.current = scrollHeight - scrollTop - clientHeight < NEAR;
      setAway(!following.current);
    };
    addEventListener("scroll", look, { passive: true });
    return () => removeEventListener("scroll", look);
  }, []);
  useEffect(() => {
    if (following.current) toEnd();
  }, [content]);
  return [away, toEnd];
}
