// What can be picked: the page's responses by run, step and prompt, and the lists that offer them.

/** Responses by step, then by prompt, in the order of sampling. */
function groupResponses(responses) {
  const steps = new Map();
  for (const response of responses) {
    if (!steps.has(response.step)) steps.set(response.step, new Map());
    const prompts = steps.get(response.step);
    if (!prompts.has(response.prompt)) prompts.set(response.prompt, []);
    prompts.get(response.prompt).push(response);
  }
  return steps;
}

const byRun = data.runs.map((_, run) => groupResponses(data.responses.filter((response) => response.run === run)));
const promptsOfRun = byRun.map((steps) => new Set([...steps.values()].flatMap((prompts) => [...prompts.keys()])));

/** Offer [value, label, group] each; those of a group follow one another. */
function fillSelect(select, entries, chosen) {
  select.replaceChildren();
  let box = null;
  for (const [value, label, group] of entries) {
    if (group && box?.label !== group) {
      box = element("optgroup");
      box.label = group;
      select.append(box);
    }
    const option = element("option", "", label);
    option.value = value;
    (group ? box : select).append(option);
  }
  select.value = String(chosen);
}
