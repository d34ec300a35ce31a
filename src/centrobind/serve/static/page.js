// The page: what is asked, what is found, and the map, kept in step with each other and with the address.

import { Cards, make, playButton } from "./cards.js";
import { SpaceMap } from "./map.js";
import { body, fitting, fromAddress, sameParts, takes, toAddress } from "./query.js";
import { fillReport } from "./report.js";

const COLOURS = ["#d1495b", "#00798c", "#edae49", "#66a182", "#8d6cab", "#2e86de", "#b5651d", "#5f7f2e", "#c2559d", "#3aa6a0"];
const REST = "#8a8f98", FOUND = 12;
const at = (id) => document.getElementById(id);
const rgb = (hex) => [1, 3, 5].map((n) => parseInt(hex.slice(n, n + 2), 16));
const count = (number) => number.toLocaleString("en");
const state = { parts: [], only: "", colour: "", asked: 0 };
let about, points, map, cards, pointOf = new Map(), hidden = [];

async function get(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? answer.statusText);
  return answer.json();
}

async function start() {
  [about, points] = await Promise.all([get("/api/about"), get("/api/points")]);
  cards = new Cards(about);
  document.title = `${about.name} – centrobind`;
  at("name").textContent = about.name;
  at("counts").textContent = `${count(about.samples)} samples · ${about.modalities.map((one) => one.name).join(" · ")}`;
  at("truth").textContent = truth();
  map = new SpaceMap(at("dots"), at("marks"), at("things"), thingAt);
  setPoints();
  fillForms();
  listen();
  read();
  document.documentElement.dataset.ready = "yes";
  if (!points.ready) await drawn();
}

function setPoints() {
  points.sample.forEach((sample, i) => pointOf.set(key(points.modality[i], points.ids[sample]), i));
  map.setPoints(Float64Array.from(points.x), Float64Array.from(points.y));
}

/** The first start draws the map while everything else works already: wait for it. */
async function drawn() {
  while (!points.ready && !points.fault) {
    at("truth").textContent = `The map is being drawn: ${(100 * points.done).toFixed(0)} %. The search works already.`;
    await new Promise((done) => setTimeout(done, 700));
    points = await get("/api/points");
  }
  if (points.fault) { at("truth").textContent = `There is no map: ${points.fault}`; return; }
  about = await get("/api/about");
  at("truth").textContent = truth();
  setPoints();
  paint();
  if (state.parts.length) search();
}

const key = (modality, id) => `${modality} ${id}`;
const idOf = (point) => points.ids[points.sample[point]];
const nameOf = (point) => about.modalities[points.modality[point]].name;

function truth() {
  const { points: total, share_kept: kept } = about.map;
  const part = total < about.modalities.reduce((sum, one) => sum + one.present, 0) ? ` of evenly picked samples` : "";
  if (kept === null) return `${count(total)} points${part}.`;
  return `${count(total)} points${part} (t-SNE). A map lies: of the ten nearest neighbours in the space, this one keeps ${(100 * kept).toFixed(0)} %. The lists tell the truth.`;
}

// ---- colours ------------------------------------------------------------------------------------------------------

function fillForms() {
  const texts = about.modalities.filter((one) => one.shows === "text").map((one) => one.name);
  const option = (value, words) => Object.assign(make("option", "", words), { value });
  const any = texts.length > 1 ? [option("", "any text")] : [];
  at("modality").replaceChildren(...any, ...texts.map((name) => option(name, name)));
  at("modality").hidden = texts.length < 2;
  at("text").disabled = !texts.length;
  at("text").placeholder = !texts.length ? "no modality here is text: drop a file" : any.length ? "in words" : `${texts[0]} in words`;
  at("choose").textContent = `Drop or choose ${takes(about)}`;
  const ways = [["modality", "modality"]];
  if (about.labels.length) ways.push(["label", "label"]);
  if (about.splits.length) ways.push(["split", "split"]);
  ways.push(["kept", "how true the map is"]);
  at("colour").replaceChildren(...ways.map((way) => option(...way)));
  const only = [option("", "everything")];
  for (const what of ["split", "label"]) {
    const group = make("optgroup", "", ...about[`${what}s`].map((name) => option(`${what}:${name}`, name)));
    group.label = what;
    if (about[`${what}s`].length) only.push(group);
  }
  at("where").replaceChildren(...only);
  at("narrow").hidden = only.length < 2;
}

/** Category of each point and what the categories are called, by the chosen way of colouring. */
function categories(way) {
  if (way === "modality") return { of: points.modality, names: about.modalities.map((one) => one.name) };
  if (way === "kept") return { of: points.kept, names: [...Array(11).keys()].map((n) => `${n} of 10`), ramp: true };
  const codes = points.sample.map((sample) => points[way][sample]), names = about[`${way}s`];
  const often = new Map();
  for (const code of codes) if (code >= 0) often.set(code, (often.get(code) ?? 0) + 1);
  const shown = [...often.keys()].sort((a, b) => often.get(b) - often.get(a)).slice(0, COLOURS.length);
  const place = new Map(shown.map((code, n) => [code, n]));
  const rest = codes.some((code) => !place.has(code)) ? ["other"] : [];
  return { of: codes.map((code) => place.get(code) ?? shown.length), names: [...shown.map((code) => names[code]), ...rest], rest: shown.length };
}

function paint() {
  const way = state.colour || "modality", { of, names, ramp, rest } = categories(way);
  const from = rgb("#d1495b"), to = rgb("#00798c");
  const colours = names.map((_, n) => {
    if (ramp) return from.map((v, c) => Math.round(v + (to[c] - v) * n / 10));
    return rgb(n === rest ? REST : COLOURS[n % COLOURS.length]);
  });
  hidden = names.map(() => false);
  map.setPaint(Uint8Array.from(of), colours, hidden);
  at("legend").replaceChildren(...names.map((name, n) => {
    if (ramp && n % 5) return null;
    const button = make("button", "", make("i"), name);
    button.type = "button";
    button.firstChild.style.background = `rgb(${colours[n]})`;
    button.setAttribute("aria-pressed", "true");
    if (ramp) button.disabled = true;
    button.addEventListener("click", () => {
      hidden[n] = !hidden[n];
      button.setAttribute("aria-pressed", String(!hidden[n]));
      map.redraw();
    });
    return make("li", "", button);
  }).filter(Boolean));
}

/** What a point looks like close up: its picture, drawing, spectrum or words. */
function thingAt(point) {
  const name = nameOf(point), shows = cards.shows[name];
  const holder = make("div", `thing ${shows}`);
  const [width, height] = shows === "text" || shows === "numbers" ? [132, 20] : [44, 44];
  Object.assign(holder.dataset, { width, height });
  if (shows === "text") {
    describe(point).then((sample) => { holder.textContent = sample.texts[name] ?? sample.caption; }, () => {});
  } else {
    holder.append(cards.thing(name, idOf(point)));
  }
  return holder;
}

const described = new Map();
function describe(point) {
  const id = idOf(point);
  if (described.size > 2000) described.clear();
  if (!described.has(id)) {
    const path = id.split("/").map(encodeURIComponent).join("/");
    described.set(id, get(`/api/sample/${path}`).catch(() => ({ caption: id, label: null, texts: {} })));
  }
  return described.get(id);
}

// ---- asking -------------------------------------------------------------------------------------------------------

/** Ask for a part alone, or for it as well. */
function ask(part, also = false) {
  const before = also ? state.parts : [];
  if (!before.some((one) => sameParts(one, part))) state.parts = [...before, part];
  search();
  write();
}

async function search() {
  showParts();
  const mine = ++state.asked, wanted = state.parts.filter((part) => !part.minus);
  if (!wanted.length) {
    at("results").replaceChildren(...(state.parts.length ? [] : [beginnings()]));
    at("status").textContent = state.parts.length ? "Add something to look for." : "";
    map.setMarks([], []);
    return;
  }
  const [what, ...name] = state.only.split(":");
  const where = state.only ? { where: { [what]: [name.join(":")] } } : {};
  document.body.classList.add("busy");
  try {
    const answer = await fetch("/api/search", { method: "POST", ...body(state.parts, { k: FOUND, ...where }) });
    const found = await answer.json();
    if (mine !== state.asked) return;
    if (!answer.ok) throw new Error(found.error);
    show(found);
  } catch (error) {
    if (mine !== state.asked) return;
    at("results").replaceChildren();
    at("status").replaceChildren(make("span", "wrong", error instanceof TypeError ? "The server does not answer." : error.message));
    map.setMarks([], []);
  } finally {
    if (mine === state.asked) document.body.classList.remove("busy");
  }
}

/** What the empty pane offers: some samples of the gallery as queries, in words where they have some. */
function beginnings() {
  const texts = about.modalities.filter((one) => one.shows === "text").map((one) => one.name);
  const examples = about.examples.map((card) => {
    const words = card.caption ?? card.id, inWords = texts.length && card.caption && card.caption !== card.label;
    const button = make("button", "example", ...(cards.picture && !inWords ? [cards.thing(cards.picture, card.id, words)] : []), words);
    button.type = "button";
    button.addEventListener("click", () => {
      if (inWords) at("text").value = words;
      ask(inWords ? { modality: texts.length > 1 ? null : texts[0], text: words, minus: false } : { modality: null, id: card.id, minus: false });
    });
    return make("li", "", button);
  });
  const heading = make("h2", "", "Begin with", make("small", "", "or type, drop a file, or click a point of the map"));
  return make("section", "", heading, make("ul", "examples", ...examples));
}

function show({ hits, samples, unknown }) {
  const lone = state.parts.length === 1 ? state.parts[0].id : undefined;
  const section = (title, note, modality, found) => {
    const list = make("ol", `grid ${cards.shows[modality] ?? "together"}`, ...found.map((hit) => cards.card(modality, hit, {
      same: hit.id === lone,
      act: (also) => ask({ modality: cards.shows[modality] ? modality : null, id: hit.id, minus: false }, also),
    })));
    const heading = make("h2", "", title, make("small", "", note));
    return make("section", "", heading, found.length ? list : make("p", "soft", "Nothing here."));
  };
  const lists = Object.entries(hits).map(([name, found]) => section(name, "nearest first, by cosine", name, found));
  const together = samples.length && lists.length > 1 ? [section("samples", "all their modalities together, by cosine", "", samples)] : [];
  const meaning = make("p", "soft meaning", "Cosine: 1 = the same direction, 0 = unrelated. It orders a list; between lists of different modalities it does not compare.");
  at("results").replaceChildren(...together, ...lists, meaning);
  const first = Object.entries(hits).filter(([, found]) => found.length);
  const unseen = unknown.length ? `Never seen in training: ${unknown.join(", ")}. ` : "";
  at("status").textContent = first.length
    ? unseen + `Nearest: ${first.map(([name, found]) => `${name}, ${found[0].caption ?? found[0].id}`).join("; ")}.`
    : "Nothing found.";
  const index = Object.fromEntries(about.modalities.map((one, n) => [one.name, n]));
  const marks = Object.entries(hits).flatMap(([name, found]) => found.map((hit, n) => ({ point: pointOf.get(key(index[name], hit.id)), first: n === 0 })));
  const asked = state.parts.filter((part) => part.id !== undefined).flatMap((part) => about.modalities
    .filter((one) => !part.modality || one.name === part.modality).map((one) => pointOf.get(key(index[one.name], part.id))));
  map.setMarks(asked.filter((point) => point !== undefined), marks.filter((mark) => mark.point !== undefined));
}

/** The parts of the query, each to be turned around or taken out. */
function showParts() {
  at("parts").replaceChildren(...state.parts.map((part) => {
    const words = part.text ?? part.label ?? part.name ?? part.id, name = part.modality ?? (part.text === undefined ? "sample" : "any text");
    const sign = make("button", "sign", part.minus ? "−" : "+");
    sign.type = "button";
    sign.setAttribute("aria-label", part.minus ? `Without ${words}; press to look for it` : `With ${words}; press to leave it out`);
    sign.title = part.minus ? "not wanted" : "wanted";
    sign.addEventListener("click", () => { part.minus = !part.minus; search(); write(); });
    const away = make("button", "away", "×");
    away.type = "button";
    away.setAttribute("aria-label", `Remove ${words}`);
    away.addEventListener("click", () => { state.parts = state.parts.filter((one) => one !== part); search(); write(); at("text").focus(); });
    const item = make("li", part.minus ? "minus" : "", sign);
    const shows = cards.shows[part.modality] ?? "image";
    if (part.file && shows === "image") item.append(Object.assign(make("img"), { src: part.address, alt: "" }));
    if (part.file && shows === "sound") item.append(playButton(part.address, words));
    if (part.id !== undefined && (part.modality ? shows === "image" : cards.picture)) item.append(cards.thing(part.modality ?? cards.picture, part.id));
    if (part.id !== undefined && part.label === undefined) {
      get(`/api/sample/${part.id.split("/").map(encodeURIComponent).join("/")}`).then(({ caption, texts }) => {
        part.label = texts[part.modality] ?? caption ?? part.id;
        if (item.isConnected) showParts();
      }, () => { part.label = part.id; });
    }
    item.append(make("span", "kind", name), make("span", "words", words));
    if (part.choices?.length > 1) item.append(chooser(part));
    item.append(away);
    return item;
  }));
}

/** Where a file could be of several modalities: which. */
function chooser(part) {
  const select = make("select", "", ...part.choices.map((name) => Object.assign(make("option", "", name), { value: name, selected: name === part.modality })));
  select.setAttribute("aria-label", "What the file is");
  select.addEventListener("change", () => { part.modality = select.value; search(); });
  return select;
}

function take(files, also) {
  for (const file of files) {
    const choices = fitting(file, about);
    if (!choices.length) {
      at("status").replaceChildren(make("span", "wrong", `${file.name}: nothing here is like that; drop ${takes(about)}.`));
      continue;
    }
    ask({ modality: choices[0], choices, file, name: file.name, address: URL.createObjectURL(file), minus: false }, also);
    also = true;
  }
}

// ---- the address --------------------------------------------------------------------------------------------------

const address = () => toAddress({ ...state, view: map.view });
let soon = 0;

function write() {
  clearTimeout(soon);
  if (address() !== (location.hash || "#")) history.pushState(null, "", address());
}

function read() {
  const said = fromAddress(location.hash, about);
  Object.assign(state, { parts: said.parts, only: said.only, colour: said.colour });
  at("where").value = state.only;
  if (at("where").selectedIndex < 0) at("where").value = state.only = "";
  at("colour").value = state.colour || "modality";
  if (at("colour").selectedIndex < 0) at("colour").value = state.colour = "modality";
  const words = state.parts.find((part) => part.text !== undefined && !part.minus);
  if (words) at("text").value = words.text;
  map.view = said.view;
  paint();
  search();
}

// ---- hands --------------------------------------------------------------------------------------------------------

function listen() {
  const type = (also) => {
    const text = at("text").value.trim();
    if (text) ask({ modality: at("modality").value || null, text, minus: false }, also);
  };
  at("ask").addEventListener("submit", (event) => { event.preventDefault(); type(false); });
  at("also").addEventListener("click", () => type(true));
  at("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.shiftKey) { event.preventDefault(); type(true); }
  });
  at("choose").addEventListener("click", () => at("file").click());
  at("file").addEventListener("change", () => { take(at("file").files, false); at("file").value = ""; });
  at("colour").addEventListener("change", () => { state.colour = at("colour").value; paint(); write(); });
  at("where").addEventListener("change", () => { state.only = at("where").value; search(); write(); });
  at("closer").addEventListener("click", () => map.closer(2));
  at("wider").addEventListener("click", () => map.closer(0.5));
  at("whole").addEventListener("click", () => map.go({ x: 0, y: 0, zoom: 1 }));
  at("show-keys").addEventListener("click", () => at("keys").showModal());
  at("show-report").addEventListener("click", () => { at("report").showModal(); fillReport(at("report-body"), about); });
  at("copy-link").addEventListener("click", copyLink);
  addEventListener("popstate", read);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => map.redraw());
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !/INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName)) { event.preventDefault(); at("text").focus(); at("text").select(); }
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) { state.parts = []; map.cursor = -1; search(); write(); }
  });

  map.addEventListener("moved", () => {
    clearTimeout(soon);
    soon = setTimeout(() => history.replaceState(null, "", address()), 250);
  });
  map.addEventListener("chosen", ({ detail }) => ask({ modality: nameOf(detail.point), id: idOf(detail.point), minus: false }, detail.also));
  map.addEventListener("walked", async ({ detail }) => {
    const { caption: first, label, texts } = await describe(detail.point), caption = texts[nameOf(detail.point)] ?? first;
    at("spoken").textContent = `${nameOf(detail.point)}: ${caption ?? idOf(detail.point)}${label && label !== caption ? `, ${label}` : ""}`;
    tip(detail.point, map.place(detail.point));
  });
  map.addEventListener("hovered", ({ detail }) => tip(detail.point, detail.at));

  const drop = at("drop");
  let inside = 0;
  const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragenter", (event) => { if (files(event)) { inside++; drop.hidden = false; drop.firstElementChild.textContent = `Drop ${takes(about)} here; hold Shift to add it to the query`; } });
  addEventListener("dragleave", (event) => { if (files(event) && --inside <= 0) { inside = 0; drop.hidden = true; } });
  addEventListener("dragover", (event) => { if (files(event)) event.preventDefault(); });
  addEventListener("drop", (event) => { inside = 0; drop.hidden = true; if (files(event)) { event.preventDefault(); take(event.dataTransfer.files, event.shiftKey); } });
  addEventListener("paste", (event) => { if (event.clipboardData?.files.length) take(event.clipboardData.files, false); });
}

/** What a point is, beside it. */
async function tip(point, place) {
  const box = at("tip");
  box.dataset.point = point;
  if (point < 0) { box.hidden = true; return; }
  const [x, y] = place;
  const { caption: first, label, texts } = await describe(point);
  if (Number(box.dataset.point) !== point) return;
  const name = nameOf(point), shows = cards.shows[name], caption = texts[name] ?? first;
  box.replaceChildren(...(shows === "text" ? [] : [cards.thing(name, idOf(point), caption)]), make("b", "", caption ?? idOf(point)), make("span", "", [name, label !== caption && label, idOf(point)].filter(Boolean).join(" · ")));
  box.hidden = false;
  const wide = box.offsetWidth, high = box.offsetHeight;
  box.style.transform = `translate(${Math.max(4, Math.min(x + 14, map.width - wide - 6))}px, ${y + high + 22 > map.height ? y - high - 12 : y + 14}px)`;
}

async function copyLink() {
  const held = state.parts.some((part) => part.file);
  history.replaceState(null, "", address());
  try {
    await navigator.clipboard.writeText(location.href);
    at("status").textContent = held ? "Link copied; a dropped file is not part of it." : "Link copied.";
  } catch {
    at("status").textContent = "Copy the address of the page: it says what you see.";
  }
}

start().catch((error) => {
  at("status").replaceChildren(make("span", "wrong", `This page could not be opened: ${error.message}`));
});
