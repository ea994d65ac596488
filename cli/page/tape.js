"use strict";
// Steps through a recorded training step. The cursor stands on a call: everything is shown as it
// was right after that call had run.
const tape = JSON.parse(document.getElementById("tape").textContent);
const calls = tape.calls, tensors = tape.tensors, last = calls.length - 1;
const firstBack = (() => {
  const i = calls.findIndex(k => k.pass > 0);
  return i < 0 ? calls.length : i;
})();
// The tokens come before any other whole numbers.
const tokens = tensors.findIndex(t => t && t.made < 0 && t.dtype === "i32");
const $ = id => document.getElementById(id);

/* ---- words --------------------------------------------------------------------------------- */
function el(name, attributes, ...children) {
  const e = document.createElement(name);
  for (const [k, v] of Object.entries(attributes || {}))
    if (k === "onclick") e.addEventListener("click", v);
    else if (v !== undefined && v !== null) e.setAttribute(k, v);
  e.append(...children.filter(x => x !== null && x !== undefined));
  return e;
}
function svg(name, attributes) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  return e;
}
const shape = t => `${t.dtype}[${t.shape.join(",")}]`;
const id = n => (n ? "%" + n : "–");
const count = n => Math.round(n).toLocaleString("en").replaceAll(",", "\u2009");
function bytes(n) {
  const sign = n < 0 ? "−" : "";
  n = Math.abs(n);
  if (n < 1000) return `${sign}${n} B`;
  const unit = n < 1e6 ? ["kB", 1e3] : n < 1e9 ? ["MB", 1e6] : ["GB", 1e9], v = n / unit[1];
  return `${sign}${v < 10 ? v.toFixed(2) : v < 100 ? v.toFixed(1) : Math.round(v)} ${unit[0]}`;
}
function short(x) {
  if (!Number.isFinite(x)) return String(x);
  if (Number.isInteger(x) && Math.abs(x) < 1e6) return String(x);
  const a = Math.abs(x);
  const s = a >= 1e5 || a < 1e-2 ? x.toExponential(1) : x.toPrecision(3);
  return s.replace("-", "−").replace("e−", "e-").replace("e+", "e");
}
const passOf = i => (calls[i].pass ? "back" : "forth");
const stepLink = (i, text) =>
  el("a", {href: "#" + (i + 1), onclick: e => { e.preventDefault(); go(i); }}, text || `step ${i + 1}`);
function joined(parts, between = ", ") {
  return parts.flatMap((p, i) => (i ? [between, p] : [p]));
}

/* ---- what is known when -------------------------------------------------------------------- */
const writes = tensors.map(() => []), grads = tensors.map(() => []), gradientOf = tensors.map(() => []);
for (const [at, of, , v] of tape.writes) writes[of].push([at, v]);
for (const [at, of, g, v] of tape.grads) {
  grads[of].push([at, v]);
  if (g && !gradientOf[g].includes(of)) gradientOf[g].push(of);
}
const grown = calls.map(() => []); // by a call: tensors whose gradient it made or added to
for (const [at, of] of tape.grads) if (at >= 0 && !grown[at].includes(of)) grown[at].push(of);
const derivative = calls.map(() => []); // of a call: those that its vjp ran
calls.forEach((k, i) => { if (k.of >= 0) derivative[k.of].push(i); });
// The newest of a list of [at, values] not after call i.
function newest(list, i) {
  let found = -1;
  for (const [at, v] of list) if (at <= i) found = v;
  return found;
}
const valuesAt = (n, i) => (writes[n].length && writes[n][0][0] <= i ? newest(writes[n], i) : tensors[n].first);

/* ---- the list ------------------------------------------------------------------------------ */
const ROW = 28, FOLD_ABOVE = 150;
const groups = []; // runs of calls of one block and one pass
calls.forEach((k, i) => {
  const block = k.scope.split(".")[0], back = i >= firstBack, g = groups.at(-1);
  if (g && g.back === back && (g.block === block || !block)) g.to = i + 1;
  else groups.push({block: block || "step", back, from: i, to: i + 1, open: calls.length <= FOLD_ABOVE});
});
const groupOf = new Map();
groups.forEach(g => { for (let i = g.from; i < g.to; i++) groupOf.set(i, g); });
let rows = [], cursor = 0, timer = 0, address = 0;

function layOut() {
  rows = [];
  for (const back of [false, true]) {
    const part = groups.filter(g => g.back === back);
    if (!part.length) continue;
    rows.push({section: back ? "Backward" : "Forward", back, n: part.reduce((n, g) => n + g.to - g.from, 0)});
    for (const g of part) {
      rows.push({group: g});
      for (let i = g.from; g.open && i < g.to; i++) rows.push({call: i});
    }
  }
  $("rows").style.height = rows.length * ROW + "px";
}
function rowOf(r, at) {
  const place = {style: `top:${at * ROW}px`, role: "treeitem"};
  if (r.section)
    return el("div", {...place, class: `row section ${r.back ? "back" : "forth"}`, "aria-level": 1},
              r.section, el("span", {class: "part"}, `${r.n} operations`));
  if (r.group) {
    const g = r.group;
    return el("div", {...place, class: `row group ${g.back ? "back" : "forth"}`, "aria-level": 2,
                      "aria-expanded": g.open, "data-group": groups.indexOf(g),
                      onclick: () => { g.open = !g.open; layOut(); render(); }},
              el("span", {class: "twist", "aria-hidden": "true"}), el("span", {class: "name"}, g.block),
              el("span", {class: "part"}, `${g.from + 1}–${g.to}`));
  }
  const i = r.call, k = calls[i], results = [...k.out, ...k.changed].map(id).join(" ");
  const part = k.scope.split(".").slice(1).join(".") + (k.pass === 2 ? " again" : "");
  return el("div", {...place, class: `row call ${passOf(i)} ${i === cursor ? "here" : ""} ${i > cursor ? "later" : ""}`,
                    id: "row" + i, "aria-level": 3, "aria-selected": i === cursor, "data-call": i,
                    onclick: () => go(i)},
            el("span", {class: "number"}, String(i + 1)),
            el("span", {class: "name mono"}, k.op + " ", el("span", {class: "ids"}, results)),
            el("span", {class: "part"}, part));
}
// Only what is in sight is in the document.
function render() {
  const list = $("list"), from = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
  const to = Math.min(rows.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
  $("rows").replaceChildren(...rows.slice(from, to).map((r, j) => rowOf(r, from + j)));
}
function reveal() {
  const g = groupOf.get(cursor), list = $("list");
  if (!g.open) { g.open = true; layOut(); }
  const top = rows.findIndex(r => r.call === cursor) * ROW, h = list.clientHeight;
  if (top < list.scrollTop + ROW || top > list.scrollTop + h - 3 * ROW)
    list.scrollTop = Math.max(0, top - h * 0.4);
  list.setAttribute("aria-activedescendant", "row" + cursor);
}
function foldAll(open) {
  for (const g of groups) g.open = open || g === groupOf.get(cursor);
  layOut();
  reveal();
  render();
}

/* ---- memory -------------------------------------------------------------------------------- */
const WIDE = 1000, HIGH = 100;
const most = Math.max(...calls.map(k => k.memory), 1) * 1.25;
const x = i => (i / calls.length) * WIDE, y = m => HIGH - (m / most) * HIGH;
function area(from, to) {
  let d = `M${x(from)} ${HIGH}`;
  for (let i = from; i < to; i++) d += `L${x(i)} ${y(calls[i].memory)}L${x(i + 1)} ${y(calls[i].memory)}`;
  return d + `L${x(to)} ${HIGH}Z`;
}
function drawChart() {
  const c = $("chart");
  c.setAttribute("viewBox", `0 0 ${WIDE} ${HIGH}`);
  c.append(svg("path", {class: "used", d: area(0, firstBack)}), svg("path", {class: "used back", d: area(firstBack, calls.length)}),
           svg("rect", {class: "rest", x: 0, width: WIDE, y: y(tape.atRest), height: HIGH - y(tape.atRest)}),
           svg("line", {class: "cursor", id: "mark", y1: 0, y2: HIGH}));
  $("lb").style.left = (100 * firstBack) / calls.length + "%";
  $("most").textContent = `${bytes(Math.round(most / 1.25))} between steps`;
  c.setAttribute("aria-valuemin", 1);
  c.setAttribute("aria-valuemax", calls.length);
  const seek = e => {
    const box = c.getBoundingClientRect();
    go(Math.max(0, Math.min(last, Math.floor(((e.clientX - box.left) / box.width) * calls.length))));
  };
  c.addEventListener("pointerdown", e => { c.setPointerCapture(e.pointerId); seek(e); });
  c.addEventListener("pointermove", e => { if (e.buttons) seek(e); });
}
const peakAt = calls.reduce((best, k, i) => (k.high > calls[best].high ? i : best), 0);
// Tensors that calls before the cursor hold until their own derivative has run.
function keptNow() {
  const kept = new Set();
  for (let i = 0; i <= cursor; i++) {
    const k = calls[i];
    if (!(k.savedIn || k.savedOut) || (derivative[i].at(-1) ?? -1) <= cursor && cursor >= firstBack) continue;
    k.in.forEach((n, j) => { if (n && (k.savedIn >> j) & 1) kept.add(n); });
    k.out.forEach((n, j) => { if ((k.savedOut >> j) & 1) kept.add(n); });
  }
  return `${kept.size} ${kept.size === 1 ? "tensor" : "tensors"}`;
}
function showMemory() {
  const now = calls[cursor].memory, before = cursor ? calls[cursor - 1].memory : tape.atRest, change = now - before;
  $("mark").setAttribute("x1", x(cursor + 0.5));
  $("mark").setAttribute("x2", x(cursor + 0.5));
  $("chart").setAttribute("aria-valuenow", cursor + 1);
  $("chart").setAttribute("aria-valuetext", `step ${cursor + 1}, ${bytes(now)} in use`);
  $("memory").replaceChildren(
    el("b", {id: "used", "data-bytes": now}, bytes(now)), " in use", change ? ` (${change > 0 ? "+" : ""}${bytes(change)})` : "",
    el("br"), `${keptNow()} kept for backward`, el("br"),
    `weights ${bytes(tape.atRest)}, peak ${bytes(calls[peakAt].high)} while `, stepLink(peakAt), " ran");
}

/* ---- values -------------------------------------------------------------------------------- */
function grid(v, t, label) {
  const most = v.x.reduce((m, n) => (Number.isFinite(+n) ? Math.max(m, Math.abs(n)) : m), 0);
  const lead = t.shape.slice(0, -1), body = el("tbody", {});
  const real = /^(f|bf)/.test(t.dtype); // numbers of tokens are names: no colours
  const named = tape.pieces.length && t === tensors[tokens];
  for (let r = 0; r < v.rows; r++) {
    const tr = el("tr", {}), index = [];
    for (let d = lead.length - 1, left = r; d >= 0; d--) { index.unshift(left % lead[d]); left = Math.floor(left / lead[d]); }
    tr.append(el("th", {scope: "row"}, index.join(",")));
    for (let c = 0; c < v.columns; c++) {
      const n = +v.x[r * v.columns + c];
      const td = el("td", {"data-x": n, title: n, class: Number.isFinite(n) ? (n < 0 ? "minus" : "plus") : "bad"}, short(n));
      if (most && real && Number.isFinite(n)) td.style.setProperty("--much", Math.round((Math.abs(n) / most) * 58) + "%");
      tr.append(td);
    }
    body.append(tr);
  }
  const whole = v.rows * v.columns === v.n, wide = t.shape.length ? t.shape.at(-1) : 1;
  const head = el("tr", {}, el("th", {}));
  for (let c = 0; c < v.columns; c++) head.append(el("th", {scope: "col"}, String(c)));
  const table = el("table", {class: "grid", "aria-label": label}, el("thead", {}, head), body);
  const parts = [];
  if (!whole) {
    const bars = svg("svg", {class: "bins", viewBox: `0 0 ${v.bins.length} 1`, preserveAspectRatio: "none", role: "img"});
    bars.setAttribute("aria-label", `how values spread from ${short(v.min)} to ${short(v.max)}`);
    const high = Math.max(...v.bins, 1);
    v.bins.forEach((b, i) => bars.append(svg("rect", {x: i + 0.06, width: 0.88, y: 1 - b / high, height: b / high})));
    const fact = (name, n) => el("span", {}, name + " ", el("b", {}, n));
    parts.push(el("div", {class: "stats"}, bars, fact("mean", short(v.mean)), fact("deviation", short(v.deviation)),
                  fact("min", short(v.min)), fact("max", short(v.max)), v.zeros ? fact("zeros", count(v.zeros)) : null,
                  v.bad ? fact("not finite", count(v.bad)) : null,
                  el("span", {}, `the first ${v.rows} of ${count(v.n / wide)} rows, ${v.columns} of ${wide} columns:`)));
  }
  parts.push(el("div", {class: "scroll"}, table));
  for (let r = 0; named && r < v.rows; r++) { // an input's rows are sequences
    const text = tape.pieces.slice(r * wide, r * wide + wide).join("·");
    parts.push(el("div", {class: "piece"}, el("span", {class: "dim"}, `${r}  `), text.length > 150 ? text.slice(0, 150) + " …" : text));
  }
  return parts;
}
function gradientSide(n, t) {
  const list = grads[n], so = list.filter(([at]) => at <= cursor), v = newest(list, cursor);
  const side = el("div", {class: "side grad"}, el("h4", {}, `gradient of the loss by ${id(n)}`));
  const note = (...x) => side.append(el("p", {class: "note"}, ...x));
  if (!list.length) note("no gradient reaches it");
  else if (!so.length) note("backward gets here at ", stepLink(list[0][0]));
  else {
    if (v >= 0) side.append(...grid(tape.values[v], t, `gradient of ${id(n)}`));
    const more = list.length - so.length;
    note(more ? `a sum of ${so.length} of ${list.length} parts so far; the next comes at ` : list.length > 1
         ? `complete: the sum of ${list.length} parts, from ` : "complete since ",
         ...(more ? [stepLink(list[so.length][0])] : joined(list.map(([at]) => stepLink(at)))));
  }
  return side;
}
// n: a tensor; i: whose values after call i are shown; kept: this call keeps it for its vjp.
function card(n, i, kept, word) {
  const t = tensors[n], about = [];
  if (t.same) about.push(`the bytes of ${id(t.same)}, as a constant`);
  else if (t.made < 0) about.push(t.name ? "parameter " : "input", t.name ? el("b", {}, t.name) : "");
  else about.push("made at ", stepLink(t.made));
  const whose = gradientOf[n].filter(g => grads[g].some(([at]) => at <= cursor));
  if (whose.length) about.push(" · gradient of ", whose.slice(0, 3).map(g => id(g) + (tensors[g].name ? " " + tensors[g].name : "")).join(", "));
  const head = el("header", {}, el("span", {class: "id mono"}, id(n)), el("span", {class: "mono"}, shape(t)),
                  el("span", {class: "about"}, ...about, " · " + bytes(t.bytes)),
                  kept ? el("span", {class: "tag"}, "kept for backward") : null,
                  word ? el("span", {class: "about"}, word) : null);
  const box = el("section", {class: "card", "data-id": n, "aria-label": `tensor ${id(n)}`}, head);
  const v = valuesAt(n, i), sides = el("div", {class: "sides"});
  if (v >= 0) sides.append(el("div", {class: "side value"}, el("h4", {}, "values"), ...grid(tape.values[v], t, `values of ${id(n)}`)));
  if (t.wanted && (grads[n].length || t.made < firstBack)) sides.append(gradientSide(n, t));
  if (sides.children.length) box.append(sides);
  return box;
}

/* ---- the operation under the cursor -------------------------------------------------------- */
function signature(k) {
  const results = [...k.out, ...k.changed].map(id).join(", ");
  const h = el("h2", {}, results + " = ", el("span", {class: "op"}, k.op), "(", k.in.map(id).join(", "));
  if (k.attrs) h.append(el("span", {class: "attr"}, (k.in.length ? ", " : "") + k.attrs));
  h.append(")");
  return h;
}
function relations(k, i) {
  const p = el("p", {class: "links"}), d = derivative[i];
  if (k.of >= 0 && k.pass === 2) p.append("Computed again: ", stepLink(k.of, `step ${k.of + 1}`), " kept nothing of it. ");
  else if (k.of >= 0) p.append("Part of the derivative of ", stepLink(k.of, `step ${k.of + 1}, ${calls[k.of].op}`), ". ");
  if (d.length) p.append("Its derivative runs at ", ...joined(d.slice(0, 12).map(j => stepLink(j, `${j + 1} ${calls[j].op}`))), d.length > 12 ? " …" : "", ". ");
  else if (!k.pass && tape.ops[k.op].noVjp) p.append("It has no derivative: " + tape.ops[k.op].noVjp + ".");
  return p.childNodes.length ? p : null;
}
function showDetail() {
  const k = calls[cursor], i = cursor, op = tape.ops[k.op];
  const pass = ["forward", "backward", "forward once more, on the way back"][k.pass];
  const parts = [
    el("p", {class: "kicker"}, `Step ${i + 1} of ${calls.length} · `, el("b", {}, pass), k.scope ? " · " : "", el("code", {}, k.scope)),
    signature(k), el("div", {class: "formula"}, op.synopsis), op.doc ? el("p", {class: "doc"}, op.doc) : null, relations(k, i)];
  const seen = new Set(), operands = k.in.map((n, j) => [n, (k.savedIn >> j) & 1]).filter(([n]) => n);
  if (operands.length) {
    parts.push(el("h3", {}, "Operands"));
    for (const [n, kept] of operands) {
      if (!seen.has(n)) parts.push(card(n, i - 1, kept, k.changed.includes(n) ? "as it was before" : ""));
      seen.add(n);
    }
  }
  parts.push(el("h3", {}, k.out.length + k.changed.length === 1 ? "Result" : "Results"));
  k.out.forEach((n, j) => parts.push(card(n, i, (k.savedOut >> j) & 1, "")));
  for (const n of k.changed) parts.push(card(n, i, false, "changed in place"));
  const rest = grown[i].filter(n => !seen.has(n) && !k.out.includes(n));
  if (rest.length) {
    parts.push(el("h3", {}, rest.length === 1 ? "The gradient that has grown by it" : "The gradients that have grown by it"));
    for (const n of rest) parts.push(card(n, i, false, ""));
  }
  const facts = [];
  if (k.kernel) facts.push(`kernel ${k.kernel}`);
  if (k.high > k.memory) facts.push(`while it ran, up to ${bytes(k.high)} in use`);
  if (k.flops) facts.push(`${count(k.flops)} floating-point operations`);
  if (facts.length) parts.push(el("p", {class: "facts"}, facts.join(" · ")));
  if (op.derivation)
    parts.push(el("details", {open: ""}, el("summary", {}, "Where the formulas come from"), el("pre", {}, op.derivation)));
  const box = $("detail");
  box.className = passOf(i);
  box.replaceChildren(...parts.filter(p => p));
  box.scrollTop = 0;
}

/* ---- routed blocks ------------------------------------------------------------------------- */
function showRoutes(b) {
  const T = tape.routes[0].T, B = tape.routes[0].B, roomy = T <= 64, pieces = tape.pieces.slice(b * T, b * T + T);
  const tools = el("div", {class: "tools", role: "group", "aria-label": "Sequence"}, el("span", {}, "sequence"));
  for (let i = 0; i < B; i++)
    tools.append(el("button", {type: "button", class: "quiet", "aria-pressed": i === b, "aria-label": `sequence ${i}`, onclick: () => showRoutes(i)}, String(i)));
  const head = el("tr", {}, el("th", {}, ""));
  for (let t = 0; t < T && roomy; t++) head.append(el("th", {scope: "col"}, pieces[t] ?? String(t)));
  const body = el("tbody", {});
  for (const r of tape.routes) {
    const s = r.score.slice(b * T, b * T + T).map(Number), lo = Math.min(...s), hi = Math.max(...s);
    const n = r.taken.slice(b * T, b * T + T).reduce((a, v) => a + v, 0);
    const tr = el("tr", {}, el("th", {scope: "row"}, `${r.scope.split(".")[0]}: ${n} of ${T}`));
    for (let t = 0; t < T; t++) {
      const taken = r.taken[b * T + t], word = `${r.scope.split(".")[0]}, token ${t}${pieces[t] ? ` “${pieces[t]}”` : ""}: ${taken ? "taken" : "passes by"}, logit ${short(s[t])}`;
      const td = el("td", {class: taken ? "taken" : "", title: word, "data-taken": taken});
      if (taken) td.style.setProperty("--much", Math.round(45 + 55 * (hi > lo ? (s[t] - lo) / (hi - lo) : 1)) + "%");
      tr.append(td);
    }
    body.append(tr);
  }
  $("routes").replaceChildren(
    el("details", {open: ""}, el("summary", {}, "Which tokens the routed blocks took"),
    el("p", {}, "A row is a routed block, a column a token. Coloured: the block took the token, the darker the higher its router's logit; grey: the token passed the block by."
         + (B < tape.routes[0].of ? ` The first ${B} of ${tape.routes[0].of} sequences are here.` : "")),
    B > 1 ? tools : "", el("div", {class: "scroll"}, el("table", {class: `heat ${roomy ? "roomy" : ""}`}, el("thead", {}, head), body))));
}

/* ---- the cursor ---------------------------------------------------------------------------- */
function go(i) {
  cursor = Math.max(0, Math.min(last, i));
  reveal();
  render();
  showMemory();
  showDetail();
  $("where").textContent = `step ${cursor + 1} of ${calls.length}`;
  $("first").disabled = $("back").disabled = cursor === 0;
  $("last").disabled = $("step").disabled = cursor === last;
  clearTimeout(address); // browsers allow few changes of the address in a short time
  address = setTimeout(() => history.replaceState(null, "", "#" + (cursor + 1)), 300);
}
function pause() {
  clearInterval(timer);
  timer = 0;
  $("play").setAttribute("aria-pressed", "false");
  $("play").setAttribute("aria-label", "Play");
}
function play() {
  if (timer) return pause();
  if (cursor === last) go(0);
  timer = setInterval(() => { if (cursor < last) go(cursor + 1); else pause(); }, 900);
  $("play").setAttribute("aria-pressed", "true");
  $("play").setAttribute("aria-label", "Pause");
}
const moves = {
  first: () => go(0), back: () => go(cursor - 1), step: () => go(cursor + 1), last: () => go(last), play,
};
const keys = {Home: "first", ArrowLeft: "back", ArrowUp: "back", ArrowRight: "step", ArrowDown: "step", End: "last", " ": "play"};
for (const [name, move] of Object.entries(moves))
  $(name).addEventListener("click", () => { if (name !== "play") pause(); move(); });
document.addEventListener("keydown", e => {
  const name = keys[e.key];
  if (!name || e.ctrlKey || e.altKey || e.metaKey) return;
  if (e.key === " " && e.target.closest("button, a, summary")) return;
  if (/Up|Down/.test(e.key) && e.target.closest("article, .routes")) return;
  e.preventDefault();
  if (name !== "play") pause();
  moves[name]();
});
$("list").addEventListener("scroll", render, {passive: true});
new ResizeObserver(render).observe($("list"));
$("fold").addEventListener("click", () => foldAll(false));
$("unfold").addEventListener("click", () => foldAll(true));
window.addEventListener("hashchange", () => go(parseInt(location.hash.slice(1), 10) - 1 || 0));

$("title").textContent = tape.title;
document.title = `Tape of ${tape.title}`;
$("about").textContent = tape.whyNot || `${tape.weights} · loss ${short(tape.loss)}. Every number is the engine's own.`;
drawChart();
if (tape.routes.length) { $("routes").hidden = false; showRoutes(0); }
layOut();
go(parseInt(location.hash.slice(1), 10) - 1 || 0);
