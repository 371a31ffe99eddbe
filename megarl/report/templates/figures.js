"use strict";
// Reads a figure's values out where one points at it or moves with the arrow keys. Everything else is CSS.
(() => {
  const MOST = 10;
  const source = document.getElementById("figures");
  let figures = null;
  const data = (key) => (figures ??= JSON.parse(source.textContent).figures)[key];
  const show = (value) => value === null || value === undefined ? "–"
    : Math.abs(value) >= 1e4 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
  const hidden = (line) => line.group !== null && document.getElementById(`g${line.group}`)?.checked === false;

  function share(domain, x) {
    const [low, high, kind] = domain;
    return kind === "log" ? Math.log(x / low) / Math.log(high / low) : (x - low) / (high - low);
  }

  function nearest(xs, domain, wanted) {
    let best = 0;
    xs.forEach((x, i) => {
      if (Math.abs(share(domain, x) - wanted) < Math.abs(share(domain, xs[best]) - wanted)) best = i;
    });
    return best;
  }

  function readAt(plot, wanted) {
    const figure = data(plot.dataset.key), drawn = plot.querySelector(".drawn"), svg = drawn.querySelector("svg");
    const [left, , right] = figure.box, texts = [];
    let at = null, more = 0;
    for (const line of figure.lines) {
      const xs = figure.x[line.x];
      if (!xs.length || hidden(line) || /, seed /.test(line.label)) continue;
      const i = nearest(xs, figure.domain, wanted);
      if (at === null || Math.abs(share(figure.domain, xs[i]) - wanted) < Math.abs(share(figure.domain, at) - wanted)) at = xs[i];
      if (texts.length >= MOST) { more += 1; continue; }
      const ends = line.low && line.low[i] !== null ? ` (${show(line.low[i])} to ${show(line.high[i])})` : "";
      texts.push(`${line.label} ${show(line.y[i])}${ends}`);
    }
    if (at === null) return null;
    const scale = svg.clientWidth / svg.viewBox.baseVal.width;
    const mark = drawn.querySelector("i") ?? drawn.appendChild(document.createElement("i"));
    const padding = parseFloat(getComputedStyle(drawn).paddingTop);
    mark.style.left = `${(left + share(figure.domain, at) * (right - left)) * scale}px`;
    mark.style.top = `${padding + figure.box[1] * scale}px`;
    mark.style.height = `${(figure.box[3] - figure.box[1]) * scale}px`;
    plot.querySelector("output").textContent = `${show(at)}: ${texts.join(" · ")}${more ? ` · ${more} more` : ""}`;
    return at;
  }

  function clear(plot) {
    plot.querySelector(".drawn i")?.remove();
    plot.querySelector("output").textContent = "";
  }

  function move(plot, key) {
    const figure = data(plot.dataset.key);
    const xs = [...new Set(figure.x.flat())].sort((a, b) => a - b);
    const now = plot.dataset.at === undefined ? -1 : xs.indexOf(Number(plot.dataset.at));
    const next = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: xs.length - 1 }[key];
    const x = xs[Math.max(0, Math.min(xs.length - 1, next))];
    readAt(plot, share(figure.domain, x));
    plot.dataset.at = x;
  }

  for (const plot of document.querySelectorAll(".plot")) {
    const drawn = plot.querySelector(".drawn");
    drawn.addEventListener("pointermove", (event) => {
      const figure = data(plot.dataset.key), svg = drawn.querySelector("svg");
      if (!figure.domain) return;
      const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
      readAt(plot, (x - figure.box[0]) / (figure.box[2] - figure.box[0]));
    });
    drawn.addEventListener("pointerleave", () => clear(plot));
    drawn.addEventListener("blur", () => clear(plot));
    drawn.addEventListener("keydown", (event) => {
      if (!["ArrowRight", "ArrowLeft", "Home", "End"].includes(event.key) || !data(plot.dataset.key).domain) return;
      event.preventDefault();
      move(plot, event.key);
    });
  }
  for (const output of document.querySelectorAll(".plot output")) output.setAttribute("aria-live", "polite");
  for (const button of document.querySelectorAll(".groups button")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      for (const box of document.querySelectorAll(".groups input")) box.checked = button.value === "all";
    });
  }
})();
