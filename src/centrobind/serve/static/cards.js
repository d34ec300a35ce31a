// What was found, as a person sees and hears it.

/** An element with a class, a text or children. */
export function make(tag, name = "", ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children);
  return element;
}

const player = new Audio();
let playing = null;
for (const end of ["ended", "pause", "error"]) {
  player.addEventListener(end, () => { playing?.setAttribute("aria-pressed", "false"); playing = null; });
}

/** A button that plays a sound, one at a time. */
export function playButton(address, caption) {
  const button = make("button", "play", "");
  button.type = "button";
  button.setAttribute("aria-label", `Play ${caption}`);
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", async (event) => {
    event.stopPropagation();
    const stop = playing === button;
    player.pause();
    if (stop) return;
    await Promise.resolve(); // the pause of the one before is heard first
    player.src = address;
    playing = button;
    button.setAttribute("aria-pressed", "true");
    player.play().catch(() => player.dispatchEvent(new Event("error")));
  });
  return button;
}

export class Cards {
  constructor(about) {
    this.version = about.fingerprint;
    this.shows = Object.fromEntries(about.modalities.map((one) => [one.name, one.shows]));
    this.picture = about.modalities.find((one) => one.shows === "image")?.name;
    this.pixelated = about.modalities.filter((one) => one.shows === "image" && Math.max(...one.shape) <= 96).map((one) => one.name);
    this.sketches = new Map();
  }

  address(modality, id, sketch = false) {
    const path = id.split("/").map(encodeURIComponent).join("/");
    return `/api/value/${encodeURIComponent(modality)}/${path}?v=${this.version}${sketch ? "&as=sketch" : ""}`;
  }

  /** The thing itself: a picture, a sound's spectrum, a drawn series or words. */
  thing(modality, id, caption) {
    const shows = this.shows[modality];
    if (shows === "image" || shows === "sound") {
      const image = make("img", shows + (this.pixelated.includes(modality) ? " pixelated" : ""));
      image.alt = shows === "image" ? `${modality} of ${caption ?? id}` : `spectrum of ${caption ?? id}`;
      image.loading = "lazy"; image.decoding = "async";
      image.src = this.address(modality, id, shows === "sound");
      return image;
    }
    if (shows === "text") return make("span", "words", caption ?? id);
    const holder = make("span", "sketch");
    this.sketch(modality, id).then((drawing) => holder.append(drawing.cloneNode(true)), () => holder.append("?"));
    return holder;
  }

  async sketch(modality, id) {
    const address = this.address(modality, id);
    if (!this.sketches.has(address)) {
      if (this.sketches.size > 500) this.sketches.clear();
      this.sketches.set(address, fetch(address).then((answer) => answer.json()).then((found) => drawing(found, `${modality} of ${id}`)));
    }
    return this.sketches.get(address);
  }

  /** A result; `act(also)` searches for it, alone or as well. */
  card(modality, hit, { same, act }) {
    const shows = this.shows[modality] ?? "together", caption = hit.caption ?? hit.id;
    const pick = make("button", "pick");
    pick.type = "button";
    pick.title = `${hit.id}${hit.label ? " · " + hit.label : ""} · cosine ${hit.score.toFixed(3)}`;
    const beside = this.picture && modality !== this.picture;
    if (shows !== "text" && shows !== "together") pick.append(this.thing(modality, hit.id, caption));
    else if (beside) pick.append(this.thing(this.picture, hit.id, caption));
    pick.append(make("span", "caption", (same ? "✓ " : "") + caption));
    pick.addEventListener("click", (event) => act(event.shiftKey));
    const item = make("li", `card ${shows}${same ? " same" : ""}`, pick);
    if (shows === "sound") item.append(playButton(this.address(modality, hit.id), caption));
    const score = make("span", "score", hit.score.toFixed(2));
    score.setAttribute("aria-label", `cosine ${hit.score.toFixed(2)}`);
    score.title = `cosine ${hit.score.toFixed(4)}: 1 = the same direction, 0 = unrelated`;
    if (hit.split === "train") {
      const seen = make("span", "seen", "train");
      seen.title = "The binder was trained on this sample: finding it proves less than finding one it never saw.";
      item.append(seen);
    }
    const plus = make("button", "plus", "+");
    plus.type = "button";
    plus.setAttribute("aria-label", `Add ${caption} to the query`);
    plus.title = "Add to the query";
    plus.addEventListener("click", () => act(true));
    item.append(score, plus);
    return item;
  }
}

const SVG = "http://www.w3.org/2000/svg";

/** A series as lines over time, or as a path on paper where it is x, y and pen (0 or 1); a vector as bars. */
function drawing({ shape, values }, label) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 100");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  const line = (points, name) => {
    const element = document.createElementNS(SVG, "polyline");
    element.setAttribute("points", points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" "));
    element.setAttribute("class", name);
    svg.append(element);
  };
  const rows = values.map((row) => (Array.isArray(row) ? row.flat(Infinity) : [row]));
  const range = (numbers) => numbers.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
  if (shape.length === 2 && shape[1] === 3 && rows.every((row) => row[2] === 0 || row[2] === 1)) {
    const [x0, x1] = range(rows.map((row) => row[0])), [y0, y1] = range(rows.map((row) => row[1]));
    const size = Math.max(x1 - x0, y1 - y0) || 1, scale = 88 / size;
    const spot = (row) => [50 + (row[0] - (x0 + x1) / 2) * scale, 50 - (row[1] - (y0 + y1) / 2) * scale];
    let stroke = [];
    for (const row of rows) {
      if (row[2] === 1 && stroke.length) { line([...stroke, stroke[0]], "c0"); stroke = []; }
      stroke.push(spot(row));
    }
    if (stroke.length) line([...stroke, stroke[0]], "c0");
  } else {
    const [low, high] = range(rows.flat()), span = high - low || 1;
    const channels = shape.length === 1 ? 1 : Math.min(rows[0].length, 8), every = Math.max(1, Math.floor(rows.length / 400));
    for (let c = 0; c < channels; c++) {
      line(rows.filter((_, t) => t % every === 0).map((row, t, all) => [2 + 96 * t / Math.max(all.length - 1, 1), 95 - 90 * (row[c] - low) / span]), `c${c}`);
    }
  }
  return svg;
}
