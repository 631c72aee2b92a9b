// Server-sent events read with fetch, so that a token can go in a header (EventSource cannot).

/** Yields {event, data} for each event, and null for each comment (a sign of life). */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return; // what is not followed by an empty line is not an event
      let from = rest.length;
      const text = rest + value;
      let start = 0;
      for (;;) {
        const end = text.indexOf("\n", from);
        if (end < 0) break;
        const line = text.slice(start, text[end - 1] === "\r" && end > start ? end - 1 : end);
        start = from = end + 1;
        if (line === "") {
          if (data.length) yield { event: event || "message", data: data.join("\n") };
          event = "";
          data = [];
        } else if (line[0] === ":") {
          yield null;
        } else {
          const colon = line.indexOf(":");
          const name = colon < 0 ? line : line.slice(0, colon);
          let content = colon < 0 ? "" : line.slice(colon + 1);
          if (content[0] === " ") content = content.slice(1);
          if (name === "data") data.push(content);
          else if (name === "event") event = content;
        }
      }
      rest = text.slice(start);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
