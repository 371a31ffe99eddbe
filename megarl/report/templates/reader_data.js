// The payload (megarl/report/reader_payload.py says what is in it), and a response's tokens out of their compressed form.

const data = JSON.parse(document.getElementById("reader-data").textContent);
const settings = JSON.parse(document.getElementById("reader-settings").textContent);
const decoded = new Map();
const KEPT = 8;

/** {ids, texts, kinds, rules, columns} of a response, each with an entry per token; the last few are kept. */
function readTokens(response) {
  if (!decoded.has(response)) {
    decoded.set(response, decode(response));
    if (decoded.size > KEPT) decoded.delete(decoded.keys().next().value);
  }
  return decoded.get(response);
}

async function decode(response) {
  const bytes = await inflate(Uint8Array.from(atob(response.data), (character) => character.charCodeAt(0)));
  const count = response.shown;
  let start = 0;
  const take = (Kind) => {
    const width = Kind.BYTES_PER_ELEMENT;
    const whole = new Uint8Array(count * width);
    for (let plane = 0; plane < width; plane += 1) {
      for (let token = 0; token < count; token += 1) whole[token * width + plane] = bytes[start + plane * count + token];
    }
    start += count * width;
    return new Kind(whole.buffer);
  };
  const tokens = Array.from(take(Uint32Array), (number) => data.tokens[number]);
  const rules = Array.from(take(Uint16Array), (number) => data.rules[number]);
  const columns = {};
  for (const name of data.layouts[response.layout]) columns[name] = take(Float32Array);
  if (start !== bytes.length) throw new Error(`expected ${start} bytes of a response, found ${bytes.length}`);
  if (columns.ratio) columns.bound = insideBound(columns, count);
  return {
    ids: tokens.map(([id]) => id),
    texts: tokens.map(([, text]) => text),
    kinds: tokens.map(([, , kind]) => kind),
    rules,
    columns,
  };
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** How far r is inside the bound of its advantage's side; NaN without an advantage. */
function insideBound(columns, count) {
  return Float64Array.from({ length: count }, (_, token) => {
    const advantage = columns.token_advantage[token];
    if (advantage === 0) return NaN;
    return advantage > 0
      ? columns.high[token] - columns.ratio[token]
      : columns.ratio[token] - columns.low[token];
  });
}

/** Sorted values that occur, without repetition. */
function distinct(values) {
  return [...new Set(values)].sort((a, b) => a - b);
}

/** The part of each prompt that is its own: chat templates begin and end all alike. */
const promptLabels = (() => {
  const texts = data.prompts;
  const alike = (at) => texts.every((text) => at(text) !== undefined && at(text) === at(texts[0]));
  let head = 0;
  let tail = 0;
  if (texts.length > 1) {
    while (alike((text) => text[head])) head += 1;
    while (alike((text) => text[text.length - 1 - tail])) tail += 1;
    while (head > 0 && /\S/.test(texts[0][head - 1])) head -= 1;
  }
  return texts.map((text) => {
    const own = text.slice(head, Math.max(text.length - tail, head + 1)).replace(/\s+/g, " ").trim();
    const characters = Array.from(own || text.replace(/\s+/g, " ").trim());
    return characters.length > 60 ? `${characters.slice(0, 59).join("")}…` : characters.join("");
  });
})();
