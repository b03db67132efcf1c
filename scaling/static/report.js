// Runs in figures: pointed at, they tell what they are; opened, they show their samples. Text only, never markup.
"use strict";
(() => {
  const told = JSON.parse(document.getElementById("facts").textContent);
  const REACH = 24; // pixels from the pointer to a point
  const tip = document.getElementById("tip");
  const side = document.getElementById("side");
  const close = document.getElementById("close");
  let opener = null;

  const make = (kind, text, parent) => {
    const element = document.createElement(kind);
    element.textContent = text;
    parent.append(element);
    return element;
  };

  // Where each point of a run is, in the figure's own coordinates; i is its place along the run's curve.
  const points = new Map();
  for (const svg of document.querySelectorAll(".panel svg")) {
    const found = [];
    for (const run of svg.querySelectorAll(".run")) {
      const marks = [...run.querySelectorAll("use")];
      marks.forEach((mark, i) => found.push({
        run, i: marks.length > 1 ? i : -1, x: Number(mark.getAttribute("x")), y: Number(mark.getAttribute("y")),
      }));
    }
    points.set(svg, found);
  }

  const nearest = (svg, event) => {
    const matrix = svg.getScreenCTM();
    let best = null;
    let least = REACH;
    for (const point of points.get(svg)) {
      const at = new DOMPoint(point.x, point.y).matrixTransform(matrix);
      const far = Math.hypot(at.x - event.clientX, at.y - event.clientY);
      if (far < least) [best, least] = [{ ...point, left: at.x, top: at.y }, far];
    }
    return best;
  };

  const light = (mark) => {
    document.body.classList.toggle("lit", mark !== null);
    for (const run of document.querySelectorAll(".run, .bar")) run.classList.toggle("on", run.dataset.run === mark);
  };

  const show = (mark, i, left, top, curve) => {
    const run = told.runs[mark];
    if (!run) return;
    tip.replaceChildren();
    make("b", run.name, tip);
    const point = curve ? run.points[i] : undefined;
    if (point) make("div", `step ${point[0].toLocaleString("en")}: loss ${point[1]}`, tip);
    for (const [name, value] of run.facts) make("div", `${name}: ${value}`, tip);
    make("div", run.samples.length ? "Click for samples" : "Click to keep", tip).className = "soft";
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(left + 14, innerWidth - box.width - 4))}px`;
    tip.style.top = `${top + 14 + box.height > innerHeight ? Math.max(4, top - box.height - 14) : top + 14}px`;
    light(mark);
  };

  const hide = () => {
    tip.hidden = true;
    light(side.hidden ? null : side.dataset.run);
  };

  const open = (mark, from) => {
    const run = told.runs[mark];
    if (!run) return;
    opener = from;
    side.dataset.run = mark;
    document.getElementById("side-name").textContent = run.name;
    const facts = document.getElementById("side-facts");
    facts.replaceChildren();
    for (const [name, value] of run.facts) {
      make("dt", name, facts);
      make("dd", value, facts);
    }
    const images = document.getElementById("side-samples");
    images.replaceChildren();
    for (const [prompt, address] of run.samples) {
      const figure = make("figure", "", images);
      const image = make("img", "", figure);
      image.src = address;
      image.alt = told.prompts[prompt];
      make("figcaption", told.prompts[prompt], figure);
    }
    if (!run.samples.length) make("p", "No samples of this run are here.", images);
    side.hidden = false;
    tip.hidden = true;
    light(mark);
    close.focus();
  };

  const shut = () => {
    if (side.hidden) return;
    side.hidden = true;
    light(null);
    opener?.focus();
  };

  for (const svg of points.keys()) {
    const curve = svg.dataset.curve !== undefined;
    svg.addEventListener("pointermove", (event) => {
      const found = nearest(svg, event);
      if (found) show(found.run.dataset.run, found.i, found.left, found.top, curve);
      else hide();
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("click", (event) => {
      const found = nearest(svg, event);
      if (found) open(found.run.dataset.run, found.run);
    });
    const runs = [...svg.querySelectorAll(".run")];
    runs.forEach((run, place) => {
      run.addEventListener("focus", () => {
        const box = run.getBoundingClientRect();
        show(run.dataset.run, -1, box.left + box.width / 2, box.top + box.height / 2, false);
      });
      run.addEventListener("blur", hide);
      run.addEventListener("keydown", (event) => {
        const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (by) {
          const next = runs[(place + by + runs.length) % runs.length];
          run.tabIndex = -1;
          next.tabIndex = 0;
          next.focus();
        } else if (event.key === "Enter" || event.key === " ") open(run.dataset.run, run);
        else return;
        event.preventDefault();
      });
    });
  }
  close.addEventListener("click", shut);
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") shut();
  });
})();
