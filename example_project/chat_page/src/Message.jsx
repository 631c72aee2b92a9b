import { useEffect, useRef, useState } from "react";

import { Copy, Icon, Markdown } from "./Markdown.jsx";

/**
 * One message. `versions` are what stands in its place in other branches (with `version` the
 * number of this one, from 0), `onVersion(number)` shows another; `onEdit(text)` sends it again,
 * `onRegenerate()` answers again. What is absent is not offered.
 */
export function Message({ message, live, versions, version, onVersion, onEdit, onRegenerate }) {
  const [editing, setEditing] = useState(false);
  const mine = message.role === "user";
  const text = textOf(message);
  return (
    <article className={`message ${message.role}`} data-id={message.id} data-live={live}>
      <h2>{mine ? "You" : "Assistant"}</h2>
      {editing ? (
        <Editor
          text={text}
          onCancel={() => setEditing(false)}
          onSave={(changed) => {
            setEditing(false);
            onEdit(changed);
          }}
        />
      ) : (
        <div className="parts">
          {message.parts.map((part, number) => (
            <Part key={number} part={part} mine={mine} />
          ))}
          {live && !text && <p className="waiting" aria-hidden="true"><i /><i /><i /></p>}
          {message.metadata?.aborted && <p className="note">Stopped.</p>}
        </div>
      )}
      {!editing && !live && (
        <div className="actions">
          {versions > 1 && (
            <nav className="versions" aria-label="Versions of this message">
              <button type="button" className="quiet" aria-label="Former version" disabled={version === 0} onClick={() => onVersion(version - 1)}>
                <Icon name="back" />
              </button>
              <span>
                {version + 1} / {versions}
              </span>
              <button type="button" className="quiet" aria-label="Later version" disabled={version === versions - 1} onClick={() => onVersion(version + 1)}>
                <Icon name="next" />
              </button>
            </nav>
          )}
          {text && <Copy text={() => text} />}
          {onEdit && (
            <button type="button" className="quiet" onClick={() => setEditing(true)} aria-label="Edit">
              <Icon name="edit" />
            </button>
          )}
          {onRegenerate && (
            <button type="button" className="quiet" onClick={onRegenerate}>
              <Icon name="again" /> Regenerate
            </button>
          )}
        </div>
      )}
    </article>
  );
}

export function textOf(message) {
  return message.parts.map((part) => (part.type === "text" ? part.text : "")).join("");
}

function Editor({ text, onSave, onCancel }) {
  const [changed, setChanged] = useState(text);
  const field = useRef(null);
  useEffect(() => field.current?.focus(), []);
  return (
    <form
      className="editor"
      onSubmit={(event) => {
        event.preventDefault();
        if (changed.trim()) onSave(changed);
      }}
      onKeyDown={(event) => {
        if (event.key === "Escape") onCancel();
        if (event.key === "Enter" && !event.shiftKey && !event.nativeEvent.isComposing) {
          event.preventDefault();
          event.currentTarget.requestSubmit();
        }
      }}
    >
      <textarea ref={field} aria-label="Your message" rows={Math.min(8, changed.split("\n").length)} value={changed} onChange={(event) => setChanged(event.target.value)} />
      <div>
        <button type="button" onClick={onCancel}>
          Cancel
        </button>
        <button type="submit" disabled={!changed.trim()}>
          Ask again
        </button>
      </div>
    </form>
  );
}

function Part({ part, mine }) {
  if (part.type === "text") {
    if (mine) return <div className="text">{part.text}</div>;
    return part.text ? <Markdown>{part.text}</Markdown> : null;
  }
  if (part.type === "reasoning") return <Reasoning part={part} />;
  if (part.type === "data-progress") return <Progress {...part.data} />;
  if (part.type.startsWith("tool-") || part.type === "dynamic-tool") return <Tool part={part} />;
  return null; // the beginning of a step
}

function Reasoning({ part }) {
  return (
    <details className="tool">
      <summary>Thoughts</summary>
      <p>{part.text}</p>
    </details>
  );
}

function Progress({ done, of }) {
  return (
    <div className="progress" data-done={done >= of}>
      <progress aria-label="Progress of the answer" value={done} max={of} />
      <span>
        {done} / {of}
      </span>
    </div>
  );
}

const STATES = {
  "input-streaming": "is called…",
  "input-available": "running…",
  "output-available": "done",
  "output-error": "failed",
  "output-denied": "denied",
};

function Tool({ part }) {
  const name = part.toolName ?? part.type.slice("tool-".length);
  const output = part.errorText ?? part.output;
  return (
    <details className="tool" data-state={part.state}>
      <summary>
        <Icon name="tool" />
        <code>{name}</code>
        <span className="outcome">{STATES[part.state] ?? part.state}</span>
      </summary>
      <Value name="Input" value={part.input} />
      {output !== undefined && <Value name={part.errorText ? "Error" : "Output"} value={output} />}
    </details>
  );
}

function Value({ name, value }) {
  return (
    <>
      <h3>{name}</h3>
      <pre tabIndex={0}>{typeof value === "string" ? value : JSON.stringify(value, null, 2)}</pre>
    </>
  );
}
