// The numbers of the space: who finds whom, and what is wrong.

import { make } from "./cards.js";

export async function fillReport(holder, about) {
  if (holder.dataset.filled) return;
  holder.replaceChildren(make("p", "soft", "Measuring: this takes some seconds the first time."));
  const answer = await fetch("/api/report"), found = await answer.json();
  if (!answer.ok) { holder.replaceChildren(make("p", "wrong", found.error)); return; }
  holder.dataset.filled = "1";
  const names = about.modalities.map((one) => one.name);
  const of = found.split ? `of the ${found.split} split` : "(not held out, as far as is known)";
  const objective = found.objective ? `Trained with ${found.objective.name.replaceAll("_", " ")}, temperature ${found.objective.temperature.toPrecision(2)}. ` : "";
  holder.replaceChildren(
    make("p", "", `${objective}Measured on ${found.samples.toLocaleString("en")} samples ${of}.`),
    ...(names.length > 1 ? [matrix(found.matrix, names)] : []),
    make("h3", "", "Findings"),
    ...(found.findings.length ? found.findings.map(finding) : [make("p", "", "Nothing looks wrong.")]),
    make("h3", "", "Geometry"),
    numbers(found.geometry),
  );
  if (about.page) {
    const link = make("a", "", "The whole report of the run");
    link.href = "/report"; link.target = "_blank"; link.rel = "noopener";
    holder.append(make("p", "", link));
  }
}

/** What was found of one kind, where, and what to try: the advice once, however many modalities it is about. */
function finding({ severity, name, advice, sentences }) {
  const title = make("h4", severity, `${severity}: ${name.replaceAll("_", " ")}`);
  return make("section", "finding", title, make("ul", "", ...sentences.map((text) => make("li", "", text))), make("p", "soft", `Try: ${advice}.`));
}

function matrix(found, names) {
  const table = make("table", "matrix");
  const caption = make("caption", "", "Recall@1 in %, recall@10 below it: rows ask, columns answer");
  const head = make("tr", "", make("td"), ...names.map((name) => column(name)));
  const top = Math.max(...names.flatMap((a) => names.map((b) => found[a]?.[b]?.["recall@1"] ?? 0)), 0.01);
  const rows = names.map((asks) => {
    const title = make("th", "", asks);
    title.scope = "row";
    return make("tr", "", title, ...names.map((answers) => {
      const row = found[asks]?.[answers];
      if (row === undefined) return make("td", "none", asks === answers ? "" : "–");
      const [one, ten, chance] = ["recall@1", "recall@10", "chance@1"].map((key) => (100 * row[key]).toFixed(1));
      const cell = make("td", "", make("b", "", one), make("small", "", ten));
      cell.title = `${asks} asks, ${answers} answers: recall@1 ${one} % (a random order: ${chance}), recall@10 ${ten} %`;
      cell.style.setProperty("--heat", (row["recall@1"] / top).toFixed(3));
      return cell;
    }));
  });
  table.append(caption, make("thead", "", head), make("tbody", "", ...rows));
  return make("div", "wide", table);
}

function column(name) {
  const cell = make("th", "", name);
  cell.scope = "col";
  return cell;
}

const MEANS = {
  alignment: "mean squared distance of a pair, 0 = perfect", uniformity: "lower = better spread", gap: "distance between the means of two modalities, 0 = none",
};

function numbers(found) {
  const table = make("table", "plain");
  for (const [key, value] of Object.entries(found).filter(([key]) => key.startsWith("mean/"))) {
    const what = key.slice(5), title = make("th", "", what);
    title.scope = "row";
    table.append(make("tr", "", title, make("td", "", value.toFixed(3)), make("td", "soft", MEANS[what] ?? "")));
  }
  return table;
}
