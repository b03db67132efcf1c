"use strict";
// One pair at a time. What counts is what the server has said it counted: an answer is sent again until then, also after
// a reload, and the server takes the first answer to a question only.

const TEXTS = {
  "prompt following": "Which image follows the prompt better?",
  "aesthetics": "Which image looks better, whatever was asked for?",
  "typography": "In which image is the text written better?",
};
const KEYS = { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", ArrowDown: "tie", 0: "tie", " ": "skip" };
const SETTLE = 300; // ms after a new question in which nothing is taken: the rest of a double click, a key held down
const DOUBLE = 500; // ms within which a second click at the same place is the rest of a double click
const SMALL = 192; // pixels: smaller images are enlarged without smoothing
const PENDING = "arena pending";
const WAITS = [300, 600, 1200, 2500, 5000]; // ms between tries

const $ = (id) => document.getElementById(id);
let pair = null; // the open ticket, as the server tells it
let question = null;
let busy = true;
let shownAt = 0;
let asked = 0; // pairs
const missing = new Set(); // which of both images are not there yet

function say(text) {
  $("status").textContent = text;
}

function wait(tries) {
  return new Promise((done) => setTimeout(done, WAITS[Math.min(tries, WAITS.length - 1)]));
}

// While an image is missing there is nothing to judge.
function tellMissing() {
  const some = missing.size > 0;
  for (const button of document.querySelectorAll("button[data-outcome]")) {
    button.disabled = some && button.dataset.outcome !== "skip";
  }
  say(some ? "An image is missing, retrying. Or skip it." : "");
}

// What the server said: whether it is fine, and JSON, or a line that tells what is wrong.
async function post(path, body) {
  for (let tries = 0; ; tries += 1) {
    try {
      const response = await fetch(path, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body),
        signal: AbortSignal.timeout(20000),
      });
      if (response.status < 500) {
        const told = response.ok ? await response.json() : await response.text();
        if (tries) tellMissing();
        return { ok: response.ok, told };
      }
    } catch {
      // no connection, none within the time, or one that broke off: what was asked is asked again
    }
    say("No connection just now. Your answer is kept, and sent again.");
    await wait(tries);
  }
}

async function send(answer) {
  sessionStorage.setItem(PENDING, JSON.stringify(answer));
  const response = await post("/api/vote", answer);
  sessionStorage.removeItem(PENDING);
  return response;
}

function setBusy(value) {
  busy = value;
  $("ballot").setAttribute("aria-busy", String(value));
}

function load(id, url) {
  return new Promise((done) => {
    const image = $(id);
    image.classList.remove("small");
    image.onload = () => {
      image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) <= SMALL);
      done(true);
    };
    image.onerror = () => done(false);
    image.src = url;
  });
}

// Until the image is there, or another pair is asked for.
async function loadAgain(id) {
  const [number, url] = [asked, pair[id]];
  for (let tries = 0; ; tries += 1) {
    await wait(tries);
    if (number !== asked) return;
    if (await load(id, `${url}?again=${tries}`)) break;
  }
  if (number !== asked) return;
  missing.delete(id);
  tellMissing();
  shownAt = performance.now();
}

function ask() {
  const open = pair.questions.filter((name) => !(name in pair.answers));
  if (!open.length) return next();
  question = open[0];
  const number = pair.questions.length - open.length + 1;
  $("question").textContent = TEXTS[question] ?? question;
  $("progress").textContent = `Question ${number} of ${pair.questions.length} · ${pair.judged} pairs judged`;
  for (const button of document.querySelectorAll(".chosen")) button.classList.remove("chosen");
  setBusy(false);
  shownAt = performance.now();
  return undefined;
}

async function next() {
  setBusy(true);
  asked += 1;
  const response = await post("/api/ticket", {});
  if (!response.ok) {
    hide();
    say(response.told);
    return;
  }
  pair = response.told;
  $("to-board").hidden = !pair.board;
  if (pair.ticket === null) {
    hide();
    $("progress").textContent = `${pair.judged} pairs judged`;
    say("You have judged every pair there is. Thank you!");
    return;
  }
  $("prompt").textContent = pair.prompt;
  missing.clear();
  await Promise.all(["left", "right"].map(async (id) => {
    if (!(await load(id, pair[id]))) missing.add(id);
  }));
  for (const id of missing) loadAgain(id);
  $("ballot").classList.remove("empty");
  tellMissing();
  ask();
}

function hide() {
  missing.clear();
  $("ballot").classList.add("empty");
}

async function vote(outcome) {
  if (busy || pair === null || (missing.size > 0 && outcome !== "skip")) return;
  setBusy(true);
  for (const button of document.querySelectorAll(`[data-outcome="${outcome}"]`)) button.classList.add("chosen");
  const response = await send({ ticket: pair.ticket, question, outcome });
  if (response.ok) {
    pair.answers = response.told.answers;
    ask();
  } else {
    await next(); // the ticket is not ours any more: another one
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-outcome]");
  if (!button) return;
  if (event.detail > 0) button.blur(); // else the space bar would press it again instead of skipping
  const since = performance.now() - shownAt;
  if (since < SETTLE || (event.detail > 1 && since < DOUBLE)) return;
  vote(button.dataset.outcome);
});

document.addEventListener("keydown", (event) => {
  const outcome = KEYS[event.key];
  if (!outcome || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === " " && document.activeElement?.matches("button, a")) return; // it presses what has the focus
  event.preventDefault();
  if (!event.repeat && performance.now() - shownAt >= SETTLE) vote(outcome);
});

async function start() {
  if (!navigator.cookieEnabled) {
    say("This page needs cookies, to tell one voter from another.");
    return;
  }
  const pending = sessionStorage.getItem(PENDING);
  if (pending) await send(JSON.parse(pending));
  await next();
}

start();
