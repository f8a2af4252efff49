/* Samples of all runs, by their sets; one filter for all. */
const FIRST_SHOWN = 28;  // of a set, until all are asked for

function samplesSection(runs) {
  const sets = runs.flatMap((run, number) => run.sets.map((set) => ({ run, number, set })));
  if (!sets.length) return null;
  const classes = [...new Set(sets.flatMap(({ set }) => set.items.map((item) => item.class)))].sort(byName);
  const color = (name) => CLASS_COLORS[classes.indexOf(name) % CLASS_COLORS.length];
  const cards = [];
  const status = el("p", { class: "muted", role: "status" });
  const search = el("input", {
    type: "search", placeholder: "Class, prompt or name", "aria-label": "Show samples whose class, prompt or name has",
    oninput: () => filter(),
  });
  const chosen = new Set();
  const chips = classes.length > 1 && classes.length <= 40 ? classes.map((name) => {
    const swatch = el("span", { class: "swatch" });
    swatch.style.background = `rgb(${color(name).join(",")})`;
    return el("button", {
      type: "button", class: "chip", "aria-pressed": "false", data: { class: name },
      onclick: (event) => {
        const on = !chosen.delete(name);
        if (on) chosen.add(name);
        event.currentTarget.setAttribute("aria-pressed", String(on));
        filter();
      },
    }, swatch, name);
  }) : [];

  function filter() {
    const words = search.value.trim().toLowerCase();
    let shown = 0;
    for (const card of cards) {
      const fits = (!chosen.size || chosen.has(card.item.class)) && card.words.includes(words);
      card.node.hidden = !fits || (card.folded && !words && !chosen.size);
      shown += fits;
    }
    status.textContent = words || chosen.size ? `${shown} of ${cards.length} samples` : plural(cards.length, "sample");
  }

  const blocks = sets.map(({ run, number, set }) => {
    const own = set.items.map((item) => {
      const label = item.prompt ? `${item.name}: ${item.prompt}` : item.name;
      const card = { item, label, color: color(item.class), words: `${item.class}\n${item.name}\n${item.prompt ?? ""}`.toLowerCase() };
      card.node = el("figure", { class: "sample", data: { kind: item.kind } }, ...thumbnail(card, () => own),
        el("figcaption", { title: label }, item.prompt ?? item.name));
      return card;
    });
    cards.push(...own);
    const folded = own.length > FIRST_SHOWN + 6 ? own.slice(FIRST_SHOWN) : [];
    folded.forEach((card) => { card.folded = true; });
    const all = folded.length ? el("button", {
      type: "button", class: "chip all", onclick: () => {
        folded.forEach((card) => { card.folded = false; });
        all.hidden = true;
        filter();
        folded[0].node.querySelector("canvas, button")?.focus();
      },
    }, `Show all ${own.length}`) : null;
    return el("div", { class: "set" },
      el("h3", {}, runs.length > 1 ? runMark(run, number) : null, set.folder,
        el("span", { class: "muted" }, ` ${set.items.length} of ${set.total}`)),
      ...remarks(set).map((text) => el("p", { class: "muted" }, text)),
      el("div", { class: "samples" }, set.given ? givenCard(set.given, set.items[0]) : null, own.map((card) => card.node)), all,
      set.files ? el("ul", { class: "files" }, set.files.map((name) => el("li", {}, name))) : null);
  });
  filter();
  const kinds = new Set(cards.map((card) => card.item.kind));
  const playing = el("button", {
    type: "button", class: "chip", "aria-pressed": String(!still.matches),
    onclick: (event) => {
      const on = event.currentTarget.getAttribute("aria-pressed") !== "true";
      event.currentTarget.setAttribute("aria-pressed", String(on));
      clips.forEach((clip) => clip.play(on));
    },
  }, "Play clips");
  return section("samples", "Samples",
    cards.length ? el("div", { class: "bar" }, search, kinds.has("clip") ? playing : null, status) : null,
    chips.length ? el("div", { class: "chips", role: "group", "aria-label": "Classes" }, chips) : null,
    kinds.has("cloud") ? el("p", { class: "muted hint" }, "Drag a cloud, or use the arrow keys on it; Home turns it back.") : null,
    ...blocks, ...runs.map((run, number) => progressBlock(run, number, runs.length)));
}

const byName = (a, b) => a.localeCompare(b, "en", { numeric: true });

function remarks(set) {
  const left = set.total - set.items.length - set.unreadable;
  const said = [];
  if (set.unknown && set.total) said.push("These samples cannot be shown, since their modality is not known: their files are listed.");
  else if (left > 0) said.push(`${plural(left, "more sample")} lie in the folder (samples= shows more).`);
  if (set.unreadable) said.push(`${plural(set.unreadable, "sample")} could not be read.`);
  if (set.links) said.push(`${plural(set.links, "link")} in the folder ${set.links === 1 ? "was" : "were"} not followed.`);
  if (set.items.some((item) => item.held)) said.push("Yellow points were given, all others are the model's.");
  return said;
}

function thumbnail(card, neighbours) {
  const { item, label, color } = card;
  const open = (one) => stage.show(one.item, one.label, one.color, (by) => {
    const all = neighbours().filter((other) => !other.node.hidden);
    const next = all[(all.indexOf(one) + by + all.length) % all.length];
    return next ? () => open(next) : null;
  });
  const larger = el("button", { type: "button", class: "icon larger", "aria-label": `Enlarge ${label}`, onclick: () => open(card) }, "⤢");
  if (item.kind === "cloud") return [cloudView(item, color, label, 190), larger];
  if (item.kind === "clip") {
    const clip = new Clip(item, label);
    card.clip = clip;
    return [clip.canvas, clip.button, larger];
  }
  return [el("button", { type: "button", class: "picture", "aria-label": `Enlarge ${label}`, onclick: () => open(card) }, picture(item, label))];
}

/** What was given, first among what was made of it, and seen as that is; no filter hides it. */
function givenCard(item, made) {
  if (item.kind === "cloud" && made?.kind === "cloud") item.beside = made;
  const card = { item, label: "What was given", color: GIVEN_COLOR, node: { hidden: false } };
  return el("figure", { class: "sample given", data: { kind: item.kind } }, ...thumbnail(card, () => [card]),
    el("figcaption", {}, "what was given"));
}

function progressBlock(run, number, count) {
  if (!run.progress.length) return null;
  return el("details", { class: "set" },
    el("summary", {}, count > 1 ? runMark(run, number) : null, "As training went on"),
    el("p", { class: "muted" }, "Samples of the same noise after so many steps."),
    el("div", { class: "charts wide" }, run.progress.map((sheet) => el("figure", {},
      enlargeable(sheet, `step ${sheet.step}`), el("figcaption", {}, `step ${sheet.step.toLocaleString("en")}`)))));
}

function runMark(run, number) {
  const mark = el("span", { class: "mark" }, run.name);
  mark.style.setProperty("--run", RUN_COLORS[number % RUN_COLORS.length]);
  return mark;
}
