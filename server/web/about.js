// What this host is, and where to read on.

import { TOKEN } from "./connection.js";
import { byId } from "./dom.js";

const dialog = byId("about");

byId("about-open").addEventListener("click", () => dialog.showModal());
byId("about-close").addEventListener("click", () => dialog.close());

/** A link cannot carry the token, so it gets a ticket. */
dialog.addEventListener("click", async (event) => {
  if (event.target === dialog) dialog.close(); // beside what is in it
  const link = event.target.closest("a[href^='/docs/']");
  const token = sessionStorage.getItem(TOKEN);
  if (!link || !token) return;
  event.preventDefault();
  const tab = window.open("", "_blank"); // now, while the click allows it
  const answer = await fetch("/ticket", { method: "POST", headers: { Authorization: `Bearer ${token}` } });
  const { ticket } = await answer.json();
  tab.location = `${link.href}?ticket=${ticket}`;
});
