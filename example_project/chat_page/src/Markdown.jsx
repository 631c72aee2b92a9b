import { memo, useState } from "react";
import ReactMarkdown from "react-markdown";
import remarkGfm from "remark-gfm";

/**
 * An answer's Markdown. react-markdown makes elements of it and never HTML, and drops `javascript:`
 * addresses. Nothing is loaded from where a model says: images become links.
 */
export const Markdown = memo(function Markdown({ children }) {
  return (
    <div className="text markdown">
      <ReactMarkdown remarkPlugins={PLUGINS} components={COMPONENTS}>
        {children}
      </ReactMarkdown>
    </div>
  );
});

const PLUGINS = [remarkGfm];

const COMPONENTS = {
  a: ({ href, children }) => <Link href={href}>{children}</Link>,
  img: ({ src, alt }) => <Link href={src}>{alt || src}</Link>,
  pre: CodeBlock,
  table: ({ children }) => (
    <div className="table">
      <table>{children}</table>
    </div>
  ),
};

function Link({ href, children }) {
  if (!href) return <span>{children}</span>;
  return (
    <a href={href} target="_blank" rel="noreferrer">
      {children}
    </a>
  );
}

function CodeBlock({ node, children }) {
  const code = node.children[0];
  const language = code?.properties?.className?.[0]?.replace("language-", "");
  return (
    <figure className="code">
      <figcaption data-language={language ?? "text"}>
        <Copy text={() => code?.children[0]?.value ?? ""} />
      </figcaption>
      <pre tabIndex={0}>{children}</pre>
    </figure>
  );
}

/** Copies `text()`, and says so for a moment. */
export function Copy({ text }) {
  const [copied, setCopied] = useState(false);
  async function copy() {
    await navigator.clipboard.writeText(text());
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  }
  return (
    <button type="button" className="quiet" onClick={copy} data-done={copied} aria-label="Copy">
      <Icon name={copied ? "check" : "copy"} />
    </button>
  );
}

const PATHS = {
  again: "M20 11a8 8 0 1 0-2.3 6.3M20 5v6h-6",
  back: "M15 5l-7 7 7 7",
  check: "M5 12.5l4.5 4.5L19 7.5",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  down: "M12 5v14M6 13l6 6 6-6",
  edit: "M4 20l1-4L16 5l3 3L8 19z",
  next: "M9 5l7 7-7 7",
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  tabs: "M8 8h12v12H8zM4 16V4h12",
  tool: "M14.5 6.5a4 4 0 0 1 5-1.9l-2.7 2.7 1.9 1.9 2.7-2.7a4 4 0 0 1-5.4 5L9 18.5A2.1 2.1 0 0 1 6 15.5l7-7",
};

export function Icon({ name }) {
  return (
    <svg viewBox="0 0 24 24" aria-hidden="true" className="icon">
      <path d={PATHS[name]} />
    </svg>
  );
}
