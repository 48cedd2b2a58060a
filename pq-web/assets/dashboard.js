// What pages do beyond htmx. Everything also works without it.
"use strict";

// A checkbox that selects all jobs of the page.
document.addEventListener("change", (event) => {
  const all = event.target;
  if (!all.matches("[data-select-all]")) return;
  for (const box of all.form.querySelectorAll("input[name=id]")) box.checked = all.checked;
});

// The checkbox is useless without this script, so it is hidden until now.
for (const all of document.querySelectorAll("[data-select-all]")) all.hidden = false;

// A page has one stream of updates. A hidden page closes it, and opens it again when it is shown.
let stream;
htmx.createEventSource = (url) => {
  stream?.close();
  return (stream = new EventSource(url));
};
document.addEventListener("visibilitychange", () => {
  if (document.hidden) stream?.close();
  else if (stream) htmx.trigger(document.querySelector("[sse-connect]"), "htmx:afterProcessNode");
});

// Screen readers say what is wrong once, and not with each update.
const announce = (text) => {
  const status = document.querySelector(".announced");
  if (status && status.textContent !== text) status.textContent = text;
};

// While the stream of updates is interrupted, the page says that its numbers are old.
document.addEventListener("htmx:sseError", () => {
  document.body.classList.add("stale");
  announce("No connection: the numbers are old.");
});
document.addEventListener("htmx:sseOpen", () => document.body.classList.remove("stale"));

// An update must not take the focus or a selection away from somebody who uses what it replaces.
let scrolled = [];
document.addEventListener("htmx:sseBeforeMessage", (event) => {
  const live = event.target;
  const selection = getSelection();
  const uses = live.contains(document.activeElement) || (!selection.isCollapsed && live.contains(selection.anchorNode));
  if (uses) event.preventDefault();
  scrolled = [...live.querySelectorAll(".wide")].map((wide) => wide.scrollLeft);
});

// It also keeps how far tables are scrolled.
document.addEventListener("htmx:sseMessage", (event) => {
  const live = event.target;
  live.querySelectorAll(".wide").forEach((wide, index) => (wide.scrollLeft = scrolled[index] ?? 0));
  announce([...live.querySelectorAll(".failure")].map((failure) => failure.textContent).join(" "));
});
