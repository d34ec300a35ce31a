// Discs into a pixel buffer. On purpose not WebGL: 100,000 points take a few milliseconds this way too, and it
// works, and is tested, on every machine, also where a browser has no graphics card to use.

/** A disc of some radius in pixels: how far it covers each pixel around its middle, 0 to 256. */
export function disc(radius) {
  const reach = Math.ceil(radius), side = 2 * reach + 1, cover = new Uint16Array(side * side);
  for (let y = -reach; y <= reach; y++) {
    for (let x = -reach; x <= reach; x++) {
      cover[(y + reach) * side + x + reach] = 256 * Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(x, y)));
    }
  }
  return { reach, side, cover };
}

/** Draw points at (x, y) * scale + shift, in `order`, each in the colour [r, g, b] of its category; hidden ones not. */
export function drawPoints(pixels, width, height, points, view, paint, stamp) {
  const { x, y, order } = points, { category, colours, hidden, strength } = paint;
  const { reach, side, cover } = stamp, { scale, left, top } = view;
  let drawn = 0;
  for (let n = 0; n < order.length; n++) {
    const i = order[n], c = category[i];
    if (hidden[c]) continue;
    const px = Math.round(x[i] * scale + left), py = Math.round(y[i] * scale + top);
    if (px < -reach || py < -reach || px >= width + reach || py >= height + reach) continue;
    drawn++;
    const colour = colours[c], r = colour[0], g = colour[1], b = colour[2];
    const x0 = Math.max(0, px - reach), x1 = Math.min(width - 1, px + reach);
    const y0 = Math.max(0, py - reach), y1 = Math.min(height - 1, py + reach);
    for (let v = y0; v <= y1; v++) {
      let at = v * width + x0, from = (v - py + reach) * side + x0 - px + reach;
      for (let u = x0; u <= x1; u++, at++, from++) {
        const a = (cover[from] * strength) >> 8;
        if (a === 0) continue;
        const below = pixels[at], br = below & 255, bg = (below >> 8) & 255, bb = (below >> 16) & 255;
        pixels[at] = 0xff000000 | (br + (((r - br) * a) >> 8)) | ((bg + (((g - bg) * a) >> 8)) << 8) | ((bb + (((b - bb) * a) >> 8)) << 16);
      }
    }
  }
  return drawn;
}

/** Every index once, in an order that looks random and is always the same, so that no category lies on top. */
export function mixed(count) {
  const order = new Uint32Array(count);
  let step = Math.max(1, Math.floor(count * 0.6180339887));
  while (gcd(step, count) !== 1) step++;
  for (let n = 0, i = 0; n < count; n++, i = (i + step) % count) order[n] = i;
  return order;
}

function gcd(a, b) {
  while (b) [a, b] = [b, a % b];
  return a;
}

/** Points by the cell of a square grid over [-1, 1], to find those near a place without looking at all. */
export class Grid {
  constructor(x, y, cells = 256) {
    this.x = x; this.y = y; this.cells = cells;
    const count = x.length, cell = new Uint32Array(count);
    this.start = new Uint32Array(cells * cells + 1);
    for (let i = 0; i < count; i++) this.start[(cell[i] = this.cell(x[i]) + cells * this.cell(y[i])) + 1]++;
    for (let c = 0; c < cells * cells; c++) this.start[c + 1] += this.start[c];
    const next = this.start.slice(0, -1);
    this.members = new Uint32Array(count);
    for (let i = 0; i < count; i++) this.members[next[cell[i]]++] = i;
  }

  cell(value) {
    return Math.min(this.cells - 1, Math.max(0, Math.floor((value + 1) / 2 * this.cells)));
  }

  /** Calls `each(point)` for all points that may lie in a box. */
  within(x0, y0, x1, y1, each) {
    for (let row = this.cell(y0); row <= this.cell(y1); row++) {
      const from = this.start[row * this.cells + this.cell(x0)], to = this.start[row * this.cells + this.cell(x1) + 1];
      for (let n = from; n < to; n++) {
        const i = this.members[n];
        if (this.x[i] >= x0 && this.x[i] <= x1 && this.y[i] >= y0 && this.y[i] <= y1) each(i);
      }
    }
  }
}
