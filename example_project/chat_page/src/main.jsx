import { useEffect, useState } from "react";
import { createRoot } from "react-dom/client";

import { Chat } from "./Chat.jsx";
import "./style.css";

// The session is in the address: a reload or another tab with it shows the same chat.
function sessionInAddress() {
  if (!location.hash) history.replaceState(null, "", `#${crypto.randomUUID()}`);
  return location.hash.slice(1);
}

function App() {
  const [id, setId] = useState(sessionInAddress);
  useEffect(() => {
    const follow = () => setId(sessionInAddress());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return <Chat key={id} id={id} />;
}

createRoot(document.getElementById("root")).render(<App />);
