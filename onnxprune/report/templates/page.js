"use strict";
(() => {
  const root = document.documentElement;
  const toggle = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const drawn = globalThis.Bokeh ?? { documents: [], index: [] }; // a page without plots goes without it
  let chosen = null; // by the button; until then the system decides

  // Canvases take no colors from style sheets, so that they are set here.
  function look(type) {
    const style = getComputedStyle(root);
    const [page, text, dim, line, grid] = ["--page", "--text", "--dim", "--line", "--grid"].map((name) => style.getPropertyValue(name).trim());
    if (/Axis$/.test(type)) {
      return { axis_label_text_color: text, major_label_text_color: dim, axis_line_color: line, major_tick_line_color: line };
    }
    return { Figure: { border_fill_color: page }, Grid: { grid_line_color: grid }, Legend: { label_text_color: text, background_fill_color: null } }[type] ?? {};
  }

  function paint() {
    for (const plot of drawn.documents.flatMap((one) => one.roots())) {
      for (const model of plot.references()) model.setv(look(model.type));
    }
  }

  // The printer does not wait for the next frame.
  function paintNow() {
    for (const view of drawn.index) view.paint?.(); // documents are in it, too
  }

  function show(theme) {
    root.dataset.theme = theme;
    toggle.setAttribute("aria-pressed", String(theme === "dark"));
    paint();
  }
  const wanted = () => chosen ?? (system.matches ? "dark" : "light");
  toggle.addEventListener("click", () => show((chosen = wanted() === "dark" ? "light" : "dark")));
  system.addEventListener("change", () => show(wanted()));
  const PAPER = 660; // pixels that fit on a page, A4 or Letter
  let folded = [];
  addEventListener("beforeprint", () => {
    show("light");
    paintNow();
    for (const plot of document.querySelectorAll(".plot")) plot.style.setProperty("--shrink", Math.min(1, PAPER / plot.clientWidth));
    folded = [...document.querySelectorAll("td details:not([open])")];
    for (const one of folded) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of folded) one.open = false;
    show(wanted());
  });

  const paper = new CSSStyleSheet();
  paper.replaceSync("@media print { .bk-Toolbar { visibility: hidden; } }");

  // Tooltips take the colors of the page; those of Bokeh are too pale to read.
  const tips = new CSSStyleSheet();
  tips.replaceSync(".bk-tooltip-row-label { color: inherit !important; font-weight: 600; }");
  new MutationObserver((found) => {
    for (const one of found.flatMap((change) => [...change.addedNodes])) {
      if (one.matches?.(".bk-Tooltip")) one.shadowRoot.adoptedStyleSheets.push(tips);
    }
  }).observe(document.body, { childList: true });

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
  for (const field of document.querySelectorAll("input[data-table]")) {
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
  const colored = (key, value) => {
    if (value?.attributes) Object.assign(value.attributes, look(value.name));
    return value;
  };
  const plots = [...document.querySelectorAll(".plot-data")].map((data) => Bokeh.embed.embed_item(JSON.parse(data.textContent, colored)));

  // Bokeh's buttons are boxes without a name: give them what a button has, and the plot what a picture has.
  function name(plot) {
    const inside = (root) => [...root.querySelectorAll("*")].flatMap((one) => [one, ...(one.shadowRoot ? inside(one.shadowRoot) : [])]);
    const caption = plot.closest("figure").querySelector("figcaption");
    const all = inside(plot);
    for (const one of all) one.shadowRoot?.adoptedStyleSheets.push(paper);
    all.filter((one) => one.matches("canvas")).forEach((one, number) => {
      if (number) return one.setAttribute("aria-hidden", "true");
      one.setAttribute("role", "img");
      one.setAttribute("aria-label", caption.textContent);
    });
    for (const one of all) {
      if (one.matches(".bk-events")) {
        one.setAttribute("role", "group"); // it can be focused
        one.setAttribute("aria-label", `Plot: ${caption.querySelector("strong").textContent}`);
      } else if (one.matches(".bk-OnOffButton, .bk-ClickButton")) {
        one.setAttribute("role", "button");
        one.setAttribute("aria-label", one.title || "Plot tool");
        if (!one.matches(".bk-OnOffButton")) continue;
        const pressed = () => one.setAttribute("aria-pressed", String(one.classList.contains("bk-active")));
        new MutationObserver(pressed).observe(one, { attributeFilter: ["class"] });
        pressed();
      }
    }
  }

  Promise.all(plots).then(() => {
    document.querySelectorAll(".plot").forEach(name);
    root.dataset.ready = "yes";
    performance.mark("ready"); // for whoever measures
  });
})();
