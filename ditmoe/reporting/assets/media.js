/* Clips, played frame by frame on a canvas from one picture of all frames; pictures; and the window that enlarges. */
const clips = new Set();
const still = matchMedia("(prefers-reduced-motion: reduce)");
let ticking = false;

function tick(now) {
  const playing = [...clips].filter((clip) => clip.playing && clip.seen && clip.canvas.isConnected);
  playing.forEach((clip) => clip.advance(now));
  ticking = playing.length > 0;
  if (ticking) nextFrame(tick);
}

const seenClips = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    const clip = [...clips].find((one) => one.canvas === target);
    if (!clip) continue;
    clip.seen = isIntersecting;
    if (isIntersecting) clip.load();
  }
  wake();
}, { rootMargin: "100px" });

function wake() {
  if (!ticking) { ticking = true; nextFrame(tick); }
}

class Clip {
  constructor(item, label) {
    this.item = item;
    this.frame = 0;
    this.since = null;
    this.seen = TRYING;
    this.playing = !still.matches;
    this.canvas = el("canvas", {
      class: "frames", width: item.width, height: item.height, role: "img",
      "aria-label": `${label}, a clip of ${plural(item.frames, "frame")}`,
    });
    this.canvas.classList.toggle("pixels", item.width < 160);
    this.button = el("button", { type: "button", class: "play", onclick: () => this.play(!this.playing) });
    this.slider = el("input", {
      type: "range", min: 0, max: item.frames - 1, value: 0, "aria-label": "Frame",
      oninput: () => { this.play(false); this.show(Number(this.slider.value)); },
    });
    this.play(this.playing);
    clips.add(this);
    if (TRYING) this.load();
    else seenClips.observe(this.canvas);
  }

  load() {
    if (this.sheet) return;
    this.sheet = new Image();
    this.sheet.onload = () => this.show(this.frame);
    this.sheet.src = this.item.src;
  }

  play(on) {
    this.playing = on;
    this.since = null;
    this.button.textContent = on ? "❚❚" : "▶";
    this.button.setAttribute("aria-label", on ? "Pause" : "Play");
    wake();
  }

  advance(now) {
    this.since ??= now - (1000 * this.frame) / this.item.rate;
    const frame = Math.floor(((now - this.since) / 1000) * this.item.rate) % this.item.frames;
    if (frame !== this.frame) this.show(frame);
  }

  show(frame) {
    const { width, height, columns } = this.item;
    this.frame = frame;
    this.slider.value = frame;
    if (!this.sheet?.complete) return;
    const at = [(frame % columns) * width, Math.floor(frame / columns) * height];
    this.canvas.getContext("2d").drawImage(this.sheet, ...at, width, height, 0, 0, width, height);
  }

  end() {
    clips.delete(this);
    seenClips.unobserve(this.canvas);
  }
}

function picture(item, label) {
  const image = el("img", { src: item.src, width: item.width, height: item.height, alt: label, loading: "lazy" });
  image.classList.toggle("pixels", item.width < 160);
  return image;
}

/** The window in which one sample or chart is seen large; `around` gives its neighbours, or none. */
const stage = (() => {
  let clip = null, near = () => null, back = null;
  const body = el("div", { class: "stage-body" });
  const title = el("p", { class: "stage-title", id: "stage-title" });
  const step = (by, label, text) => el("button", {
    type: "button", class: "icon", "aria-label": label,
    onclick: () => { const next = near(by); if (next) next(); },
  }, text);
  const steps = [step(-1, "The one before", "‹"), step(1, "The next", "›")];
  const close = el("button", { type: "button", class: "icon", "aria-label": "Close", onclick: () => dialog.close() }, "✕");
  const dialog = el("dialog", { class: "stage", "aria-labelledby": "stage-title" },
    el("div", { class: "stage-head" }, title, ...steps, close), body);
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => { clip?.end(); clip = null; body.replaceChildren(); back?.focus(); });
  document.body.append(dialog);

  function show(item, label, color, around = null) {
    clip?.end();
    clip = null;
    near = around ?? (() => null);
    steps.forEach((button) => { button.hidden = around === null; });
    title.textContent = label;
    if (item.kind === "cloud") {
      body.replaceChildren(cloudView(item, color, label, Math.min(560, innerWidth - 40)));
    } else if (item.kind === "clip") {
      clip = new Clip(item, label);
      body.replaceChildren(clip.canvas, el("div", { class: "row" }, clip.button, clip.slider));
    } else {
      body.replaceChildren(picture(item, label));
    }
    if (!dialog.open) { back = document.activeElement; dialog.showModal(); }
    (body.querySelector("canvas.cloud, .play") ?? close).focus();
  }
  return { show, dialog };
})();

/** A picture that is a button which enlarges it. */
function enlargeable(item, label, around = null) {
  return el("button", {
    type: "button", class: "picture", "aria-label": `Enlarge ${label}`, onclick: () => stage.show(item, label, null, around),
  }, picture(item, label));
}
