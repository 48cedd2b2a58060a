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

// While the stream of updates is interrupted, the page says that its numbers are old.
document.addEventListener("htmx:sseError", () => document.body.classList.add("stale"));
document.addEventListener("htmx:sseOpen", () => document.body.classList.remove("stale"));

// An update must not take the focus or a selection away from somebody who uses what it replaces.
document.addEventListener("htmx:sseBeforeMessage", (event) => {
  const live = event.target;
  const selection = getSelection();
  const uses = live.contains(document.activeElement) || (!selection.isCollapsed && live.contains(selection.anchorNode));
  if (uses) event.preventDefault();
});
