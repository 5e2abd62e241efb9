// A number of the confusion matrix shows only the clouds of its cell in the gallery, and a button shows all again. The address follows.
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

  const rowsOf = (link) => link.dataset.rows.replaceAll("cloud-", "").replaceAll(" ", ",");
  // `link` is the number that was clicked, or null.
  function show(link) {
    const rows = link && link.dataset.rows.split(" ");
    for (const item of items.children) item.hidden = link !== null && !rows.includes(item.id);
    bar.hidden = link === null;
    if (link) text.textContent = `${link.getAttribute("aria-label")}; shown: ${rows.length} `;
    galleryView.link("rows", link && rowsOf(link));
  }
  for (const link of links) {
    link.addEventListener("click", (event) => {
      event.preventDefault();  // the first of several clouds would be under the controls
      show(link);
      items.closest("section").scrollIntoView();
    });
  }
  all.addEventListener("click", () => show(null));
  function restore() {
    const rows = galleryView.linked().get("rows"), link = [...links].find((one) => rowsOf(one) === rows);
    if (link) show(link);
  }
  restore();
  addEventListener("hashchange", restore);
})();
