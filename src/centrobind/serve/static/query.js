// What is asked for: its parts, how it travels to the server, and how it stands in the address of the page.

/** One part: {text, modality or null} or {modality, file, name} or {id, modality or null}; `minus` = not wanted. */
export function sameParts(a, b) {
  return ["modality", "text", "id", "file"].every((key) => (a[key] ?? null) === (b[key] ?? null));
}

/** The body of a search: JSON, or a form if there are files. */
export function body(parts, rest) {
  const files = parts.filter((part) => part.file);
  const plain = ({ modality, text, id, file }) => ({
    ...(modality ? { modality } : {}), ...(file ? { file: `file${files.findIndex((one) => one.file === file)}` } : {}),
    ...(text !== undefined ? { text } : {}), ...(id !== undefined ? { id } : {}),
  });
  const asked = JSON.stringify({
    query: parts.filter((part) => !part.minus).map(plain), minus: parts.filter((part) => part.minus).map(plain), ...rest,
  });
  if (!files.length) return { body: asked, headers: { "content-type": "application/json" } };
  const form = new FormData();
  form.set("query", asked);
  files.forEach((part, n) => form.set(`file${n}`, part.file));
  return { body: form };
}

/** Which modalities could a file be of? By its ending as the server reads them, else by what the browser calls it. */
export function fitting(file, about) {
  const name = file.name.toLowerCase(), kind = { image: "image", audio: "sound", text: "text" }[file.type.split("/")[0]];
  const by = (test) => about.modalities.filter(test).map((one) => one.name);
  const named = by((one) => one.files.some((ending) => name.endsWith(ending)));
  return named.length ? named : by((one) => one.shows === kind);
}

/** What this page would take, in words. */
export function takes(about) {
  const words = { image: "a picture", sound: "a sound", series: "a series", numbers: "a vector", text: "a text" };
  const kinds = [...new Set(about.modalities.map((one) => one.shows))].filter((kind) => kind !== "text").map((kind) => words[kind]);
  return kinds.length ? kinds.join(" or ") : words.text;
}

// Not URLSearchParams: it would write U+265E as U%2B265E and a space as +, and people read and write these.
const written = (text) => encodeURIComponent(text).replace(/%(3A|2C|2B)/g, decodeURIComponent);

/** The address: #text=name:black%20knight&id=image:U+265E&-id=...&only=label:GREEK&colour=label&at=x,y,zoom */
export function toAddress({ parts, only, colour, view }) {
  const said = [];
  for (const part of parts) {
    const sign = part.minus ? "-" : "";
    if (part.text !== undefined) said.push([`${sign}text`, `${part.modality ?? ""}:${part.text}`]);
    if (part.id !== undefined) said.push([`${sign}id`, `${part.modality ?? ""}:${part.id}`]);
  }
  if (only) said.push(["only", only]);
  if (colour && colour !== "modality") said.push(["colour", colour]);
  if (view.zoom !== 1 || view.x || view.y) said.push(["at", `${view.x.toFixed(4)},${view.y.toFixed(4)},${view.zoom.toFixed(2)}`]);
  return "#" + said.map(([key, value]) => `${key}=${written(value)}`).join("&");
}

export function fromAddress(hash, about) {
  const parts = [], rest = {}, known = about.modalities.map((one) => one.name);
  for (const pair of hash.slice(1).split("&")) {
    const equals = pair.indexOf("="), key = pair.slice(0, equals), value = plain(pair.slice(equals + 1));
    const minus = key.startsWith("-"), what = minus ? key.slice(1) : key, colon = value.indexOf(":");
    if (what !== "text" && what !== "id") { rest[key] = value; continue; }
    const modality = value.slice(0, colon) || null;
    if (colon < 0 || (modality && !known.includes(modality))) continue;
    parts.push({ modality, [what]: value.slice(colon + 1), minus });
  }
  const at = (rest.at ?? "").split(",").map(Number);
  const view = at.length === 3 && at.every(Number.isFinite) ? { x: at[0], y: at[1], zoom: at[2] } : { x: 0, y: 0, zoom: 1 };
  return { parts, only: rest.only ?? "", colour: rest.colour ?? "", view };
}

function plain(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
