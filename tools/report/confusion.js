// A number of the confusion matrix shows only the clouds of its cell in the gallery, and a button shows all again.
(() => {
  "use strict";
  const links = document.querySelectorAll("a[data-rows]");
  const items = document.querySelector(".items");
  if (!links.length || !items) return;
  const bar = document.createElement("p"), text = document.createElement("span"), all = document.createElement("button");
  bar.className = "filter";
  bar.setAttribute("role", "status");
  bar.hidden = true;
  all.type = "button";
  all.textContent = "show all clouds";
  bar.append(text, all);
  items.before(bar);

  const show = (rows) => {
    for (const item of items.children) item.hidden = rows !== null && !rows.includes(item.id);
    bar.hidden = rows === null;
  };
  for (const link of links) {
    link.addEventListener("click", (event) => {
      event.preventDefault();  // the first of several clouds would be under the controls
      const rows = link.dataset.rows.split(" ");
      text.textContent = `${link.getAttribute("aria-label")}; shown: ${rows.length} `;
      show(rows);
      items.closest("section").scrollIntoView();
    });
  }
  all.addEventListener("click", () => show(null));
})();
