"use strict";
// Ratings with their intervals, one table a question, fetched anew every few seconds.

const EVERY = 10000; // ms
const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function line(kind, x1, x2, y1, y2) {
  const made = document.createElementNS(SVG, "line");
  made.setAttribute("class", kind);
  for (const [key, value] of Object.entries({ x1, x2, y1, y2 })) made.setAttribute(key, value);
  return made;
}

function bar(row, low, high) {
  const at = (elo) => (100 * (elo - low)) / (high - low);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 10");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  svg.append(line("mean", at(1000), at(1000), 0, 10));
  if (row.low !== null || row.high !== null) {
    svg.append(line("interval", at(row.low ?? low), at(row.high ?? high), 5, 5));
  }
  svg.append(line("point", at(row.elo), at(row.elo), 2.5, 7.5));
  return svg;
}

function table(rows) {
  const ends = rows.flatMap((row) => [row.elo, row.low ?? row.elo, row.high ?? row.elo, 1000]);
  const [low, high] = [Math.min(...ends) - 10, Math.max(...ends) + 10];
  const made = element("table");
  const head = element("tr");
  for (const text of ["run", "rating", "95 % interval", "", "votes"]) {
    head.append(element("th", text, text === "run" ? "name" : ""));
  }
  made.append(head);
  for (const row of rows) {
    const cells = element("tr");
    const [from, to] = [row.low, row.high].map((end) => end?.toFixed(0) ?? "?");
    const interval = from === "?" && to === "?" ? "–" : `${from} to ${to}`;
    const drawn = element("td", undefined, "bar");
    drawn.append(bar(row, low, high));
    cells.append(element("td", row.name, "name"), element("td", row.elo.toFixed(0)), element("td", interval));
    cells.append(drawn, element("td", row.battles));
    made.append(cells);
  }
  return made;
}

function shown(group) {
  const parts = group.title ? [element("h3", group.title)] : [];
  const scroll = element("div", undefined, "scroll");
  if (group.rows.length) scroll.append(table(group.rows));
  parts.push(scroll);
  if (group.note) parts.push(element("p", group.note, "note"));
  return parts;
}

async function refresh() {
  try {
    const response = await fetch("/api/board", { signal: AbortSignal.timeout(60000) });
    if (!response.ok) throw new Error(await response.text());
    const board = await response.json();
    $("csv").hidden = !board.csv;
    $("progress").textContent = `${board.votes} votes of ${board.voters} voters`;
    const parts = board.questions.flatMap((part) => [
      element("h2", `${part.question}: ${part.votes} votes`),
      ...part.groups.flatMap(shown),
    ]);
    $("boards").replaceChildren(...parts);
    $("status").textContent = "";
  } catch (error) {
    $("status").textContent = `Not up to date: ${error.message}`;
  }
  setTimeout(refresh, EVERY);
}

refresh();
