"use strict";
// Fetches the tables anew every second while the page is visible. Without this script, reloading does the same.
const tables = document.getElementById("tables");
async function refresh() {
  if (document.hidden || tables.contains(document.activeElement)) return; // nothing moves under a reader's keyboard
  try {
    const answer = await fetch("tables", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    const scrolled = [...tables.querySelectorAll(".wide")].map((e) => [e.scrollLeft, e.scrollTop]);
    tables.innerHTML = await answer.text();
    tables.querySelectorAll(".wide").forEach((e, i) => scrolled[i] && e.scrollTo(...scrolled[i]));
  } catch {
    document.getElementById("live").textContent = "The picker does not answer. This is its last known state.";
  }
}
setInterval(refresh, 1000);
