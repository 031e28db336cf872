"use strict";
(async () => {
  const $ = (id) => document.getElementById(id);
  const unpack = (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  };
  const { page: data, plan, specs } = await unpack($("data").textContent);
  const ROWS = 30;
  const GRADIENTS = new Set(["activation_grad", "weight_grad"]);
  const views = {};

  const element = (tag, text, className) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    return node;
  };
  const shorten = (text, width) => {
    if (text.length <= width) return text;
    const left = narrow() ? 0 : (width - 1) >> 1;
    return text.slice(0, left) + "…" + text.slice(text.length - (width - 1 - left));
  };
  // what tells long names apart is often a number in their middle: the longest parts give way, and what all begin with
  function fitted(names, width) {
    const long = names.filter((name) => name.length > width).map((name) => name.split("."));
    const alike = (i) => long.length > 1 && long.every((parts) => parts.length > i + 1 && parts[i] === long[0][i]);
    let shared = 0;
    while (alike(shared)) shared++;
    return names.map((name) => {
      if (name.length <= width) return name;
      const [first, ...others] = name.split(".").slice(shared), parts = [shared ? "…" + first : first, ...others];
      const taken = (most) => parts.reduce((sum, part) => sum + Math.min(part.length, most) + 1, -1);
      let most = width;
      while (most > 3 && taken(most) > width) most--;
      return shorten(parts.map((part) => shorten(part, most)).join("."), width);
    });
  }
  const percent = (share) => share === 0 ? "0%" : share < 1e-4 ? "<0.01%" : share > 0.999 && share < 1 ? ">99.9%"
    : (100 * share).toFixed(share < 0.01 ? 2 : 1) + "%";
  const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
  const show = (what) => document.querySelectorAll(`[data-needs="${what}"]`).forEach((node) => { node.hidden = false; });

  // ---- theme -----------------------------------------------------------------------------------

  const COLORS = ["ink", "muted", "line", "fits", "less", "lost", "good", "plain"];
  const dark = () => document.documentElement.dataset.theme === "dark";
  function setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    $("theme").textContent = dark() ? "Light" : "Dark";
    $("theme").setAttribute("aria-pressed", String(dark()));
    Object.values(views).forEach((view) => { paint(view); view.run(); });
  }
  function paint(view) {
    const style = getComputedStyle(document.documentElement);
    COLORS.forEach((color) => view.signal(color, style.getPropertyValue("--" + color).trim()));
  }

  // ---- charts ----------------------------------------------------------------------------------

  const tip = $("tip");
  function tooltip(_, event, __, value) {
    tip.style.display = value ? "block" : "none";
    if (!value) return;
    tip.replaceChildren(...Object.entries(value).map(([key, text]) => element("div", `${key}: ${text}`)));
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8) + "px";
  }
  const narrow = () => innerWidth < 760;
  const padding = (name) => {
    const rows = name === "heat_map" || name === "formats" || name === "times";
    return { left: rows ? (narrow() ? 112 : 216) : 76, right: rows ? 62 : 18, top: 8, bottom: name === "formats" ? 4 : 38 };
  };
  const nameWidth = () => Math.floor((padding("heat_map").left - 10) / 6.7);

  const making = {};
  function draw(name, datasets, signals) {
    const host = $("chart-" + name);
    if (!host || !specs) return;
    making[name] = making[name] || make(name, host, datasets);
    making[name].then((view) => {
      for (const [key, rows] of Object.entries(datasets)) view.data(key, rows);
      for (const [key, value] of Object.entries(signals || {})) view.signal(key, value);
      view.run();
      host.dataset.drawn = "true";
    });
  }
  // expressions are interpreted, never compiled: the page's policy forbids eval; empty data is no reason to warn
  async function make(name, host, datasets) {
    for (const source of specs[name].data) if (datasets[source.name]) source.values = datasets[source.name];
    const options = { mode: "vega", ast: true, actions: false, defaultStyle: false, renderer: "canvas", tooltip, logLevel: 1 };
    const { view } = await vegaEmbed(host, specs[name], options);
    views[name] = view;
    paint(view);
    fit(name);
    new ResizeObserver(() => { if (fit(name)) view.run(); }).observe(host);
    return view;
  }
  function fit(name) {
    const view = views[name], pad = padding(name), width = $("chart-" + name).clientWidth - pad.left - pad.right;
    if (width <= 40 || view.width() === width) return false;
    view.padding(pad).width(width);
    return true;
  }
  // charts below the fold wait until they are near the window, or printed
  function whenNear(id, start) {
    const host = $(id);
    if (!host || !specs) return;
    addEventListener("beforeprint", start, { once: true });
    new IntersectionObserver((entries, observer) => {
      if (entries.some((entry) => entry.isIntersecting)) { observer.disconnect(); start(); }
    }, { rootMargin: "400px" }).observe(host);
  }

  // ---- ranges and the loss scale ---------------------------------------------------------------

  const state = { role: "activation_grad", format: data.format, order: "risk", text: "", page: 0, k: data.scale.k };
  const shift = () => GRADIENTS.has(state.role) ? state.k : 0;
  const label = (t) => data.layers[t[0]][0] + (t[1] ? "." + t[1] : "");

  function lost(t, format, k) {
    let share = 0;
    t[3].forEach((part, i) => { const e = t[2] + i + k; if (e < format.cut || e >= format.top) share += part; });
    return Math.min(1, share);
  }
  const overflows = (t, format, k) => t[4] * 2 ** k >= format.limit;
  const flushes = (t, format, k) => !t[7] && t[6] + k < format.cut;  // t[7]: zero but for rounding
  const bad = (t, format, k) => overflows(t, format, k) || flushes(t, format, k);

  // in modules that the plan runs in this format: others round nothing to it; all where it runs none in it
  function gradientsIn(format) {
    const all = [...GRADIENTS].flatMap((role) => data.tensors[role]), own = all.filter((t) => data.layers[t[0]][2] === format);
    const here = own.length ? own : all, counted = here.filter((t) => !t[7]);
    return [counted, all.length - here.length, here.length - counted.length];
  }

  let order = [];
  function sortRows() {
    const text = state.text.toLowerCase(), format = data.formats[state.format], k = shift();
    order = data.tensors[state.role].filter((t) => !text || label(t).toLowerCase().includes(text));
    if (state.order === "risk") {
      const risk = new Map(order.map((t) => [t, lost(t, format, k) + (bad(t, format, k) ? 1 : 0)]));
      order = order.slice().sort((a, b) => risk.get(b) - risk.get(a));
    }
    state.page = Math.min(state.page, Math.max(0, Math.ceil(order.length / ROWS) - 1));
  }
  const rowsShown = () => order.slice(state.page * ROWS, (state.page + 1) * ROWS);

  function domain() {
    let lo = -27, hi = 17;
    for (const t of data.tensors[state.role]) {
      lo = Math.min(lo, t[2] + Math.min(0, data.scale.low));
      hi = Math.max(hi, t[2] + t[3].length);
    }
    const format = data.formats[state.format];
    return [Math.max(lo, Math.max(format.cut, -80) - 12) - 1, Math.min(Math.max(hi, 17) + 2, 130)];
  }

  function drawRanges() {
    const format = data.formats[state.format], k = shift(), shown = rowsShown(), [lo, hi] = domain();
    const full = shown.map(label);
    const cells = [], texts = [];
    shown.forEach((t, row) => {
      t[3].forEach((s, i) => { if (s) cells.push({ row, e: t[2] + i, s }); });
      texts.push({ row, text: percent(lost(t, format, k)), bad: bad(t, format, k) });
    });
    draw("heat_map", { cells, lost: texts },
      { k, lo, hi, cut: format.cut, sub: format.sub, top: format.top, names: fitted(full, nameWidth()), full });
    const names = Object.keys(data.formats);
    const spans = names.flatMap((name, row) => {
      const f = data.formats[name];
      const span = (part, x, x2) => ({ row, name, part, x, x2, chosen: name === state.format, from: "2^" + x, to: "2^" + x2 });
      return [span("normal", f.sub, f.top), span("subnormal", f.cut, f.sub)];
    });
    draw("formats", { spans }, { lo, hi, names });
    $("page").textContent = order.length
      ? `${state.page * ROWS + 1} to ${state.page * ROWS + shown.length} of ${count(order.length, "tensor")}` : "no tensor has such a name";
    $("previous").disabled = state.page === 0;
    $("next").disabled = (state.page + 1) * ROWS >= order.length;
    if ($("heat-table").closest("details").open) fillTable();
  }

  // the slider moves the picture without new rows: only signals and the shares at the right change
  function slide() {
    const format = data.formats[state.format], k = shift();
    const texts = rowsShown().map((t, row) => ({ row, text: percent(lost(t, format, k)), bad: bad(t, format, k) }));
    draw("heat_map", { lost: texts }, { k });
    if (views.scales) views.scales.signal("k", state.k).run();
    if ($("heat-table").closest("details").open) fillTable();
    describe();
  }

  function describe() {
    const format = data.formats[state.format], k = state.k;
    $("k-text").textContent = `2^${k} = ${k >= 0 ? (2 ** k).toLocaleString("en") : "1/" + (2 ** -k).toLocaleString("en")}`;
    $("k").setAttribute("aria-valuetext", `2 to the power of ${k}`);
    const [gradients, others, residues] = gradientsIn(state.format);
    const low = gradients.filter((t) => flushes(t, format, k)), high = gradients.filter((t) => overflows(t, format, k));
    const named = (list) => list.slice(0, 3).map(label).join(", ") + (list.length > 3 ? `, and ${(list.length - 3).toLocaleString("en")} more` : "");
    const parts = [];
    if (low.length) parts.push(`${low.length.toLocaleString("en")} of ${count(gradients.length, "gradient")} would lose more than 0.01% of their energy to zero (${named(low)}).`);
    if (high.length) parts.push(`${high.length.toLocaleString("en")} would overflow (${named(high)}).`);
    const effect = gradients.length === 0 ? "No gradient was measured."
      : parts.join(" ") || `All ${count(gradients.length, "gradient")} survive in ${state.format} at this scale: none overflows, and ${vanishing(gradients, format, k)}`;
    const elsewhere = others ? ` Of modules that the plan runs in other formats, ${count(others, "gradient")} ${others === 1 ? "is" : "are"} not counted.` : "";
    const rounding = residues ? ` Not counted: ${count(residues, "gradient")}, zero but for rounding (such as a bias's before a norm).` : "";
    $("k-effect").textContent = effect + elsewhere + rounding;
  }

  // values that round to zero may be many and yet weigh nothing
  function vanishing(gradients, format, k) {
    const worst = gradients.reduce((a, b) => lost(b, format, k) > lost(a, format, k) ? b : a);
    const share = lost(worst, format, k);
    return share === 0 ? "no value rounds to zero."
      : `what rounds to zero, at most ${percent(share)} of a gradient's values (${label(worst)}), carries no more than 0.01% of its energy (sum of squares).`;
  }

  function fillTable() {
    const format = data.formats[state.format], k = shift(), table = $("heat-table");
    const head = element("tr");
    ["tensor", "largest", "smallest", "lost", "verdict"].forEach((name, i) => head.append(element("th", name, i && i < 4 ? "n" : "")));
    const rows = rowsShown().map((t) => {
      const row = element("tr"), why = overflows(t, format, k) ? "overflows" : flushes(t, format, k) ? "loses energy to zero" : t[7] ? "zero but for rounding" : "fits";
      const cells = [label(t), (t[4] * 2 ** k).toPrecision(3), (t[5] * 2 ** k).toPrecision(3), percent(lost(t, format, k)), why];
      cells.forEach((cell, i) => row.append(element("td", cell, i && i < 4 ? "n" : "")));
      return row;
    });
    table.replaceChildren(head, ...rows);
  }

  function drawScales() {
    const format = data.formats[state.format], [gradients] = gradientsIn(state.format);
    const hurt = [], { low, high, window: safe } = data.scale;
    for (let k = low; k <= high; k++) {
      let under = 0, over = 0;
      for (const t of gradients) { if (overflows(t, format, k)) over++; else if (flushes(t, format, k)) under++; }
      hurt.push({ k, side: "lose gradient energy", n: under }, { k, side: "overflow", n: over });
    }
    const shown = safe && state.format === "float16" ? safe : [999, 998];
    $("window-legend").hidden = shown[0] === 999;
    const harmless = hurt.every((point) => point.n === 0);
    $("scales-none").textContent = harmless ? `None between 2^${low} and 2^${high} does in ${state.format}.` : "";
    $("chart-scales").hidden = $("scales-legend").hidden = false;  // a chart takes its width from its place
    draw("scales", { hurt }, { k: state.k, klo: low - 0.5, khi: high + 0.5, wlo: shown[0], whi: shown[1] });
    $("chart-scales").hidden = $("scales-legend").hidden = harmless;
  }

  function refresh() {
    sortRows();
    drawRanges();
    $("slider").hidden = !GRADIENTS.has(state.role);
    $("scales-box").hidden = !GRADIENTS.has(state.role);
    if (GRADIENTS.has(state.role)) { describe(); if (views.scales) drawScales(); }
  }

  function options(select, entries, value) {
    select.replaceChildren(...entries.map(([key, text]) => { const o = element("option", text); o.value = key; return o; }));
    select.value = value;
  }
  function startRanges() {
    const roles = Object.entries(data.roles).filter(([role]) => data.tensors[role].length);
    if (!roles.length) return;
    if (!roles.some(([role]) => role === state.role)) state.role = roles[0][0];
    options($("role"), roles, state.role);
    options($("format"), Object.keys(data.formats).filter((name) => name !== "float32").map((name) => [name, name]), state.format);
    Object.assign($("k"), { min: data.scale.low, max: data.scale.high, value: state.k });
    const wire = (id, event, change) => $(id).addEventListener(event, change);
    wire("role", "change", (e) => { state.role = e.target.value; state.page = 0; refresh(); });
    wire("format", "change", (e) => { state.format = e.target.value; state.page = 0; refresh(); });
    wire("order", "change", (e) => { state.order = e.target.value; state.page = 0; refresh(); });
    wire("find", "input", (e) => { state.text = e.target.value; state.page = 0; refresh(); });
    wire("previous", "click", () => { state.page--; drawRanges(); });
    wire("next", "click", () => { state.page++; drawRanges(); });
    wire("k", "input", (e) => { state.k = Number(e.target.value); slide(); });
    $("heat-table").closest("details").addEventListener("toggle", fillTable);
    refresh();
    whenNear("chart-scales", drawScales);
  }

  // ---- trainings and time ----------------------------------------------------------------------

  function startTrainings() {
    const t = data.trainings;
    whenNear("chart-losses", () => draw("losses", { curves: t.curves, band: t.band }));
    if (t.pairs.length) whenNear("chart-differences", () => draw("differences", { pairs: t.pairs }, t.signals));
    else ["chart-differences", "differences-note"].forEach((id) => { if ($(id)) $(id).hidden = true; });
    if ($("broken")) $("broken").replaceChildren(...t.broken.map((line) => element("li", line)));
    whenNear("chart-times", () => {
      const { names: full, rows: times } = data.times;
      draw("times", { times }, { names: fitted(full, nameWidth()), full });
    });
  }

  // ---- the plan as a tree ----------------------------------------------------------------------

  function grow(modules) {
    const root = { children: new Map(), leaves: 0, formats: {} };
    for (const module of modules) {
      let node = root;
      const parts = module[0].split(".");
      if (module[2] === "op") parts.push(...parts.pop().split(/:(?=[^:]*$)/));
      [null, ...parts].forEach((part) => {
        if (part !== null) {
          if (!node.children.has(part)) node.children.set(part, { children: new Map(), leaves: 0, formats: {} });
          node = node.children.get(part);
        }
        node.leaves++;
        node.formats[module[1]] = (node.formats[module[1]] || 0) + 1;
      });
      node.module = module;
    }
    return root;
  }
  const chip = (format, n) => element("span", n > 1 ? `${format} × ${n.toLocaleString("en")}` : format, "chip f-" + format);
  function leaf(name, module) {
    const item = element("li");
    item.append(element("span", name || "(the model itself)", "mono"), " ", element("span", module[2], "why"), " ", chip(module[1], 1));
    if (module[3] >= 0) item.append(" ", element("span", data.plan.reasons[module[3]], "why"));
    return item;
  }
  function branch(name, node, open) {
    if (!node.children.size) return leaf(name, node.module);
    const item = element("li"), details = element("details"), summary = element("summary"), list = element("ul");
    summary.append(element("span", name, "mono"), " ", element("span", count(node.leaves, "part"), "why"));
    for (const [format, n] of Object.entries(node.formats)) summary.append(" ", chip(format, n));
    details.append(summary, list);
    item.append(details);
    const fill = () => {
      if (list.childElementCount) return;
      if (node.module) list.append(leaf("(itself)", node.module));
      for (const [part, child] of node.children) list.append(branch(part, child, open));
    };
    details.addEventListener("toggle", fill);
    if (open) { fill(); details.open = true; }
    return item;
  }
  function startTree() {
    const host = $("tree");
    if (!host) return;
    show("script");
    const every = data.plan.modules, formats = [...new Set(every.map((module) => module[1]))];
    options($("plan-format"), [["", "any"], ...formats.map((f) => [f, f])], "");
    const update = () => {
      const text = $("plan-find").value.toLowerCase(), format = $("plan-format").value;
      const chosen = every.filter((m) => (!format || m[1] === format)
        && (!text || `${m[0]} ${m[2]} ${data.plan.reasons[m[3]] || ""}`.toLowerCase().includes(text)));
      const list = element("ul"), tree = grow(chosen);
      for (const [part, child] of tree.children) list.append(branch(part, child, chosen.length <= 60));
      host.replaceChildren(list);
      $("plan-count").textContent = `${chosen.length.toLocaleString("en")} of ${every.length.toLocaleString("en")} modules and ops`;
    };
    $("plan-find").addEventListener("input", update);
    $("plan-format").addEventListener("change", update);
    update();
  }

  // ---- copying ---------------------------------------------------------------------------------

  async function copy(text) {
    try { await navigator.clipboard.writeText(text); } catch {
      const area = element("textarea", text);
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }
  function startCopying() {
    const texts = { code: () => $("code").textContent, plan: () => JSON.stringify(plan, null, 2) + "\n" };
    document.querySelectorAll("[data-copy]").forEach((button) => {
      const name = button.textContent;
      button.addEventListener("click", async () => {
        await copy(texts[button.dataset.copy]());
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = name; }, 1500);
      });
    });
  }

  setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  $("theme").addEventListener("click", () => setTheme(dark() ? "light" : "dark"));
  let shown = null;  // paper is white
  addEventListener("beforeprint", () => { shown = document.documentElement.dataset.theme; setTheme("light"); });
  addEventListener("afterprint", () => setTheme(shown));
  startCopying();
  startTree();
  if (specs) {
    show("charts");
    startRanges();
    startTrainings();
  }
  document.documentElement.dataset.ready = "true";
})().catch((error) => document.querySelectorAll('[data-missing="charts"]').forEach((note) => {
  note.textContent = `The charts can't be drawn in this browser: ${error}`;
  note.hidden = false;
}));
