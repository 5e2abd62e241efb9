// What the theme leaves out for keyboards and screen readers: a name of the search, code and tables that scroll by arrow keys.
document.querySelector("[data-md-component=search]")?.setAttribute("aria-label", "Search");
addEventListener("load", () => {
  for (const wide of document.querySelectorAll("pre > code, .md-typeset__scrollwrap")) {
    if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0;
  }
});
