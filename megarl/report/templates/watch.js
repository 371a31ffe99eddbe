"use strict";
// Follows a page that is served while it changes: asks for a new one, and loads it at the same place, with the same choices.
(() => {
  const TAG = `"${document.currentScript.dataset.tag}"`;
  const KEEP = "megarl-watch", ASK_MS = 2000, CALM_MS = 1000, SETTLE_MS = 1000, RESTORE_MS = 5000;
  let busy = 0;
  const storage = (work) => { try { return work(sessionStorage); } catch { return null; } };

  /** The way to an element from the nearest one with an id: what is added elsewhere does not change it. */
  function wayTo(element) {
    const way = [];
    for (let at = element; at && at !== document.body; at = at.parentElement) {
      if (at.id) return `#${CSS.escape(at.id)}${way.map((step) => ` > ${step}`).join("")}`;
      const alike = [...at.parentElement.children].filter((other) => other.tagName === at.tagName);
      way.unshift(`${at.tagName.toLowerCase()}:nth-of-type(${alike.indexOf(at) + 1})`);
    }
    return `body${way.map((step) => ` > ${step}`).join("")}`;
  }

  const find = (way) => document.querySelector(way);
  const changed = (element) => ["input", "change"].forEach((type) => element.dispatchEvent(new Event(type, { bubbles: true })));

  /** What was chosen, in the order of the page: earlier choices may make later ones. */
  function choices() {
    const found = [];
    for (const element of document.querySelectorAll("input, select, textarea, details, [aria-selected='true'], [aria-pressed]")) {
      const way = wayTo(element);
      if (element.matches("input[type=checkbox], input[type=radio]")) found.push({ way, kind: "checked", value: element.checked });
      else if (element.matches("select")) found.push({ way, kind: "option", value: element.selectedOptions[0]?.textContent ?? "" });
      else if (element.matches("details")) found.push({ way, kind: "open", value: element.open });
      else if (element.matches("input, textarea")) found.push({ way, kind: "text", value: element.value });
      else found.push({ way, kind: element.matches("[aria-pressed]") ? "pressed" : "selected", value: element.getAttribute("aria-pressed") ?? "true" });
    }
    return found;
  }

  /** Whether the choice is made; not yet where what it is made in has not come. */
  function choose({ way, kind, value }) {
    const element = find(way);
    if (!element) return false;
    if (kind === "checked" && element.checked !== value) {
      if (element.type === "radio" && !value) return true; // by the one that is checked
      element.checked = value;
      changed(element);
    } else if (kind === "option" && element.selectedOptions[0]?.textContent !== value) {
      const at = [...element.options].findIndex((option) => option.textContent === value);
      if (at < 0) return false;
      element.selectedIndex = at;
      changed(element);
    } else if (kind === "open") element.open = value;
    else if (kind === "text" && element.value !== value) {
      element.value = value;
      changed(element);
    } else if (kind === "pressed" && element.getAttribute("aria-pressed") !== value) element.click();
    else if (kind === "selected" && element.getAttribute("aria-selected") !== "true") element.click();
    return true;
  }

  /** Where the reader is: by the last element with an id above the middle, as what is added above it moves the rest. */
  function place() {
    const above = [...document.querySelectorAll("main [id], body > [id]")]
      .map((element) => ({ element, box: element.getBoundingClientRect() }))
      .filter(({ box }) => box.height > 0 && box.top <= innerHeight / 2);
    const last = scrollY > 0 ? above.at(-1) : undefined;
    const inner = [...document.querySelectorAll("main *")].filter((one) => one.scrollTop || one.scrollLeft)
      .map((one) => ({ way: wayTo(one), top: one.scrollTop, left: one.scrollLeft }));
    return { top: scrollY, left: scrollX, near: last && wayTo(last.element), offset: last?.box.top, inner };
  }

  function go({ top, left, near, offset, inner }) {
    for (const one of inner) find(one.way)?.scrollTo(one.left, one.top);
    const element = near && find(near);
    scrollTo(left, element ? scrollY + element.getBoundingClientRect().top - offset : top);
  }

  function keep() {
    const focus = document.activeElement && document.activeElement !== document.body ? wayTo(document.activeElement) : null;
    storage((store) => store.setItem(KEEP, JSON.stringify({ choices: choices(), place: place(), focus })));
  }

  function restore() {
    const kept = storage((store) => JSON.parse(store.getItem(KEEP)));
    storage((store) => store.removeItem(KEEP));
    if (!kept) return;
    history.scrollRestoration = "manual";
    const began = performance.now();
    let open = kept.choices, touched = false, focus = kept.focus;
    for (const type of ["wheel", "pointerdown", "keydown", "touchstart"]) {
      addEventListener(type, (event) => { touched ||= event.isTrusted; }, { once: true, passive: true, capture: true });
    }
    (function again() {
      if (touched) return; // the reader goes on: nothing is moved or changed any more
      open = open.filter((one) => !choose(one));
      if (focus && find(focus)) { find(focus).focus({ preventScroll: true }); focus = null; }
      go(kept.place);
      const passed = performance.now() - began, unfinished = open.length || document.readyState !== "complete";
      if (passed < SETTLE_MS || (passed < RESTORE_MS && unfinished)) setTimeout(again, 50); // what comes late moves the rest
    })();
  }

  const note = document.createElement("output");
  Object.assign(note.style, {
    position: "fixed", right: "0.6rem", bottom: "0.5rem", padding: "0.1rem 0.5rem", borderRadius: "0.5rem",
    font: "12px sans-serif", background: "Canvas", color: "CanvasText", border: "1px solid GrayText", opacity: "0.85",
  });
  note.dataset.watch = "following";
  const following = `of ${new Date().toLocaleTimeString()}, follows the run`;
  note.textContent = following;

  for (const type of ["scroll", "wheel", "pointermove", "pointerdown", "keydown", "touchmove"]) {
    addEventListener(type, () => { busy = performance.now(); }, { passive: true, capture: true });
  }
  const calm = () => performance.now() - busy > CALM_MS && !document.hidden && !String(getSelection());

  async function ask() {
    try {
      const answer = await fetch("/", { cache: "no-store", headers: { "If-None-Match": TAG } });
      await answer.body?.cancel();
      if (answer.status === 200) return fresh();
      note.dataset.watch = "following";
      note.textContent = following;
    } catch {
      note.dataset.watch = "ended";
      note.textContent = "megarl report --watch has ended; this page stays as it is";
    }
    setTimeout(ask, ASK_MS);
  }

  /** A new page is there: it is loaded when the reader does not scroll, point, type or mark text. */
  function fresh() {
    if (!calm()) return setTimeout(fresh, 200);
    keep();
    location.reload();
  }

  document.body.append(note);
  restore();
  ask();
})();
