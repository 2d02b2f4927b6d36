"use strict";
document.documentElement.classList.add("scripted");

function choose(buttons, panels, key) {
  for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.show === key));
  for (const panel of panels) panel.hidden = panel.dataset.panel !== key;
}

for (const group of document.querySelectorAll("[data-switch]")) {
  const buttons = group.querySelectorAll("button[data-show]");
  const panels = document.querySelectorAll(`[data-group="${group.dataset.switch}"]`);
  for (const button of buttons) button.addEventListener("click", () => choose(buttons, panels, button.dataset.show));
  choose(buttons, panels, buttons[0].dataset.show);
}

function sortBy(table, index, descending) {
  const value = (row) => row.children[index].dataset.value ?? row.children[index].textContent.trim();
  const compare = (a, b) => {
    const x = Number(a), y = Number(b);
    return a !== "" && b !== "" && !Number.isNaN(x) && !Number.isNaN(y) ? x - y : a.localeCompare(b);
  };
  const body = table.tBodies[0];
  const rows = [...body.rows].sort((a, b) => compare(value(a), value(b)) * (descending ? -1 : 1));
  body.append(...rows);
}

for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[0].cells].forEach((cell, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    cell.append(button);
    button.addEventListener("click", () => {
      const descending = cell.getAttribute("aria-sort") !== "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortBy(table, index, descending);
    });
  });
}
