/* The page: what its data say, put together. */
function overviewSection(runs) {
  return section("overview", runs.length > 1 ? "Runs" : "Run", el("div", { class: "runs" }, runs.map((run, number) => {
    const config = Object.fromEntries(run.config ?? []);
    const last = run.log?.curves.loss?.findLast((value) => value !== null);
    const facts = [
      ["modality", run.modality], ["step", run.step?.toLocaleString("en")], ["loss", last === undefined ? null : short(last)],
      ["model", config["model.hidden_size"] ? `${config["model.depth"]} blocks of width ${config["model.hidden_size"]}` : null],
      ["experts", config["router.num_experts"] ? config["router.num_experts"] + (config["router.top_k"] ? `, top ${config["router.top_k"]}` : "") : null],
      ["router", config["router._target_"]?.split(".").at(-1)], ["process", config["process._target_"]?.split(".").at(-1)],
      ["seed", config.seed],
    ].filter(([, value]) => value);
    const card = el("article", { class: "run" }, el("h3", {}, runMark(run, number)),
      el("dl", { class: "facts" }, facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
      run.command ? command(run.command) : null,
      run.notes.map((note) => el("p", { class: "note" }, note)));
    return card;
  })));
}

function command(text) {
  const code = el("code", { tabindex: 0 }, text);
  const copy = el("button", {
    type: "button", class: "chip small", onclick: async () => {
      getSelection().selectAllChildren(code);
      try { await navigator.clipboard.writeText(text); } catch { document.execCommand("copy"); }
      copy.textContent = "copied";
    },
  }, "copy");
  return el("div", { class: "command" }, code, copy);
}

function expertsSection(runs) {
  const analysed = runs.map((run, number) => ({ run, number, analysis: run.analysis })).filter(({ analysis }) => analysis);
  if (!analysed.length) return null;
  return section("experts", "What experts do",
    el("p", { class: "muted" }, "Measured by python -m ditmoe.analyze on held-out samples, corrected for chance."),
    analysed.map(({ run, number, analysis }) => el("div", { class: "set" },
      runs.length > 1 ? el("h3", {}, runMark(run, number)) : null,
      analysis.dependence.length ? scrolling("Bits by layer", dependenceTable(analysis)) : null,
      el("div", { class: "charts wide" }, analysis.pictures.map((drawn) => el("figure", { class: "paper" },
        enlargeable(drawn, drawn.caption), el("figcaption", {}, drawn.caption)))),
      el("details", {}, el("summary", {}, "How it was measured"),
        el("dl", {}, analysis.protocol.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]))))));
}

function dependenceTable({ dependence: rows, blocks }) {
  const layers = Math.max(...rows.map((row) => row.layers.length));
  const most = Math.max(1e-9, ...rows.flatMap((row) => row.layers.map(([bits]) => bits ?? 0)));
  return el("table", {}, el("caption", {}, "Mutual information between the chosen expert and each factor, in bits, with its p-value"),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Bits of"),
      Array.from({ length: layers }, (_, i) => el("th", { scope: "col" }, blocks[i] === undefined ? `layer ${i}` : `block ${blocks[i]}`)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, el("th", { scope: "row" }, row.of), row.layers.map(([bits, p]) => {
      const cell = el("td", { class: "number heat" }, short(bits, 3), el("span", { class: "muted" }, p === null ? "" : ` p ${short(p, 2)}`));
      cell.style.setProperty("--heat", `${Math.round((60 * Math.max(0, bits ?? 0)) / most)}%`);
      return cell;
    })))));
}

function configSection(runs) {
  const known = runs.filter((run) => run.config?.length);
  if (!known.length) return null;
  const maps = runs.map((run) => new Map(run.config ?? []));
  const names = [...new Set(maps.flatMap((map) => [...map.keys()]))];
  const rows = names.map((name) => {
    const values = maps.map((map) => map.get(name));
    const differs = runs.length > 1 && new Set(values).size > 1;
    const node = el("tr", { class: differs ? "differs" : null }, el("th", { scope: "row" }, broken(name)),
      values.map((value) => el("td", { class: value === values[0] ? null : "changed" },
        value ?? el("span", { class: "muted" }, "not there"))));
    return { node, differs, words: `${name} ${values.join(" ")}`.toLowerCase() };
  });
  const count = rows.filter((row) => row.differs).length;
  const search = el("input", { type: "search", placeholder: "Option or value", "aria-label": "Show options whose name or value has", oninput: () => filter() });
  const only = el("input", { type: "checkbox", id: "differences", onchange: () => filter() });
  only.checked = runs.length > 1 && count > 0;
  function filter() {
    const words = search.value.trim().toLowerCase();
    rows.forEach((row) => { row.node.hidden = (only.checked && !row.differs) || !row.words.includes(words); });
  }
  filter();
  const table = el("table", { class: "config" }, el("caption", { class: "hidden" }, "Configuration"),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Option"), runs.map((run, number) => el("th", { scope: "col" }, runMark(run, number))))),
    el("tbody", {}, rows.map((row) => row.node)));
  const options = el("details", { open: runs.length > 1 }, el("summary", {}, plural(names.length, "option"),
    runs.length > 1 ? `, ${count} of which differ` : ""),
    el("div", { class: "bar" }, search, runs.length > 1 ? el("label", { for: "differences" }, only, " differences only") : null),
    scrolling("Configuration", table));
  return section("configuration", "Configuration", options);
}

/** A dotted name that may go on in a new line behind a dot. */
const broken = (name) => name.split(/(?<=\.)/).flatMap((part) => [part, el("wbr")]);

/** With #selftest in the address: does what a person would, and says what came of it, for the tests. */
async function selftest() {
  const done = {};
  const wait = (ms) => new Promise((then) => { setTimeout(then, ms); });
  const until = async (holds) => { for (let i = 0; i < 60 && !holds(); i++) await wait(100); };
  const pixels = (canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const differ = (a, b) => a.some((value, i) => value !== b[i]);
  const canvas = document.querySelector("canvas.cloud");
  if (canvas) {
    canvas.scrollIntoView({ behavior: "instant" });
    await until(() => pixels(canvas).some((value) => value !== 0));
    const before = pixels(canvas);
    done.cloudDrawn = before.some((value) => value !== 0);
    canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    await until(() => differ(before, pixels(canvas)));
    done.cloudTurned = differ(before, pixels(canvas));
  }
  const clip = [...clips][0];
  if (clip) {
    clip.canvas.scrollIntoView({ behavior: "instant" });
    clip.play(false);
    await until(() => clip.sheet?.complete);
    const before = pixels(clip.canvas);
    clip.button.click();
    await until(() => clip.frame !== 0);
    clip.button.click();
    const at = clip.frame;
    done.clipPlayed = clip.frame !== 0 || differ(before, pixels(clip.canvas));
    await wait(300);
    done.clipPaused = clip.frame === at && !clip.playing;
  }
  const figures = [...document.querySelectorAll(".samples .sample:not(.given)")];
  const chip = document.querySelector(".chips .chip");
  if (chip) {
    const seen = () => figures.filter((figure) => !figure.hidden).length;
    const before = seen();
    chip.click();
    const shown = seen();
    chip.click();
    done.filtered = shown > 0 && shown < before && seen() === before;
  }
  const larger = document.querySelector(".samples .larger, .samples button.picture");
  if (larger) {
    larger.click();
    await wait(100);
    done.enlarged = stage.dialog.open && stage.dialog.querySelector("canvas, img") !== null;
    stage.dialog.close();
  }
  document.querySelector(".chart")?.scrollIntoView({ behavior: "instant" });
  await until(() => document.querySelector(".chart .uplot") !== null || !document.querySelector(".chart"));
  done.charts = document.querySelectorAll(".chart .uplot").length;
  done.samples = figures.length;
  done.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  done.errors = errors;
  document.documentElement.dataset.selftest = JSON.stringify(done);
}

const errors = [];
addEventListener("error", (event) => errors.push(String(event.message)));
addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
document.addEventListener("securitypolicyviolation", (event) => errors.push(`policy: ${event.violatedDirective}`));

(() => {
  const { runs } = plain(JSON.parse(document.getElementById("data").textContent));
  const sections = [overviewSection, samplesSection, metricsSection, curvesSection, expertsSection, configSection]
    .map((make) => make(runs)).filter(Boolean);
  const menu = el("nav", { "aria-label": "Parts of the page" }, sections.map((one) =>
    el("a", { href: `#${one.id}` }, one.querySelector("h2").textContent)));
  document.getElementById("page").append(
    el("a", { class: "skip", href: "#overview" }, "Skip to the content"),
    el("header", {}, el("h1", {}, "ditmoe", el("span", {}, " report")), menu),
    el("main", {}, sections));
  if (TRYING) setTimeout(selftest, 200);
})();
