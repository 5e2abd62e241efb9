// Tables in `.sortable`: a click on a head sorts, numbers with the highest first, and a field keeps the rows that contain its text.
(() => {
  "use strict";
  const make = (name, properties) => Object.assign(document.createElement(name), properties);
  const plain = "font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; text-align: inherit";
  for (const place of document.querySelectorAll(".sortable")) {
    const table = place.querySelector("table");
    const rows = [...table.tBodies[0].rows];
    const heads = [...table.tHead.rows[0].cells];
    const text = (row, column) => row.cells[column].textContent.trim();
    const compare = (column) => {
      const numeric = rows.every((row) => /^([+-]?\d|$)/.test(text(row, column)));
      const value = (row) => (numeric ? parseFloat(text(row, column)) : text(row, column));
      const order = numeric ? (a, b) => a - b : (a, b) => a.localeCompare(b);
      return { first: numeric ? "descending" : "ascending", of: (a, b) => order(value(a), value(b)) };
    };
    const sort = (column) => {
      const by = compare(column);
      const before = heads[column].getAttribute("aria-sort");
      const next = before === null ? by.first : before === "ascending" ? "descending" : "ascending";
      const sign = next === "ascending" ? 1 : -1;
      // Rows without a value stay last.
      const filled = rows.filter((row) => text(row, column)).sort((a, b) => sign * by.of(a, b));
      table.tBodies[0].append(...filled, ...rows.filter((row) => !text(row, column)));
      heads.forEach((head, other) => {
        if (other === column) head.setAttribute("aria-sort", next); else head.removeAttribute("aria-sort");
        head.querySelector("span").textContent = other !== column ? "" : next === "ascending" ? " ▲" : " ▼";
      });
    };
    heads.forEach((head, column) => {
      const button = make("button", { type: "button", textContent: head.textContent });
      button.style.cssText = plain;
      button.addEventListener("click", () => sort(column));
      const arrow = make("span", {});
      arrow.setAttribute("aria-hidden", "true");
      head.replaceChildren(button, arrow);
    });
    const field = make("input", { type: "search", placeholder: "filter rows" });
    field.setAttribute("aria-label", "Filter rows");
    field.style.cssText = "font: inherit; padding: 4px 8px; margin-bottom: 10px; max-width: 100%";
    const count = make("output", {});
    count.style.marginLeft = "10px";
    field.addEventListener("input", () => {
      const wanted = field.value.trim().toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
      count.textContent = wanted ? `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows` : "";
    });
    place.prepend(field, count);
  }
})();
