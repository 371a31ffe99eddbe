// What tokens are tinted by, and the legend of it. A ramp's steps are classes, so a theme changes them without a script.

const STEPS = settings.sequentialSteps - 1;
const SIDE = settings.divergingSteps;
const reach = (name) => data.scales[name] ?? 1;

function sequential(value, name) {
  if (!Number.isFinite(value)) return "";
  return `t-s${Math.round(STEPS * Math.sqrt(Math.min(Math.max(value, 0) / reach(name), 1)))}`;
}

function diverging(value, name) {
  if (Number.isNaN(value)) return "";
  const step = Math.round(SIDE * Math.sqrt(Math.min(Math.abs(value) / reach(name), 1)));
  return step === 0 ? "t-d0" : `t-${value < 0 ? "b" : "a"}${step}`;
}

/** The class of a token's rules: of the first that has one. "" without a rule. */
function ruleClass(rule) {
  return rule ? (settings.ruleClassOf[rule.split("+")[0]] ?? "masks") : "";
}

const number = (value) => formatNumber(Number(value.toPrecision(3)));

// name: {label, of(tokens, index, response) -> class, legend() -> texts at the ramp's ends and middle, and what it means}
const TINTS = {
  entropy: {
    label: "entropy",
    of: (tokens, index) => sequential((tokens.columns.entropy ?? tokens.columns.old_entropy)[index], "entropy"),
    ends: () => ["0", `${number(reach("entropy"))} nats`],
    about: "H at the token's position",
  },
  ratio: {
    label: "ratio",
    of: (tokens, index) => (tokens.columns.ratio ? diverging(Math.log(tokens.columns.ratio[index]), "ratio") : ""),
    ends: () => [`r ≤ ${number(Math.exp(-reach("ratio")))}`, "1", `r ≥ ${number(Math.exp(reach("ratio")))}`],
    about: "current to old policy, log scale; untinted where not traced",
  },
  advantage: {
    label: "advantage",
    of: (tokens, index, response) =>
      diverging(tokens.columns.token_advantage?.[index] ?? response.advantage ?? NaN, "advantage"),
    ends: () => [`A ≤ ${number(-reach("advantage"))}`, "0", `A ≥ ${number(reach("advantage"))}`],
    about: "after token shaping; the response's own where not traced",
  },
  bound: {
    label: "bound",
    of: (tokens, index) => {
      const inside = tokens.columns.bound?.[index] ?? NaN;
      // Beyond the bound is never shown as on it.
      const found = diverging(-inside, "bound");
      return found === "t-d0" && inside < 0 ? "t-a1" : found;
    },
    ends: () => [`inside by ${number(reach("bound"))}`, "at the bound", `beyond by ${number(reach("bound"))}`],
    about: "of the side that A is on: high − r where A > 0, r − low where A < 0",
  },
  rule: {
    label: "rule",
    of: (tokens, index) => (tokens.rules[index] ? `t-${ruleClass(tokens.rules[index])}` : ""),
    ends: () => [],
    about: "the first rule that acted on the token",
  },
};

/** Fill the legend of a tint. */
function drawLegend(target, tint) {
  const found = TINTS[tint];
  target.replaceChildren(element("b", "", found.label), element("span", "quiet", found.about));
  const ends = found.ends();
  if (ends.length) {
    const scale = element("span", "scale");
    scale.setAttribute("aria-hidden", "true");
    const below = Array.from({ length: SIDE }, (_, index) => `t-b${SIDE - index}`);
    const above = Array.from({ length: SIDE }, (_, index) => `t-a${index + 1}`);
    const steps = ends.length === 2 ? Array.from({ length: STEPS + 1 }, (_, index) => `t-s${index}`) : [...below, "t-d0", ...above];
    scale.append(...steps.map((step) => element("i", step)));
    const middle = ends.length === 3 ? `, ${ends[1]} in the middle` : "";
    target.append(element("span", "", ends[0]), scale, element("span", "", ends.at(-1) + middle), element("span", "quiet", "square-root scale"));
  }
  const present = new Set(data.rules.filter(Boolean).map(ruleClass));
  for (const [name, label] of Object.entries(settings.ruleClasses)) {
    if (present.has(name)) target.append(element("span", `key m-${name}${tint === "rule" ? ` t-${name}` : ""}`, label));
  }
  if (!present.size) target.append(element("span", "quiet", "no rule acted on a token here"));
}
