// What cannot be seen of a text, made visible.

const NAMED = { "\n": "↵", "\t": "⇥", "\r": "␍", " ": "·", "\u00a0": "⍽" };
// Control characters, separators, and what has no width or turns the direction of a text.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Zs}\u034f\u115f\u1160\u17b4\u17b5\u3164\ufe00-\ufe0f\uffa0]/u;

/** Parts of a token's text: [what is shown, whether it stands for something else]. */
function visibleParts(text, marks) {
  if (text === "") return [["∅", true]];
  const parts = [];
  let plain = "";
  const flush = () => {
    if (plain) parts.push([plain, false]);
    plain = "";
  };
  const sign = (shown) => {
    flush();
    parts.push([shown, true]);
  };
  for (const character of text) {
    if (character === "\n") {
      if (marks) sign("↵");
      plain += "\n";
    } else if (character === " " && !marks) {
      plain += character;
    } else if (NAMED[character]) {
      sign(NAMED[character]);
    } else if (UNSEEN.test(character)) {
      sign(`⟨U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
    } else {
      plain += character;
    }
  }
  flush();
  return parts;
}

/** A token's text for one who hears it. */
function spoken(text, id, kind) {
  if (kind === 2) return `id ${id}`;
  if (text === "") return "no text";
  if (/^ +$/.test(text)) return text.length === 1 ? "space" : `${text.length} spaces`;
  if (/^\n+$/.test(text)) return text.length === 1 ? "line break" : `${text.length} line breaks`;
  return visibleParts(text.trim() || text, false).map(([shown]) => shown).join("");
}

/** Six digits, without zeros that say nothing; "inf" as the files' own tools write it. */
function formatNumber(value) {
  if (value === undefined) return "–";
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "–" : value > 0 ? "inf" : "−inf";
  const small = value !== 0 && Math.abs(value) < 1e-3;
  const text = small ? value.toExponential(5).replace(/\.?0*e/, "e") : String(Number(value.toPrecision(6)));
  return (text === "-0" ? "0" : text).replaceAll("-", "−");
}

/** An element with a class and text. */
function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}
