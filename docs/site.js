// The docs site alone: what scrolls sideways is reached by the tab key too, and each block's buttons have a name.
function scrollByKeys() {
  for (const part of document.querySelectorAll("pre > code, .md-typeset__scrollwrap")) {
    part.tabIndex = part.scrollWidth > part.clientWidth ? 0 : -1;
  }
}
addEventListener("resize", scrollByKeys);
addEventListener("load", () => {
  scrollByKeys();
  document.querySelectorAll(".md-code__nav").forEach((buttons, index) => {
    buttons.setAttribute("aria-label", `Code block ${index + 1}`);
  });
});
