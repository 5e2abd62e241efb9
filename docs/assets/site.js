// What the theme leaves out for keyboards and screen readers: a name of the search, code that scrolls by arrow keys.
document.querySelector("[data-md-component=search]")?.setAttribute("aria-label", "Search");
for (const code of document.querySelectorAll("pre > code")) {
  if (code.scrollWidth > code.clientWidth) code.tabIndex = 0;
}
