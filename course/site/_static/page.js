// A page that was opened as a file may not read other files: then search results have titles, but no excerpts.
DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = location.protocol !== "file:";

// A table of verdicts or of long cells that is too wide for its place gets its rows one below the other, each cell behind the head of its
// column: its last column would else be out of sight. Others, as of numbers, stay tables and scroll. The roles are those that the parts of
// a table have until the style sheet makes blocks of them.
const ROLES = { TABLE: "table", THEAD: "rowgroup", TBODY: "rowgroup", TR: "row", TH: "columnheader", TD: "cell" };

function stackTables() {
  for (const box of document.querySelectorAll(".bd-article .pst-scrollable-table-container")) {
    const table = box.querySelector("table");
    const heads = [...(table.tHead?.rows[0].cells ?? [])].map(cell => cell.textContent.trim());
    const cells = [...table.querySelectorAll("tbody td")];
    const words = heads.some(head => /^(so|standing|verdict)$/.test(head)) || cells.some(cell => cell.textContent.length > 40);
    table.classList.remove("stacked");
    if (!heads.length || !words || box.scrollWidth <= box.clientWidth) continue;
    for (const cell of cells) cell.dataset.head = heads[cell.cellIndex];
    for (const part of [table, ...table.querySelectorAll("*")]) if (ROLES[part.tagName]) part.setAttribute("role", ROLES[part.tagName]);
    table.classList.add("stacked");
  }
}
document.addEventListener("readystatechange", stackTables); // before the theme asks what scrolls, and when all is there
addEventListener("resize", stackTables);

// Whatever scrolls sideways must be reached by the keyboard. The theme sees to code and tables, browsers but for some to the rest.
function reachScrolling() {
  for (const box of document.querySelectorAll(".formula, .long-formula, figure")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
addEventListener("load", reachScrolling);
addEventListener("resize", reachScrolling);
