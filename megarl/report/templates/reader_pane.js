// One response at a time: what picks it, its tokens, and the numbers of the one that is pointed at.

/** The position of the token that a pointer is at; undefined between them. */
function tokenAt(event) {
  const index = event.target.closest("[role='option']")?.dataset.index;
  return index === undefined ? undefined : Number(index);
}

class Pane {
  constructor(number, reader) {
    this.number = number;
    this.reader = reader;
    this.root = document.getElementById("reader-pane").content.firstElementChild.cloneNode(true);
    this.parts = {};
    for (const part of this.root.querySelectorAll("[data-part]")) this.parts[part.dataset.part] = part;
    this.response = null;
    this.tokens = null;
    this.active = -1;
    this.parts["run-label"].hidden = data.runs.length < 2;
    this.parts["prompt-label"].hidden = number > 0;
    this.parts.text.id = `reader-text-${number}`;
    this.listen();
  }

  listen() {
    const { run, step, prompt, sample, back, on, text } = this.parts;
    run.addEventListener("change", () => this.reader.pick(this, { run: Number(run.value) }));
    step.addEventListener("change", () => this.reader.pick(this, { step: Number(step.value) }));
    prompt.addEventListener("change", () => this.reader.pick(this, { prompt: Number(prompt.value) }));
    sample.addEventListener("change", () => this.reader.pick(this, { sample: Number(sample.value) }));
    back.addEventListener("click", () => this.move(-1));
    on.addEventListener("click", () => this.move(1));
    text.addEventListener("keydown", (event) => this.press(event));
    // A click gives the focus before it says which token it means; without it the keyboard begins where it was.
    let pointed = false;
    text.addEventListener("pointerdown", () => { pointed = true; });
    text.addEventListener("focus", () => { if (!pointed) this.activate(Math.max(this.active, 0)); });
    text.addEventListener("click", (event) => {
      pointed = false;
      this.activate(tokenAt(event) ?? Math.max(this.active, 0));
    });
    text.addEventListener("pointercancel", () => { pointed = false; });
    text.addEventListener("pointerover", (event) => this.showNumbers(tokenAt(event) ?? this.active));
    text.addEventListener("pointerleave", () => this.showNumbers(this.active));
  }

  /** The responses of the prompt among which n and p move. */
  samples() {
    return this.response ? byRun[this.response.run].get(this.response.step).get(this.response.prompt) : [];
  }

  move(by) {
    const samples = this.samples();
    const next = samples[samples.indexOf(this.response) + by];
    if (next) this.reader.pick(this, { sample: next.sample_id });
  }

  /** Show a response, or why there is none. */
  async show(response, { run, steps, otherwise }) {
    const { heading, facts, more, text, numbers } = this.parts;
    this.fill(response, run, steps);
    if (response === this.response && this.tokens) return;
    this.response = response;
    this.tokens = null;
    this.active = -1;
    numbers.replaceChildren();
    text.replaceChildren();
    text.removeAttribute("aria-activedescendant");
    more.textContent = "";
    this.parts["prompt-text"].textContent = response ? data.prompts[response.prompt] : "";
    heading.textContent = response ? this.title(response).replace(/^s/, "S") : otherwise;
    facts.textContent = response ? this.describe(response) : "";
    text.hidden = response === null;
    if (response === null) return;
    text.setAttribute("aria-label", `Tokens of ${data.runs[response.run].name}, ${this.title(response)}`);
    text.setAttribute("aria-busy", "true");
    try {
      const tokens = await readTokens(response);
      if (this.response !== response) return;
      this.tokens = tokens;
      this.build();
      this.showNumbers(-1);
      if (document.activeElement === text) this.activate(0);
      if (response.shown < response.count) {
        more.textContent = `… and ${(response.count - response.shown).toLocaleString("en")} more tokens, in the file`;
      }
    } catch (error) {
      if (this.response === response) more.textContent = `The tokens cannot be read here: ${error.message}`;
    } finally {
      if (this.response === response) text.setAttribute("aria-busy", "false");
    }
  }

  fill(response, run, steps) {
    const { run: runSelect, step, prompt, sample, back, on } = this.parts;
    fillSelect(runSelect, data.runs.map((one, index) => [index, one.name]), run);
    fillSelect(step, steps.map((one) => [one, String(one)]), response?.step);
    const prompts = response ? byRun[run].get(response.step) : new Map();
    fillSelect(prompt, this.reader.describePrompts(this, [...prompts]), response?.prompt);
    const samples = response ? prompts.get(response.prompt) : [];
    fillSelect(sample, samples.map((one) => [one.sample_id, this.describeSample(one)]), response?.sample_id);
    const position = samples.indexOf(response);
    back.disabled = position <= 0;
    on.disabled = position < 0 || position === samples.length - 1;
    for (const select of [step, prompt, sample]) select.disabled = !response;
  }

  describeSample(response) {
    const reward = response.reward === null ? "not finite" : formatNumber(response.reward);
    return `${response.sample_index}: reward ${reward}${data.layouts[response.layout].includes("logp") ? "" : ", not traced"}`;
  }

  title(response) {
    return `step ${response.step}, prompt ${response.prompt_index}, sample ${response.sample_index}`;
  }

  describe(response) {
    const { updates } = data.runs[response.run];
    return [
      response.update === null ? "" : `update ${response.update} of ${updates}`,
      `weights of step ${response.policy_version}`,
      `reward ${response.reward === null ? "not finite" : formatNumber(response.reward)}`,
      response.failure ? `verifier: ${response.failure}` : "",
      `advantage ${response.advantage === null ? "not finite" : formatNumber(response.advantage)}`,
      `${response.count.toLocaleString("en")} tokens`,
      response.stop_reason === "length" ? "cut off" : "ended by itself",
    ].filter(Boolean).join(", ");
  }

  /** The tokens as elements; only those of the response that is shown exist. */
  build() {
    const made = document.createDocumentFragment();
    for (let index = 0; index < this.tokens.texts.length; index += 1) {
      const option = element("span");
      option.id = `reader-${this.number}-${index}`;
      option.setAttribute("role", "option");
      option.setAttribute("aria-selected", "false");
      option.dataset.index = index;
      made.append(option);
    }
    this.parts.text.replaceChildren(made);
    this.write();
    this.tint();
  }

  write() {
    const { ids, texts, kinds } = this.tokens;
    for (const [index, option] of [...this.parts.text.children].entries()) {
      const parts = kinds[index] === 2 ? [[`⟨${ids[index]}⟩`, true]] : visibleParts(texts[index], this.reader.marks);
      option.replaceChildren(...parts.map(([shown, sign]) => (sign ? element("span", "sign", shown) : document.createTextNode(shown))));
      option.setAttribute("aria-label", spoken(texts[index], ids[index], kinds[index]));
    }
  }

  tint() {
    const tint = TINTS[this.reader.tint];
    for (const [index, option] of [...this.parts.text.children].entries()) {
      const mark = this.tokens.rules[index] ? `m-${ruleClass(this.tokens.rules[index])}` : "";
      const special = this.tokens.kinds[index] === 1 ? "special" : "";
      option.className = [tint.of(this.tokens, index, this.response), mark, special].filter(Boolean).join(" ");
    }
  }

  /** Make a token the one that the keyboard is at. */
  activate(index) {
    const options = this.parts.text.children;
    if (!this.tokens || !options[index]) return;
    options[this.active]?.setAttribute("aria-selected", "false");
    this.active = index;
    options[index].setAttribute("aria-selected", "true");
    this.parts.text.setAttribute("aria-activedescendant", options[index].id);
    this.showNumbers(index);
    this.reveal(options[index]);
    this.reader.say(this.sentence(index));
  }

  /** Scroll as far as needed for the token not to be under the numbers. */
  reveal(option) {
    const box = option.getBoundingClientRect();
    const limit = Math.min(this.parts.numbers.getBoundingClientRect().top, window.innerHeight);
    if (box.bottom > limit - 8) window.scrollBy(0, box.bottom - limit + 60);
    else if (box.top < 8) window.scrollBy(0, box.top - 60);
  }

  press(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || !this.tokens) return;
    const last = this.tokens.texts.length - 1;
    const to = this.active < 0 ? null : {
      ArrowRight: () => Math.min(this.active + 1, last),
      ArrowLeft: () => Math.max(this.active - 1, 0),
      ArrowDown: () => this.across(1),
      ArrowUp: () => this.across(-1),
      Home: () => 0,
      End: () => last,
      r: () => this.ruled(1),
      R: () => this.ruled(-1),
    }[event.key];
    if (to) this.activate(to());
    else if (event.key === "n" || event.key === "p") this.move(event.key === "n" ? 1 : -1);
    else if (!this.reader.pressTint(event.key)) return;
    event.preventDefault();
  }

  /** The next token, or the one before, that a rule acted on; this one where there is none. */
  ruled(by) {
    for (let index = this.active + by; index >= 0 && index < this.tokens.rules.length; index += by) {
      if (this.tokens.rules[index]) return index;
    }
    return this.active;
  }

  /** The token above or below this one, as the text is broken into lines now. */
  across(by) {
    const options = this.parts.text.children;
    const here = options[this.active].getClientRects()[0];
    let best = this.active;
    let line = null;
    for (let index = this.active + by; index >= 0 && index < options.length; index += by) {
      const box = options[index].getClientRects()[0];
      if (Math.abs(box.top - here.top) < 4) continue;
      line ??= box.top;
      if (Math.abs(box.top - line) > 4) break;
      if (best === this.active || Math.abs(box.left - here.left) < Math.abs(options[best].getClientRects()[0].left - here.left)) best = index;
    }
    return best;
  }

  showNumbers(index) {
    const { numbers } = this.parts;
    if (!this.tokens) return;
    if (index < 0) {
      const hint = element("div", "whole");
      hint.append(element("dt", "", "Token"), element("dd", "", "point at one, or go to it with the arrow keys"));
      numbers.replaceChildren(hint);
      return;
    }
    numbers.replaceChildren(
      this.numberRow("token", `${index + 1} of ${this.response.count}, id ${this.tokens.ids[index]}: ${spoken(this.tokens.texts[index], this.tokens.ids[index], this.tokens.kinds[index])}${this.tokens.kinds[index] === 1 ? " (special)" : ""}`, "whole"),
      ...settings.columns.map((name) => this.numberRow(name, this.numberText(name, index), name === "rule" ? "whole" : "")),
    );
  }

  numberText(name, index) {
    if (name !== "rule") return formatNumber(this.tokens.columns[name]?.[index]);
    if (!this.tokens.columns.logp) return "not traced";
    return this.tokens.rules[index] || "none";
  }

  numberRow(name, value, className) {
    const row = element("div", className);
    const shown = element("dd", "", value);
    shown.dataset.number = name;
    row.append(element("dt", "", name), shown);
    return row;
  }

  /** The numbers of a token for one who hears them. */
  sentence(index) {
    const { texts, ids, kinds, columns, rules } = this.tokens;
    const parts = [`token ${index + 1} of ${this.response.count}: ${spoken(texts[index], ids[index], kinds[index])}`];
    if (!columns.logp) {
      parts.push(`old log p ${formatNumber(columns.old_logp[index])}`, `entropy ${formatNumber(columns.old_entropy[index])}`, "not traced");
      return parts.join(", ");
    }
    parts.push(
      `log p ${formatNumber(columns.logp[index])}`,
      `entropy ${formatNumber(columns.entropy[index])}`,
      `ratio ${formatNumber(columns.ratio[index])} between ${formatNumber(columns.low[index])} and ${formatNumber(columns.high[index])}`,
      `advantage ${formatNumber(columns.token_advantage[index])}`,
      rules[index] ? `rule ${rules[index].replaceAll("+", " and ")}` : "no rule",
    );
    return parts.join(", ");
  }
}
