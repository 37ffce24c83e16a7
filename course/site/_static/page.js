// A page that was opened as a file may not read other files: then search results have titles, but no excerpts.
DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = location.protocol !== "file:";

// Whatever scrolls sideways must be reached by the keyboard. The theme sees to code and tables, browsers but for some to the rest.
function reachScrolling() {
  for (const box of document.querySelectorAll(".formula, .long-formula, figure")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
addEventListener("load", reachScrolling);
addEventListener("resize", reachScrolling);
