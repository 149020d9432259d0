const dark = matchMedia("(prefers-color-scheme: dark)");

function read(id) {
  const element = document.getElementById(id);
  return element ? JSON.parse(element.textContent) : {};
}

const specs = read("specs");
const themes = read("themes");

async function draw() {
  const config = themes[dark.matches ? "dark" : "light"];
  for (const place of document.querySelectorAll("[data-figure]")) {
    await vegaEmbed(place, specs[place.dataset.figure], {
      config,
      actions: false,
      ast: true, // no eval, which the page's policy forbids
      renderer: "svg",
      tooltip: { theme: dark.matches ? "dark" : "light" },
    });
  }
  document.body.dataset.drawn = "true";
}

function value(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = Number(text.replace("−", "-").replaceAll(",", "").replace("%", ""));
  return text !== "" && Number.isFinite(number) ? number : text;
}

function compare(a, b) {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b);
  return typeof a === "number" ? -1 : 1; // what has no number comes last
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const header = button.closest("th");
    const body = button.closest("table").tBodies[0];
    const descending = header.getAttribute("aria-sort") !== "descending";
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const rows = [...body.rows].sort((a, b) => compare(value(a, header.cellIndex), value(b, header.cellIndex)));
    body.append(...(descending ? rows.reverse() : rows));
  });
}

dark.addEventListener("change", draw);
draw();
