// What is picked, for one pane or two: the first says which prompt, the second shows the same one of another run or step.

const SAID_AFTER_MS = 150;

class Reader {
  constructor() {
    this.tint = "entropy";
    this.marks = true;
    this.panes = [new Pane(0, this)];
    this.saying = 0;
    this.picks = [this.opening(), null];
    this.controls();
    document.getElementById("reader-panes").append(this.panes[0].root);
    const pair = document.getElementById("reader-pair");
    pair.checked = data.runs.length > 1;
    this.pair(pair.checked);
  }

  /** What the page opens with: of the last step the response that rules acted on most, of a prompt that runs share. */
  opening() {
    const run = promptsOfRun.findIndex((prompts) => prompts.size > 0);
    const steps = [...byRun[run].keys()];
    const others = promptsOfRun.filter((prompts, other) => other !== run && prompts.size > 0);
    const shared = (response) => others.some((prompts) => prompts.has(response.prompt));
    const order = (response) => [others.length && shared(response) ? 1 : 0, response.ruled, -response.sample_id];
    const last = [...byRun[run].get(Math.max(...steps)).values()].flat();
    const best = last.reduce((a, b) => (compare(order(b), order(a)) > 0 ? b : a));
    return { run, step: best.step, prompt: best.prompt, sample: best.sample_id };
  }

  controls() {
    const tints = document.getElementById("reader-tints");
    for (const [name, { label }] of Object.entries(TINTS)) {
      const input = element("input");
      Object.assign(input, { type: "radio", name: "reader-tint", value: name, checked: name === this.tint });
      input.addEventListener("change", () => this.setTint(name));
      const box = element("label");
      box.append(input, label);
      tints.append(box);
    }
    document.getElementById("reader-marks").addEventListener("change", (event) => {
      this.marks = event.target.checked;
      for (const pane of this.panes) if (pane.tokens) pane.write();
    });
    document.getElementById("reader-pair").addEventListener("change", (event) => this.pair(event.target.checked));
    drawLegend(document.getElementById("reader-legend"), this.tint);
  }

  setTint(name) {
    this.tint = name;
    document.querySelector(`#reader-tints input[value='${name}']`).checked = true;
    drawLegend(document.getElementById("reader-legend"), name);
    for (const pane of this.panes) if (pane.tokens) pane.tint();
  }

  pressTint(key) {
    const name = Object.keys(TINTS)[Number(key) - 1];
    if (!name) return false;
    this.setTint(name);
    this.say(`tinted by ${name}`);
    return true;
  }

  /** One pane, or a second beside it: of the next run that has the prompt, or else of the same run. */
  pair(on) {
    if (!on) {
      this.panes.splice(1).forEach((pane) => pane.root.remove());
      this.picks[1] = null;
    } else {
      const { run, prompt, step, sample } = this.picks[0];
      const others = data.runs.map((_, index) => (run + 1 + index) % data.runs.length);
      const other = others.find((one) => one !== run && promptsOfRun[one].has(prompt)) ?? others[0];
      const beside = byRun[run].get(step).get(prompt).find((one) => one.sample_id !== sample);
      this.picks[1] = { run: other, step, prompt, sample: other === run && beside ? beside.sample_id : sample };
      this.panes.push(new Pane(1, this));
      document.getElementById("reader-panes").append(this.panes[1].root);
    }
    this.draw();
  }

  /** A choice in a pane; what does not fit it any more becomes the nearest that does. */
  pick(pane, change) {
    Object.assign(this.picks[pane.number], change);
    if ("run" in change && pane.number === 0) this.keepPrompt();
    this.draw();
  }

  /** Another run in the first pane: its own step that has the prompt, where one has. */
  keepPrompt() {
    const pick = this.picks[0];
    const found = stepsWith(pick.run, pick.prompt);
    if (found.length) pick.step = nearest(found, pick.step);
  }

  draw() {
    for (const pane of this.panes) {
      const pick = this.picks[pane.number];
      if (pane.number) pick.prompt = this.picks[0].prompt;
      const steps = pane.number ? stepsWith(pick.run, pick.prompt) : distinct(byRun[pick.run].keys());
      const response = settle(pick, steps);
      const otherwise = steps.length || pane.number === 0
        ? `The page has no response of ${data.runs[pick.run].name}.`
        : `The page has no response of ${data.runs[pick.run].name} to this prompt.`;
      pane.show(response, { run: pick.run, steps, otherwise });
    }
  }

  /** [value, label, group] of a step's prompts; with two panes those first that the other run has. */
  describePrompts(pane, prompts) {
    const entry = ([prompt, responses], group) => [prompt, `${responses[0].prompt_index}: ${promptLabels[prompt]}`, group];
    const other = this.picks[1]?.run;
    if (pane.number || other === undefined || other === this.picks[0].run) return prompts.map((one) => entry(one));
    const shared = ([prompt]) => promptsOfRun[other].has(prompt);
    return [
      ...prompts.filter(shared).map((one) => entry(one, "in both runs")),
      ...prompts.filter((one) => !shared(one)).map((one) => entry(one, "in this run alone")),
    ];
  }

  /** Tell who listens; only the last of what is said in quick succession. */
  say(text) {
    clearTimeout(this.saying);
    this.saying = setTimeout(() => { document.getElementById("reader-said").textContent = text; }, SAID_AFTER_MS);
  }
}

function compare(first, second) {
  const at = first.findIndex((value, index) => value !== second[index]);
  return at < 0 ? 0 : first[at] - second[at];
}

function stepsWith(run, prompt) {
  return distinct([...byRun[run]].filter(([, prompts]) => prompts.has(prompt)).map(([step]) => step));
}

function nearest(values, wanted) {
  return values.reduce((a, b) => (Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a));
}

/** The response that a pick says, its parts made to fit from the step on; null where there is none. */
function settle(pick, steps) {
  if (!steps.length) return null;
  pick.step = nearest(steps, pick.step);
  const prompts = byRun[pick.run].get(pick.step);
  if (!prompts.has(pick.prompt)) [pick.prompt] = prompts.keys();
  const samples = prompts.get(pick.prompt);
  const found = samples.find((one) => one.sample_id === pick.sample) ?? samples[0];
  pick.sample = found.sample_id;
  return found;
}

new Reader();
