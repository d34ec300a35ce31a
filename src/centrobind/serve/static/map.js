// The map: points to move over, zoom into, point at and walk along. It knows points and colours, nothing of searching.

import { Grid, disc, drawPoints, mixed } from "./raster.js";

const CLOSEST = 400, FEW = 140, NEAR = 14;
const still = matchMedia("(prefers-reduced-motion: reduce)");

export class SpaceMap extends EventTarget {
  /** `thing(point)` makes an element that shows what a point is, for when few are in view. */
  constructor(dots, marks, things, thing) {
    super();
    Object.assign(this, { dots, marks, things, thing });
    this.view = { x: 0, y: 0, zoom: 1 };
    this.found = []; this.asked = []; this.cursor = -1; this.over = -1;
    this.shown = new Map(); this.pointers = new Map();
    this.buffer = null; this.pending = false; this.moving = 0;
    new ResizeObserver(() => this.resize()).observe(dots);
    this.listen();
  }

  setPoints(x, y) {
    this.x = x; this.y = y; this.order = mixed(x.length); this.grid = new Grid(x, y);
    this.resize();
  }

  /** Category of each point, colours [r, g, b] and whether hidden of each category. */
  setPaint(category, colours, hidden) {
    this.paint = { category, colours, hidden };
    this.redraw();
  }

  setMarks(asked, found) {
    this.asked = asked; this.found = found;
    this.redraw();
  }

  resize() {
    const box = this.dots.getBoundingClientRect();
    this.width = box.width; this.height = box.height;
    this.unit = Math.min(box.width, box.height) * 0.47;
    this.redraw();
  }

  // From the map to the screen, in CSS pixels.
  place(i) {
    const scale = this.unit * this.view.zoom;
    return [(this.x[i] - this.view.x) * scale + this.width / 2, (this.y[i] - this.view.y) * scale + this.height / 2];
  }

  redraw() {
    if (this.pending || !this.paint || !this.width) return;
    this.pending = true;
    requestAnimationFrame(() => { this.pending = false; this.draw(); });
  }

  draw() {
    const began = performance.now();
    // While it moves, one pixel is one pixel; the finer ones of a good screen come when it rests.
    const fine = performance.now() > this.moving ? Math.min(devicePixelRatio, 2) : 1;
    if (fine === 1 && devicePixelRatio > 1) { clearTimeout(this.rest); this.rest = setTimeout(() => this.redraw(), 160); }
    const width = Math.round(this.width * fine), height = Math.round(this.height * fine);
    if (!this.buffer || this.buffer.width !== width || this.buffer.height !== height) {
      this.dots.width = width; this.dots.height = height;
      this.buffer = new ImageData(width, height);
      this.pixels = new Uint32Array(this.buffer.data.buffer);
    }
    const [r, g, b] = this.ground();
    this.pixels.fill(0xff000000 | (b << 16) | (g << 8) | r);
    const scale = this.unit * this.view.zoom * fine;
    const view = { scale, left: width / 2 - this.view.x * scale, top: height / 2 - this.view.y * scale };
    const crowd = this.x.length / (this.view.zoom * this.view.zoom);
    const radius = Math.min(5.5, Math.max(1.1, 0.3 * Math.sqrt(this.width * this.height / Math.max(crowd, 1)))) * fine;
    const quiet = this.asked.length || this.found.length;
    const paint = { ...this.paint, strength: quiet ? 120 : 205 };
    const drawn = drawPoints(this.pixels, width, height, this, view, paint, disc(radius));
    this.dots.getContext("2d", { alpha: false }).putImageData(this.buffer, 0, 0);
    this.drawThings(drawn);
    this.drawMarks(radius / fine);
    this.dots.dataset.milliseconds = (performance.now() - began).toFixed(1);
    this.dots.dataset.drawn = drawn;
  }

  ground() {
    const probe = getComputedStyle(this.dots).backgroundColor.match(/[\d.]+/g);
    return probe.slice(0, 3).map(Number);
  }

  /** Close up, the pictures and words themselves instead of dots, as many as fit without covering each other. */
  drawThings(drawn) {
    const wanted = new Map();
    if (drawn <= FEW && performance.now() > this.moving) {
      const taken = [], reach = this.unit * this.view.zoom;
      const dx = this.width / 2 / reach, dy = this.height / 2 / reach, inside = [];
      this.grid.within(this.view.x - dx, this.view.y - dy, this.view.x + dx, this.view.y + dy, (i) => inside.push(i));
      for (const i of inside) {
        if (this.paint.hidden[this.paint.category[i]]) continue;
        const element = this.shown.get(i) ?? this.thing(i);
        if (!element) continue;
        const [x, y] = this.place(i), w = Number(element.dataset.width), h = Number(element.dataset.height);
        const box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2];
        if (taken.some((t) => box[0] < t[2] && box[2] > t[0] && box[1] < t[3] && box[3] > t[1])) continue;
        taken.push(box);
        element.style.transform = `translate(${box[0]}px, ${box[1]}px)`;
        wanted.set(i, element);
      }
    } else if (drawn <= FEW) {
      clearTimeout(this.rest); this.rest = setTimeout(() => this.redraw(), 160);
    }
    this.things.replaceChildren(...wanted.values());
    this.shown = wanted;
  }

  drawMarks(radius) {
    const fine = Math.min(devicePixelRatio, 2), { marks } = this;
    marks.width = this.width * fine; marks.height = this.height * fine;
    const pen = marks.getContext("2d"), style = getComputedStyle(marks);
    pen.scale(fine, fine);
    const ring = (i, size, colour, thick) => {
      const [x, y] = this.place(i);
      pen.strokeStyle = colour; pen.lineWidth = thick;
      pen.beginPath(); pen.arc(x, y, size, 0, 7); pen.stroke();
      return [x, y];
    };
    const halo = style.backgroundColor, ink = style.color, strong = style.getPropertyValue("--strong");
    for (const { point, first } of this.found) {
      ring(point, radius + (first ? 6 : 4), halo, 4);
      ring(point, radius + (first ? 6 : 4), ink, first ? 2.4 : 1.4);
    }
    for (const point of this.asked) {
      ring(point, radius + 8, halo, 6);
      ring(point, radius + 8, strong, 3);
    }
    for (const point of new Set([this.over, this.cursor])) {
      if (point >= 0) { ring(point, radius + 3, halo, 4); ring(point, radius + 3, ink, 2); }
    }
  }

  /** Move the view to a place, at once or in a third of a second. */
  go(view, smooth = true) {
    const from = { ...this.view };
    const to = {
      x: Math.min(1.1, Math.max(-1.1, view.x ?? from.x)), y: Math.min(1.1, Math.max(-1.1, view.y ?? from.y)),
      zoom: Math.min(CLOSEST, Math.max(0.8, view.zoom ?? from.zoom)),
    };
    cancelAnimationFrame(this.flight);
    const arrive = () => { this.view = to; this.redraw(); this.dispatchEvent(new Event("moved")); };
    if (!smooth || still.matches) { arrive(); return; }
    const began = performance.now();
    const fly = (now) => {
      const t = Math.min(1, (now - began) / 350), s = t * t * (3 - 2 * t);
      if (t === 1) { this.moving = 0; arrive(); return; }
      const mix = (a, b) => a + (b - a) * s;
      this.view = { x: mix(from.x, to.x), y: mix(from.y, to.y), zoom: from.zoom * (to.zoom / from.zoom) ** s };
      this.moving = now + 120;
      this.redraw();
      this.flight = requestAnimationFrame(fly);
    };
    this.flight = requestAnimationFrame(fly);
  }

  /** So that some points fill most of the view. */
  frame(points) {
    if (!points.length) { this.go({ x: 0, y: 0, zoom: 1 }); return; }
    const xs = points.map((i) => this.x[i]), ys = points.map((i) => this.y[i]);
    const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const wide = Math.max((x1 - x0) / this.width, (y1 - y0) / this.height, 0.06 / this.width);
    this.go({ x: (x0 + x1) / 2, y: (y0 + y1) / 2, zoom: 0.7 / (wide * this.unit) });
  }

  /** The nearest visible point to a place on the screen, -1 if there is none within a finger's breadth. */
  pick(px, py) {
    const scale = this.unit * this.view.zoom, reach = NEAR / scale;
    const x = (px - this.width / 2) / scale + this.view.x, y = (py - this.height / 2) / scale + this.view.y;
    let best = -1, least = reach * reach;
    this.grid?.within(x - reach, y - reach, x + reach, y + reach, (i) => {
      const d = (this.x[i] - x) ** 2 + (this.y[i] - y) ** 2;
      if (d < least && !this.paint.hidden[this.paint.category[i]]) { best = i; least = d; }
    });
    return best;
  }

  /** The next point from the cursor in a direction: near, and not far to the side. */
  step(dx, dy) {
    if (this.cursor < 0) {
      this.walk(this.asked[0] ?? this.found[0]?.point ?? this.pickNearest(this.view.x, this.view.y));
      return;
    }
    let best = -1, least = Infinity;
    const x = this.x[this.cursor], y = this.y[this.cursor];
    for (let i = 0; i < this.x.length; i++) {
      const u = (this.x[i] - x) * dx + (this.y[i] - y) * dy;
      if (u <= 1e-9 || this.paint.hidden[this.paint.category[i]]) continue;
      const v = Math.abs((this.x[i] - x) * dy - (this.y[i] - y) * dx), cost = u + 3 * v;
      if (v <= 1.2 * u && cost < least) { best = i; least = cost; }
    }
    if (best >= 0) this.walk(best);
  }

  pickNearest(x, y) {
    let best = -1, least = Infinity;
    for (let i = 0; i < this.x.length; i++) {
      const d = (this.x[i] - x) ** 2 + (this.y[i] - y) ** 2;
      if (d < least && !this.paint.hidden[this.paint.category[i]]) { best = i; least = d; }
    }
    return best;
  }

  walk(point) {
    this.cursor = point;
    const [x, y] = this.place(point);
    if (x < 40 || y < 40 || x > this.width - 40 || y > this.height - 40) this.go({ x: this.x[point], y: this.y[point] });
    this.redraw();
    this.dispatchEvent(new CustomEvent("walked", { detail: { point } }));
  }

  zoomAt(px, py, factor, smooth = false) {
    const zoom = Math.min(CLOSEST, Math.max(0.8, this.view.zoom * factor)), scale = this.unit * this.view.zoom;
    const x = (px - this.width / 2) / scale + this.view.x, y = (py - this.height / 2) / scale + this.view.y;
    const keep = this.view.zoom / zoom;
    if (!smooth) this.moving = performance.now() + 140;
    this.go({ x: x + (this.view.x - x) * keep, y: y + (this.view.y - y) * keep, zoom }, smooth);
  }

  listen() {
    const { dots, pointers } = this;
    const at = (event) => { const box = dots.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    let travelled = 0, spread = 0;
    dots.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomAt(...at(event), Math.exp(-event.deltaY * (event.deltaMode ? 0.06 : 0.002)));
    }, { passive: false });
    dots.addEventListener("pointerdown", (event) => {
      dots.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, at(event)); travelled = 0; spread = 0;
    });
    dots.addEventListener("pointermove", (event) => {
      const here = at(event), before = pointers.get(event.pointerId);
      if (!before) { this.hover(this.pick(...here), here); return; }
      pointers.set(event.pointerId, here);
      if (pointers.size === 2) {
        const [a, b] = [...pointers.values()], apart = Math.hypot(a[0] - b[0], a[1] - b[1]);
        if (spread) this.zoomAt((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, apart / spread);
        spread = apart; travelled = 99;
        return;
      }
      const dx = here[0] - before[0], dy = here[1] - before[1], scale = this.unit * this.view.zoom;
      travelled += Math.abs(dx) + Math.abs(dy);
      if (travelled > 3) {
        this.moving = performance.now() + 140; this.hover(-1);
        this.go({ x: this.view.x - dx / scale, y: this.view.y - dy / scale }, false);
      }
    });
    const up = (event) => {
      if (!pointers.delete(event.pointerId) || event.type === "pointercancel" || travelled > 3) return;
      const point = this.pick(...at(event));
      if (point >= 0) this.choose(point, event.shiftKey);
    };
    dots.addEventListener("pointerup", up);
    dots.addEventListener("pointercancel", up);
    dots.addEventListener("pointerleave", () => this.hover(-1));
    dots.addEventListener("dblclick", (event) => this.zoomAt(...at(event), 2.5, true));
    dots.addEventListener("keydown", (event) => {
      const towards = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (towards && event.shiftKey) this.go({ x: this.view.x + 0.3 * towards[0] / this.view.zoom, y: this.view.y + 0.3 * towards[1] / this.view.zoom });
      else if (towards) this.step(...towards);
      else if (event.key === "+" || event.key === "=") this.closer(2);
      else if (event.key === "-") this.closer(0.5);
      else if (event.key === "0") this.go({ x: 0, y: 0, zoom: 1 });
      else if (event.key === "f" || event.key === "F") this.frame([...this.asked, ...this.found.map((one) => one.point)]);
      else if (event.key === "Enter" && this.cursor >= 0) this.choose(this.cursor, event.shiftKey);
      else return;
      event.preventDefault();
    });
  }

  closer(factor) {
    const at = this.cursor >= 0 ? this.place(this.cursor) : [this.width / 2, this.height / 2];
    this.zoomAt(...at, factor, true);
  }

  choose(point, also) {
    this.cursor = point;
    this.dispatchEvent(new CustomEvent("chosen", { detail: { point, also } }));
  }

  hover(point, at) {
    this.dots.classList.toggle("over", point >= 0);
    if (point === this.over) return;
    this.over = point;
    this.redraw();
    this.dispatchEvent(new CustomEvent("hovered", { detail: { point, at } }));
  }
}
