// The graph of groups: a list in the order of the graph, lines beside it, and what belongs to the group that is chosen.
(() => {
  const box = document.getElementById("navigator");
  if (!box) return;
  const nodes = JSON.parse(document.getElementById("navigator-data").textContent);
  const list = document.getElementById("navigator-list");
  const scroll = document.getElementById("navigator-scroll");
  const lines = document.getElementById("navigator-lines");
  const description = document.getElementById("navigator-description");
  const field = document.getElementById("navigator-search");
  const cut = document.getElementById("navigator-cut");
  const count = box.querySelector("output");
  const rows = [...list.children];
  const WIDTH = 84; // of the lines, pixels
  const MOST = 12; // names shown before the rest is folded
  let height = 0; // of a row, pixels
  let shown = []; // numbers of the groups in the list
  let chosen = -1;

  const behind = nodes.map((node) => node.feeds);
  const before = nodes.map(() => []);
  behind.forEach((found, from) => found.forEach((to) => before[to].push(from)));
  const words = nodes.map((node) => [node.name, ...node.writers, ...node.followers, ...node.readers].join("\n").toLowerCase());

  function element(tag, text, ...children) {
    const made = document.createElement(tag);
    if (text) made.textContent = text;
    made.append(...children);
    return made;
  }

  // A few lines only, however many groups there are: each is one path of many arcs.
  function arcs(pairs, place) {
    const parts = { forth: [], back: [] };
    for (const [from, to] of pairs) {
      const [a, b] = [place.get(from), place.get(to)];
      if (a === undefined || b === undefined) continue;
      const [start, end] = [(a + 0.5) * height, (b + 0.5) * height];
      const reach = WIDTH - Math.min(WIDTH - 4, 14 + 9 * Math.sqrt(Math.abs(a - b)));
      parts[b > a ? "forth" : "back"].push(`M${WIDTH} ${start}C${reach} ${start} ${reach} ${end} ${WIDTH} ${end}m-6 -4l6 4l-6 4`);
    }
    return parts;
  }

  function draw() {
    height = shown.length ? rows[shown[0]].getBoundingClientRect().height : 0;
    lines.setAttribute("width", WIDTH);
    lines.setAttribute("height", height * shown.length);
    const place = new Map(shown.map((number, position) => [number, position]));
    const all = arcs(shown.flatMap((from) => behind[from].map((to) => [from, to])), place);
    const near = chosen < 0 ? [] : [...behind[chosen].map((to) => [chosen, to]), ...before[chosen].map((from) => [from, chosen])];
    const some = arcs(near, place);
    for (const kind of ["forth", "back"]) {
      lines.querySelector(`.${kind}:not(.chosen)`).setAttribute("d", all[kind].join(""));
      lines.querySelector(`.chosen.${kind}`).setAttribute("d", some[kind].join(""));
    }
  }

  function names(title, found, make) {
    if (!found.length) return [];
    const items = found.map((one) => element("li", "", make(one)));
    const parts = [element("h4", `${title} (${found.length})`), element("ul", "", ...items.slice(0, MOST))];
    if (items.length > MOST) {
      parts.push(element("details", "", element("summary", `${items.length - MOST} more`), element("ul", "", ...items.slice(MOST))));
    }
    return parts;
  }

  function link(number) {
    const made = element("button", nodes[number].name);
    made.type = "button";
    made.addEventListener("click", () => {
      choose(number);
      list.focus({ preventScroll: true });
    });
    return made;
  }

  function describe(number) {
    const node = nodes[number];
    const change = node.after === null ? "" : ` → ${node.after} (${(100 * (node.after / node.before - 1)).toFixed(1)} %)`;
    const pinned = node.pinned ? `${node.pinned} pinned${node.reasons.length ? `: ${node.reasons.join("; ")}` : ""}` : "none pinned";
    description.replaceChildren(
      element("h3", node.name),
      element("p", `Group ${number + 1} of ${nodes.length}. Channels: ${node.before}${change}; ${pinned}.`),
      ...names("Writers", node.writers, (name) => name),
      ...names("Followers", node.followers, (name) => name),
      ...names("Readers", node.readers, (name) => name),
      ...names("Computed from groups", before[number], link),
      ...names("Groups computed from it", behind[number], link),
    );
    description.scrollTop = 0;
  }

  function mark(number, on) {
    rows[number].setAttribute("aria-selected", String(on));
    for (const other of [...before[number], ...behind[number]]) {
      const [up, down] = [before[number].includes(other), behind[number].includes(other)];
      rows[other].querySelector(".note").textContent = !on ? "" : up && down ? "◆ before and behind it" : up ? "▲ before it" : "▼ behind it";
    }
  }

  function choose(number, { reveal = true } = {}) {
    if (chosen >= 0) mark(chosen, false);
    chosen = number;
    mark(number, true);
    if (rows[number].hidden) {
      field.value = "";
      cut.checked = false;
      filter();
    }
    list.setAttribute("aria-activedescendant", rows[number].id);
    if (reveal) {
      const top = rows[number].offsetTop - scroll.clientHeight / 2;
      if (Math.abs(top - scroll.scrollTop) > scroll.clientHeight / 2 - 2 * height) scroll.scrollTop = top;
    }
    describe(number);
    draw();
  }

  function filter() {
    const sought = field.value.trim().toLowerCase();
    shown = [];
    nodes.forEach((node, number) => {
      const fits = words[number].includes(sought) && (!cut.checked || (node.after !== null && node.after < node.before));
      rows[number].hidden = !fits;
      if (fits) shown.push(number);
    });
    count.textContent = shown.length === nodes.length ? `${nodes.length} groups` : `${shown.length} of ${nodes.length} groups`;
    draw();
  }

  list.addEventListener("click", (event) => {
    const row = event.target.closest("li");
    if (row) choose(rows.indexOf(row), { reveal: false });
  });
  list.addEventListener("keydown", (event) => {
    const at = shown.indexOf(chosen);
    const steps = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: shown.length - 1, PageDown: at + 10, PageUp: at - 10 };
    let next;
    if (event.key in steps) next = shown[Math.max(0, Math.min(shown.length - 1, steps[event.key]))];
    else if (event.key === "ArrowLeft") next = before[chosen]?.at(-1);
    else if (event.key === "ArrowRight") next = behind[chosen]?.[0];
    else return;
    event.preventDefault();
    if (next !== undefined) choose(next);
  });
  field.addEventListener("input", filter);
  cut.addEventListener("change", filter);
  new ResizeObserver(draw).observe(list); // another font, another width: other heights
  filter();
  if (nodes.length) choose(0, { reveal: false });
})();
