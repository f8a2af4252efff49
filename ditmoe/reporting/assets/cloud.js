/* Clouds: each point a small sphere in a depth buffer, lit from above, and darker where something nearer stands beside
   it (eye-dome lighting, Boucheny 2009), which shows form without normals. Only the cloud that is turned is drawn. */
const GIVEN_COLOR = [244, 180, 40];
const EYE = 3.4, FOCAL = 1.5, START = { yaw: -0.62, pitch: 0.36 };

/** Places of a cloud's points in the units of its data. */
function placesOf(item) {
  return Float64Array.from(new Uint16Array(bytes(item.points).buffer), (value, i) => item.low[i % 3] + value * item.step);
}

/** The middle of a cloud's box, and how far its points reach from there: what is seen of it. */
function frameOf(places) {
  const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
  places.forEach((value, i) => { low[i % 3] = Math.min(low[i % 3], value); high[i % 3] = Math.max(high[i % 3], value); });
  const middle = low.map((value, axis) => (value + high[axis]) / 2);
  let reach = 0;
  for (let i = 0; i < places.length; i += 3) {
    reach = Math.max(reach, Math.hypot(places[i] - middle[0], places[i + 1] - middle[1], places[i + 2] - middle[2]));
  }
  return { middle, reach: reach || 1 };
}

class Cloud {
  constructor(item, color) {
    const own = placesOf(item), count = own.length / 3;
    const { middle, reach } = frameOf(item.beside ? placesOf(item.beside) : own);
    this.places = Float32Array.from(own, (value, i) => (value - middle[i % 3]) / reach);
    this.radius = Math.min(0.06, Math.max(0.012, 1.5 / Math.sqrt(count)));
    this.colors = item.colors ? bytes(item.colors) : new Uint8Array(3 * count);
    if (!item.colors) {
      for (let i = 0; i < count; i++) {
        const light = 0.86 + 0.2 * this.places[3 * i + 1];  // a little lighter above
        const own = i < item.held ? GIVEN_COLOR : color;
        for (let c = 0; c < 3; c++) this.colors[3 * i + c] = Math.min(255, own[c] * light);
      }
    }
  }

  draw(canvas, { yaw, pitch }) {
    const width = canvas.width, height = canvas.height, total = width * height;
    const depth = new Float32Array(total).fill(Infinity), light = new Float32Array(total);
    const owner = new Uint32Array(total);
    const [sy, cy, sp, cp] = [Math.sin(yaw), Math.cos(yaw), Math.sin(pitch), Math.cos(pitch)];
    const scale = (FOCAL * Math.min(width, height)) / 2;
    for (let i = 0; i < this.places.length / 3; i++) {
      const x = this.places[3 * i], y = this.places[3 * i + 1], z = this.places[3 * i + 2];
      const right = cy * x + sy * z, back = cy * z - sy * x;
      const up = cp * y - sp * back, near = EYE - (sp * y + cp * back);
      const px = width / 2 + (scale * right * 2) / near, py = height / 2 - (scale * up * 2) / near;
      const r = Math.max(1, (scale * this.radius * 2) / near);
      const left = Math.max(0, Math.ceil(px - r)), end = Math.min(width - 1, Math.floor(px + r));
      for (let v = Math.max(0, Math.ceil(py - r)); v <= Math.min(height - 1, Math.floor(py + r)); v++) {
        const ny = (py - v) / r;
        for (let u = left; u <= end; u++) {
          const nx = (u - px) / r, rest = 1 - nx * nx - ny * ny;
          if (rest <= 0) continue;
          const nz = Math.sqrt(rest), here = near - this.radius * nz, at = v * width + u;
          if (here >= depth[at]) continue;
          depth[at] = here;
          owner[at] = i;
          light[at] = 0.66 + 0.4 * Math.max(0, 0.55 * ny - 0.35 * nx + 0.75 * nz);
        }
      }
    }
    const context = canvas.getContext("2d"), image = context.createImageData(width, height);
    const step = Math.max(2, Math.round(width / 150)), beside = [step, -step, step * width, -step * width];
    for (let at = 0; at < total; at++) {
      if (depth[at] === Infinity) continue;
      let hidden = 0;
      for (const offset of beside) hidden += Math.max(0, depth[at] - (depth[at + offset] ?? Infinity));
      const shade = light[at] * Math.exp(-1.15 * Math.min(0.9, hidden)), own = 3 * owner[at];
      for (let c = 0; c < 3; c++) image.data[4 * at + c] = this.colors[own + c] * shade;
      image.data[4 * at + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }
}

/** A canvas on which a cloud turns under the pointer, a finger and the arrow keys. */
function cloudView(item, color, label, side) {
  const canvas = el("canvas", {
    class: "cloud", tabindex: 0, role: "img", width: 2 * side, height: 2 * side,
    "aria-label": `${label}, a cloud of ${item.of} points: arrow keys turn it`,
  });
  const angle = { ...START };
  let cloud = null, waiting = false;
  const draw = () => { waiting = false; (cloud ??= new Cloud(item, color)).draw(canvas, angle); };
  const turn = (yaw, pitch) => {
    angle.yaw += yaw;
    angle.pitch = Math.min(1.57, Math.max(-1.57, angle.pitch + pitch));
    if (!waiting) nextFrame(draw);
    waiting = true;
  };
  const keys = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, 0.15], ArrowDown: [0, -0.15] };
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Home") { Object.assign(angle, START); turn(0, 0); }
    else if (keys[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) turn(...keys[event.key]);
    else return;
    event.preventDefault();
  });
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button === 0) canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (canvas.hasPointerCapture(event.pointerId)) {
      turn((event.movementX * 3) / canvas.clientWidth, (event.movementY * 3) / canvas.clientWidth);
    }
  });
  whenSeen(canvas, draw);
  return canvas;
}
