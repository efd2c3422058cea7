"use strict";
(() => {
  const root = document.documentElement;
  const toggle = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null; // by the button; until then the system decides

  // Canvases take no colours from style sheets: they are told.
  function look(type) {
    const style = getComputedStyle(root);
    const [page, text, dim, line, grid] = ["--page", "--text", "--dim", "--line", "--grid"].map((name) => style.getPropertyValue(name).trim());
    if (/Axis$/.test(type)) {
      return { axis_label_text_color: text, major_label_text_color: dim, axis_line_color: line, major_tick_line_color: line };
    }
    return { Figure: { border_fill_color: page }, Grid: { grid_line_color: grid }, Legend: { label_text_color: text, background_fill_color: null } }[type] ?? {};
  }

  function paint() {
    for (const plot of Bokeh.documents.flatMap((one) => one.roots())) {
      for (const model of plot.references()) model.setv(look(model.type));
    }
  }

  function show(theme) {
    root.dataset.theme = theme;
    toggle.setAttribute("aria-pressed", String(theme === "dark"));
    paint();
  }
  const wanted = () => chosen ?? (system.matches ? "dark" : "light");
  toggle.addEventListener("click", () => show((chosen = wanted() === "dark" ? "light" : "dark")));
  system.addEventListener("change", () => show(wanted()));
  addEventListener("beforeprint", () => show("light"));
  addEventListener("afterprint", () => show(wanted()));

  // Sort by the column whose heading was pressed; again: the other way round.
  const value = (row, index) => row.cells[index].dataset.sort ?? row.cells[index].textContent;
  for (const heading of document.querySelectorAll("th:has(button)")) {
    heading.querySelector("button").addEventListener("click", () => {
      const table = heading.closest("table");
      const down = heading.ariaSort === "ascending";
      for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = (a, b) => {
        const [x, y] = [a, b].map((row) => value(row, heading.cellIndex));
        const apart = heading.classList.contains("number") ? x - y : x.localeCompare(y, "en", { numeric: true });
        return down ? -apart : apart;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    });
  }

  // Hide the rows that do not hold what was typed.
  for (const field of document.querySelectorAll("input[type=search]")) {
    const rows = [...document.getElementById(field.dataset.table).tBodies[0].rows];
    const count = field.parentElement.querySelector("output");
    field.addEventListener("input", () => {
      const sought = field.value.trim().toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(sought);
      const left = rows.filter((row) => !row.hidden).length;
      count.textContent = left === rows.length ? `${left} rows` : `${left} of ${rows.length} rows`;
    });
  }

  show(wanted());
  const coloured = (key, value) => {
    if (value?.attributes) Object.assign(value.attributes, look(value.name));
    return value;
  };
  const plots = [...document.querySelectorAll(".plot-data")].map((data) => Bokeh.embed.embed_item(JSON.parse(data.textContent, coloured)));
  Promise.all(plots).then(() => (root.dataset.ready = "yes"));
})();
