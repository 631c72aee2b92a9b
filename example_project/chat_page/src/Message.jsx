export function Message({ message, live }) {
  return (
    <article className={`message ${message.role}`} data-id={message.id} data-live={live}>
      <h2>{message.role === "user" ? "You" : "Assistant"}</h2>
      {message.parts.map((part, number) => (
        <Part key={number} part={part} />
      ))}
      {message.metadata?.aborted && <p className="note">Stopped.</p>}
    </article>
  );
}

function Part({ part }) {
  if (part.type === "text") return <div className="text">{part.text}</div>;
  if (part.type === "data-progress") return <Progress {...part.data} />;
  if (part.type.startsWith("tool-")) return <Tool part={part} />;
  return null; // the beginning of a step
}

function Progress({ done, of }) {
  return (
    <div className="progress">
      <progress aria-label="Progress of the answer" value={done} max={of} />
      <span>
        {done}/{of}
      </span>
    </div>
  );
}

function Tool({ part }) {
  const done = part.state.startsWith("output");
  return (
    <details className="tool">
      <summary>
        <code>{part.type.slice("tool-".length)}</code>
        <span>{done ? "done" : "running…"}</span>
      </summary>
      <pre>{JSON.stringify(part.input, null, 2)}</pre>
      {done && <pre>{part.errorText ?? JSON.stringify(part.output, null, 2)}</pre>}
    </details>
  );
}
