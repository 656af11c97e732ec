"use strict";
const table = document.querySelector("table.sortable");
const headings = [...table.querySelectorAll("th[aria-sort]")];
const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

function compare(first, second, column) {
  const [a, b] = [first.cells[column], second.cells[column]];
  if (a.dataset.value === undefined) return words.compare(a.textContent.trim(), b.textContent.trim());
  return Number(a.dataset.value) - Number(b.dataset.value);
}

function isEmpty(row, column) {
  return row.cells[column].dataset.value === "";
}

headings.forEach((heading, column) => {
  heading.querySelector("button").addEventListener("click", () => {
    const up = heading.getAttribute("aria-sort") !== "ascending";
    headings.forEach((other) => other.setAttribute("aria-sort", "none"));
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows];
    // Rows without a number stay last whichever way the others go.
    rows.sort((a, b) => isEmpty(a, column) - isEmpty(b, column) || (up ? 1 : -1) * compare(a, b, column));
    table.tBodies[0].append(...rows);
    const name = heading.textContent.trim();
    document.getElementById("sorted").textContent = "Sorted by " + name + (up ? ", ascending" : ", descending");
  });
});
