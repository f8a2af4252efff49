/* Curves of the logs, drawn by uPlot. */
const TITLES = {
  __proto__: null,
  loss: "Loss", balance: "Balance loss (1 is even)", gradient_norm: "Gradient norm", learning_rate: "Learning rate",
  samples_per_second: "Samples per second", skipped: "Skipped steps", spikes: "Spikes that were cut",
  dead: "Experts without a token", effective: "Effective experts", entropy: "Entropy of a token's scores (1 is indifferent)",
  router_similarity: "Largest cosine of two rows of the router", expert_similarity: "Mean cosine of experts' weights",
  experts_per_token: "Experts per token", unrouted: "Share of tokens without an expert", dropped: "Share of dropped assignments",
};
const FIRST = ["loss", "gradient_norm", "learning_rate", "balance"];

/** Colours from violet to yellow, for what has an order. */
function ramp(i, count) {
  const at = count > 1 ? i / (count - 1) : 0.5;
  return `hsl(${285 - 245 * at} ${58 + 22 * at}% ${46 + 8 * at}%)`;
}

function curvesSection(runs) {
  const logged = runs.map((run, number) => ({ run, number, log: run.log })).filter(({ log }) => log?.steps.length);
  if (!logged.length) return null;
  const several = logged.length > 1;
  const plain = [...new Set(logged.flatMap(({ log }) => Object.keys(log.curves)))].filter((name) => !name.includes("/"));
  const order = [...FIRST.filter((name) => plain.includes(name)), ...plain.filter((name) => !FIRST.includes(name)).sort(byName)];
  const together = order.map((name) => chart(TITLES[name] ?? name, logged
    .filter(({ log }) => name in log.curves)
    .map(({ run, number, log }) => ({
      label: several ? run.name : name, color: RUN_COLORS[number % RUN_COLORS.length], steps: log.steps, values: log.curves[name],
    })), { log: name === "gradient_norm", hide: ["skipped", "spikes"].includes(name) }));
  const each = logged.flatMap(({ run, number, log }) => {
    const groups = grouped(log);
    const mine = [chart("Loss by time, 0 is data, 1000 noise", lines(log, groups.get("loss_by_time") ?? []))];
    const loads = [...groups].filter(([name]) => name.startsWith("load/")).sort(([a], [b]) => byName(a, b));
    mine.push(...loads.map(([name, curves]) => chart(`Load of experts, ${name.slice(5).replace(/^layer0*(?=\d)/, "layer ")} (1 is even)`,
      lines(log, curves, curves.length), { legend: curves.length <= 16 })));
    const others = [...groups].filter(([name]) => name !== "loss_by_time" && !name.startsWith("load/"));
    const more = others.map(([name, curves]) => chart(TITLES[name] ?? name, lines(log, curves)));
    return [
      several ? el("h3", {}, runMark(run, number)) : null,
      el("div", { class: "charts" }, mine),
      more.some(Boolean) ? el("details", {}, el("summary", {}, "More about the routers"), el("div", { class: "charts" }, more)) : null,
    ];
  });
  const thinned = logged.filter(({ log }) => log.every > 1).map(({ run, log }) =>
    el("p", { class: "muted" }, `${several ? `${run.name}: ` : ""}one of ${log.every} lines of the log is drawn.`));
  return section("curves", "Training", thinned, el("div", { class: "charts" }, together), each);
}

/** Curves of one kind: load by layer, all others by what stands before the slash. */
function grouped(log) {
  const groups = new Map();
  for (const name of Object.keys(log.curves).filter((one) => one.includes("/"))) {
    const parts = name.split("/");
    const kind = parts[0] === "load" && parts.length > 2 ? `load/${parts[1]}` : parts[0];
    groups.set(kind, [...(groups.get(kind) ?? []), name]);
  }
  return groups;
}

function lines(log, names, factor = 1) {
  return [...names].sort(byName).map((name, i) => ({
    label: name.split("/").slice(name.startsWith("load/") ? 2 : 1).join("/").replace(/^(expert|layer)0*(?=\d)/, "$1 "),
    color: ramp(i, names.length), steps: log.steps,
    values: factor === 1 ? log.curves[name] : log.curves[name].map((value) => (value === null ? null : value * factor)),
  }));
}

/** A chart of curves over steps, or null if there is nothing to draw; `log` offers a logarithmic scale first. */
function chart(title, series, { log = false, hide = false, legend = true } = {}) {
  series = series.filter(({ values }) => values.some((value) => value !== null && (!hide || value !== 0)));
  if (!series.length) return null;
  const positive = series.every(({ values }) => values.every((value) => value === null || value > 0));
  const place = el("div", { class: "plot-area", role: "img", "aria-label": `${title}: ${series.slice(0, 12).map(ending).join(", ")}` });
  const scale = el("button", {
    type: "button", class: "chip small", "aria-pressed": String(log && positive), "aria-label": `Logarithmic scale of ${title}`,
    onclick: (event) => {
      log = event.currentTarget.getAttribute("aria-pressed") !== "true";
      event.currentTarget.setAttribute("aria-pressed", String(log));
      make();
    },
  }, "log");
  const node = el("figure", { class: "chart" },
    el("figcaption", {}, title, positive ? scale : null), place);
  let plot = null;
  const data = uPlot.join(series.map(({ steps, values }) => [steps, values]));
  // which values stand below until a pointer chooses others
  const last = data.map((values) => values.findLastIndex((value) => value !== null && value !== undefined));
  const axis = (extra) => ({
    stroke: () => css("--muted"), grid: { stroke: () => css("--line"), width: 1 }, ticks: { show: false },
    font: "12px system-ui, sans-serif", ...extra,
  });
  function make() {
    plot?.destroy();
    plot = new uPlot({
      width: Math.max(200, place.clientWidth), height: 220, legend: { show: legend, live: true },
      cursor: { y: false, points: { size: 6 } },
      scales: { x: { time: false }, y: { distr: log && positive ? 3 : 1 } },
      axes: [axis({ size: 34, space: 48 }), axis({ size: 58, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : short(tick))) })],
      series: [{ label: "step", value: (_, value) => (value === null ? "" : value.toLocaleString("en")) }, ...series.map(({ label, color }) => ({
        label, stroke: color, width: series.length > 4 ? 1.4 : 2, spanGaps: false, value: (_, value) => short(value),
      }))],
      hooks: { setCursor: [(one) => { if (one.cursor.idx === null) one.setLegend({ idxs: last }, false); }] },
    }, data, place);
    plot.setLegend({ idxs: last }, false);
  }
  whenSeen(node, () => {
    make();
    redraws.add(() => plot.redraw(false, true));
    new ResizeObserver(() => {
      const width = Math.max(200, place.clientWidth);
      if (width !== plot.width) plot.setSize({ width, height: 220 });
    }).observe(place);
  });
  return node;
}

function ending({ label, values }) {
  const last = values.findLast((value) => value !== null);
  return `${label} ends at ${short(last)}`;
}
