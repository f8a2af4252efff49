/* Numbers with their intervals, beside what makes them readable: the oracle, the floor, held-out samples. */
const ROW_MARKS = { __proto__: null, oracle: "◆", floor: "▲" };

function metricsSection(runs) {
  const measured = runs.map((run, number) => ({ run, number, metrics: run.metrics })).filter((one) => one.metrics?.rows.length);
  if (!measured.length) return null;
  const others = [...new Set(measured.flatMap(({ metrics }) => metrics.others))];
  const names = [...new Set(measured.flatMap(({ metrics }) => metrics.rows.map((row) => row.name)))];
  const several = runs.length > 1;
  const head = ["Metric", several ? "Run" : null, "Generated", "95 % interval, and other rows", "from", "to", ...others];
  const body = names.map((name) => {
    const rows = measured.map((one) => ({ ...one, row: one.metrics.rows.find((row) => row.name === name) })).filter((one) => one.row);
    const span = extent(rows.map((one) => one.row));
    return el("tbody", {}, rows.map(({ run, number, row }, i) => el("tr", {},
      i === 0 ? el("th", { scope: "rowgroup", rowspan: rows.length }, name) : null,
      several ? el("td", {}, runMark(run, number)) : null,
      el("td", { class: "number strong" }, short(row.value)),
      el("td", { class: "plot" }, intervalPlot(row, span, RUN_COLORS[number % RUN_COLORS.length])),
      el("td", { class: "number" }, row.interval ? short(row.interval[0]) : ""),
      el("td", { class: "number" }, row.interval ? short(row.interval[1]) : ""),
      others.map((other) => el("td", { class: "number" }, other in row.rows ? short(row.rows[other]) : "")))));
  });
  const table = el("table", { class: "metrics" }, el("caption", { class: "hidden" }, "Metrics of the generated samples"),
    el("thead", {}, el("tr", {}, head.filter((text) => text !== null).map((text) => {
      const mark = text in ROW_MARKS ? `${ROW_MARKS[text]} ` : others.includes(text) ? "○ " : "";
      const words = ["Metric", "Run", "95 % interval, and other rows"].includes(text);
      return el("th", { scope: "col", class: words ? null : "number" }, mark + text);
    }))), body);
  return section("metrics", "Metrics",
    el("p", { class: "muted" }, "● is the generated set, the line its 95 % interval; each row has a scale of its own."),
    scrolling("Metrics", table),
    measured.map(({ run, number, metrics }) => el("details", { open: metrics.notes.length > 0 && !several },
      el("summary", {}, several ? runMark(run, number) : null, "What was compared, and how to read it"),
      el("ul", { class: "notes" }, metrics.notes.map((note) => el("li", {}, note))),
      el("dl", {}, metrics.protocol.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])))));
}

function extent(rows) {
  const all = rows.flatMap((row) => [row.value, ...(row.interval ?? []), ...Object.values(row.rows)]);
  const low = Math.min(...all), high = Math.max(...all), room = 0.06 * (high - low) || Math.abs(high) * 0.1 || 1;
  return [low - room, high + room];
}

function intervalPlot(row, [low, high], color) {
  const at = (value) => (180 * (value - low)) / (high - low);
  const said = [`generated ${short(row.value)}`, row.interval ? `95 % interval ${row.interval.map((value) => short(value)).join(" to ")}` : null,
    ...Object.entries(row.rows).map(([name, value]) => `${name} ${short(value)}`)];
  const svg = el("svg", { viewBox: "0 0 180 24", width: 180, height: 24, role: "img", "aria-label": said.filter(Boolean).join(", ") },
    el("line", { x1: 0, x2: 180, y1: 12, y2: 12, class: "rail" }));
  if (row.interval) {
    const [from, to] = row.interval.map(at);
    svg.append(el("line", { x1: from, x2: to, y1: 12, y2: 12, stroke: color, "stroke-width": 3, "stroke-linecap": "round" }));
  }
  for (const [name, value] of Object.entries(row.rows)) {
    const x = at(value);
    if (name === "oracle") svg.append(el("path", { d: `M${x} 5l5 7-5 7-5-7z`, class: "other" }));
    else if (name === "floor") svg.append(el("path", { d: `M${x} 6l6 11h-12z`, class: "other" }));
    else svg.append(el("circle", { cx: x, cy: 12, r: 4.5, class: "other" }));
  }
  svg.append(el("circle", { cx: at(row.value), cy: 12, r: 5.5, fill: color, class: "dot" }));
  return svg;
}
