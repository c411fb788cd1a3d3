/* From alphas to a schedule: the controls, the comparison, and what can be taken along. */
"use strict";

const PAUSE = 250; // milliseconds between two settings while a slider moves: at most 240 a minute, of two requests each
                   // (the question and what it is compared with), which is below the service's default rate of 600
const SLIDERS = { beta: [0, 8, 0.1], eps: [0, 1, 0.05], temperature: [0.05, 3, 0.05] };

/* ---- the allocation ---- */

function rule() {
  return state.methods.rules.find((one) => one.name === $("rule").value);
}

function params() {
  const found = {};
  for (const field of document.querySelectorAll("[data-param]")) {
    const text = field.value.trim();
    if (!text) continue;
    const list = field.dataset.kind === "array";
    found[field.dataset.param] = list ? text.split(/[\s,]+/).filter(Boolean).map(Number) : Number(text);
  }
  return found;
}

function question(changes = {}) {
  const most = Number($("max").value);
  return {
    source: state.source.id ? { analysis_id: state.source.id } : { alphas: state.source.alphas },
    budget: { total: Number($("budget").value) },
    method: $("rule").value,
    params: params(),
    bounds: { min: Number($("min").value), max: most || null },
    rounding: $("rounding").value,
    top_k: Number($("top-k").value),
    confidence: $("confidence").checked,
    store: false,
    ...changes,
  };
}

let waiting = 0;
let asked = 0;
let running = null;
let ranging = false; // whether the service still works on an answer with ranges, wanted or not
let next = false; // whether a setting waits for that to end

/** Ask for the schedule, soon: at most one question a PAUSE, and only the last one's answer counts. */
function allocate() {
  if (waiting || !state.source || !state.methods) return;
  waiting = window.setTimeout(() => {
    waiting = 0;
    if (running) running.abort();
    next = ranging && $("confidence").checked;
    if (next) return;
    asked = Date.now();
    running = new AbortController();
    trying(() => askSchedule(running.signal));
  }, Math.max(0, asked + PAUSE - Date.now()));
}

/** Ask with ranges. They take seconds of the service's processor, which no abort saves: one question at a time. */
async function askRanges(body) {
  ranging = true;
  try {
    return await (await ask("v1/allocations", { method: "POST", body })).text();
  } finally {
    ranging = false;
    if (next) {
      next = false;
      allocate();
    }
  }
}

async function askSchedule(signal) {
  $("result").setAttribute("aria-busy", "true");
  const body = question();
  try {
    const text = body.confidence
      ? await askRanges(body)
      : await (await ask("v1/allocations", { method: "POST", body, signal })).text();
    signal.throwIfAborted();
    state.text = text;
  } catch (error) {
    signal.throwIfAborted();
    if (error instanceof Refusal) showRefused();
    throw error;
  } finally {
    if (!signal.aborted) $("result").removeAttribute("aria-busy");
  }
  state.schedule = JSON.parse(state.text);
  clearProblem();
  showSchedule();
  if ($("against").value === "uniform") await askUniform(signal);
}

/** The same budget spread evenly, by the service's own rule: what the schedule is compared with. */
async function askUniform(signal) {
  const even = question({ method: "uniform", params: {}, confidence: false });
  const name = JSON.stringify([even.budget, even.bounds, even.rounding, even.top_k, state.source.alphas.length]);
  if (!state.uniform || state.uniform.name !== name) {
    try {
      state.uniform = { name, schedule: await (await ask("v1/allocations", { method: "POST", body: even, signal })).json() };
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      state.uniform = null; // the schedule itself stands
    }
  }
  showSchedule();
}

function counts(schedule) {
  return schedule.layers.map((one) => one.num_experts);
}

function named(schedule) {
  return `${schedule.rule.name}, ${schedule.totals.num_experts} experts`;
}

/** What the schedule is compared with: { name, values }, or null. */
function other() {
  const layers = state.schedule.layers.length;
  const kept = $("against").value === "kept";
  const schedule = kept ? state.kept : state.uniform && state.uniform.schedule;
  if (!schedule || schedule.layers.length !== layers) return null;
  return { name: kept ? `kept: ${named(schedule)}` : "uniform", values: counts(schedule) };
}

function signed(value) {
  return value > 0 ? `+${value}` : value < 0 ? `−${-value}` : "0";
}

function showSchedule() {
  const { schedule } = state;
  $("experts-chart").classList.remove("stale");
  const values = counts(schedule);
  const labels = schedule.layers.map(layerLabel);
  const { num_experts: total, num_layers: layers, fewest_experts: fewest, most_experts: most } = schedule.totals;
  const ranges = schedule.confidence
    ? schedule.layers.map((one) => {
      const range = schedule.confidence.ranges.find((of) => of.layer === one.layer && (of.stack || "") === (one.stack || ""));
      return range ? [range.low, range.high] : null;
    })
    : null;
  const against = other();
  const said = `${total} experts in ${layers} layers, ${fewest} to ${most} a layer`;
  const moved = schedule.confidence ? `; ${Math.round(schedule.confidence.changed * 100)} % of draws change it` : "";
  $("totals").textContent = `${said}${moved}`;
  $("experts-chart").replaceChildren(barChart({ labels, values, name: "experts", others: against, ranges, summary: `${said}.` }));
  $("difference").textContent = against ? differenceWords(values, against) : "";
  $("against-head").textContent = against ? against.name : "–";
  $("rows").replaceChildren(...schedule.layers.map((one, i) => tableRow([
    labels[i],
    typeof one.alpha === "number" ? one.alpha.toFixed(3) : "–",
    String(values[i]),
    ranges && ranges[i] ? `${ranges[i][0]} – ${ranges[i][1]}` : "–",
    against ? String(against.values[i]) : "–",
    against ? signed(values[i] - against.values[i]) : "–",
    String(one.top_k),
  ])));
  $("warnings").replaceChildren(...(schedule.warnings || []).map((text) => {
    const item = document.createElement("li");
    item.textContent = text;
    return item;
  }));
  for (const button of document.querySelectorAll("#copy-json, #copy-curl, #keep, #exports button")) button.disabled = false;
}

function differenceWords(values, against) {
  const changes = values.map((value, i) => value - against.values[i]);
  const more = changes.filter((one) => one > 0).length;
  const fewer = changes.filter((one) => one < 0).length;
  if (!more && !fewer) return `The same as ${against.name} in every layer.`;
  const sum = changes.reduce((all, one) => all + one, 0);
  const moved = changes.filter((one) => one > 0).reduce((all, one) => all + one, 0);
  const total = sum ? `, ${signed(sum)} in all` : `; ${moved} experts lie elsewhere`;
  return `Against ${against.name}: ${more} layers have more, ${fewer} fewer${total}.`;
}

function tableRow(cells) {
  const row = document.createElement("tr");
  for (const [i, text] of cells.entries()) {
    const cell = document.createElement(i ? "td" : "th");
    if (!i) cell.scope = "row";
    cell.textContent = text;
    row.append(cell);
  }
  return row;
}

function forgetSchedule(words) {
  state.schedule = null;
  state.text = "";
  $("totals").textContent = words;
  $("difference").textContent = "";
  for (const id of ["rows", "warnings"]) $(id).replaceChildren();
  for (const button of document.querySelectorAll("#copy-json, #copy-curl, #keep, #exports button")) button.disabled = true;
}

/** The answer to a question about what is gone would come to another page. */
function withdraw() {
  window.clearTimeout(waiting);
  waiting = 0;
  next = false;
  if (running) running.abort();
  $("result").removeAttribute("aria-busy");
}

function showNothing() {
  withdraw();
  forgetSchedule("Give some alphas to see a schedule.");
  $("experts-chart").replaceChildren();
}

/** The last picture stays, faded: a slider that passes a forbidden place does not make the page jump. */
function showRefused() {
  forgetSchedule("No schedule for these settings: see the message above.");
  $("experts-chart").classList.add("stale");
}

function keep() {
  state.kept = state.schedule;
  const option = $("against").querySelector("option[value=kept]");
  option.disabled = false;
  option.textContent = `kept: ${named(state.kept)}`;
  $("against").value = "kept";
  showSchedule();
}

/* ---- taking it along ---- */

async function copy(text, what) {
  const preview = $("preview");
  preview.textContent = text;
  preview.hidden = false;
  try {
    await navigator.clipboard.writeText(text);
    $("copied").textContent = `Copied: ${what}.`;
  } catch {
    const range = document.createRange();
    range.selectNodeContents(preview);
    window.getSelection().removeAllRanges();
    window.getSelection().addRange(range);
    $("copied").textContent = `The browser does not let this page copy. The ${what} is selected below: press Ctrl+C.`;
  }
}

function curlLine() {
  const body = JSON.stringify(question({ store: true }), null, 1).replace(/\n\s*/g, " ").replace(/'/g, "'\\''");
  const key = state.key ? " \\\n  --header \"Authorization: Bearer $ALPHALLOC_API_KEY\"" : "";
  return `curl --silent --fail ${new URL("v1/allocations", document.baseURI).href}${key} \\\n  --json '${body}'`;
}

/** Have the service keep the schedule of the settings as they stand, which may be on its way here; return its id. */
async function storedSchedule() {
  const body = question({ store: true });
  const name = JSON.stringify(body);
  if (!state.stored.has(name)) {
    const { id } = await (await ask("v1/allocations", { method: "POST", body })).json();
    state.stored.set(name, id);
  }
  return state.stored.get(name);
}

async function copyExport(format) {
  clearProblem();
  await trying(async () => {
    const id = await storedSchedule();
    const rank = $("rank").value ? `&r=${encodeURIComponent($("rank").value)}` : "";
    const answer = await ask(`v1/allocations/${id}/export?format=${encodeURIComponent(format)}${rank}`);
    const notes = JSON.parse(answer.headers.get("X-Alphalloc-Notes") || "[]");
    await copy(await answer.text(), [`${format} configuration`, ...notes].join("; "));
  });
}

/** What the report shows beside the alphas: the schedule, unless this key may not have it kept. */
async function reportQuery() {
  if (!state.schedule) return "";
  try {
    return `?allocation=${await storedSchedule()}`;
  } catch (error) {
    if (error instanceof Refusal && error.problem.code === "insufficient-scope") return "";
    throw error;
  }
}

async function saveReport() {
  clearProblem();
  await trying(async () => {
    const { id } = state.source;
    const answer = await ask(`v1/analyses/${id}/report${await reportQuery()}`);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = "report.html";
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

/* ---- controls ---- */

function setBoth(name, value) {
  const range = $(`${name}-range`);
  if (Number(range.max) < value) range.max = value;
  range.value = value;
  $(name).value = value;
}

/** A number and a slider that say the same; `changed` when either moves. */
function pairUp(field, range, changed) {
  range.addEventListener("input", () => {
    field.value = range.value;
    changed();
  });
  field.addEventListener("input", () => {
    if (field.value === "") return;
    if (Number(range.max) < Number(field.value)) range.max = field.value;
    range.value = field.value;
    changed();
  });
}

function options(select, entries) {
  select.replaceChildren(...entries.map((one) => {
    const option = document.createElement("option");
    option.value = one.name;
    option.textContent = one.name;
    option.title = one.summary;
    return option;
  }));
}

function element(tag, attributes, text) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text) made.textContent = text;
  return made;
}

/** The settings of the chosen rule: a slider for a number, a line of text for a list. */
function showParams() {
  const chosen = rule();
  $("rule-note").textContent = `${chosen.summary}${chosen.source ? ` (${chosen.source})` : ""}`;
  const made = Object.entries(chosen.params_schema.properties || {}).map(([name, schema]) => {
    const list = schema.type === "array";
    const box = element("div", list ? {} : { class: "slider" });
    const id = `param-${name}`;
    const label = element("label", { for: list ? id : `${id}-range` }, `${name} `);
    label.append(element("span", { class: "hint" }, list ? `${schema.description}, with commas` : schema.description || ""));
    box.append(label);
    const start = schema.default ?? (list && state.schedule ? counts(state.schedule) : "");
    const kind = list ? { spellcheck: "false" } : { type: "number", "aria-label": `${name}, as a number` };
    const field = element("input", { id, "data-param": name, "data-kind": list ? "array" : "number", ...kind });
    field.value = String(start);
    box.append(field);
    if (list) {
      field.addEventListener("change", allocate);
      return box;
    }
    const [min, max, step] = SLIDERS[name] || [0, 10, 0.1];
    for (const [key, value] of Object.entries({ min, step })) field.setAttribute(key, value);
    const range = element("input", { type: "range", id: `${id}-range`, min, max: Math.max(max, Number(start) || 0), step });
    range.value = start;
    pairUp(field, range, allocate);
    box.append(range);
    return box;
  });
  $("params").replaceChildren(...made);
}

function showExports() {
  const formats = state.methods.exports.filter((one) => !["parquet", "json"].includes(one.name));
  $("exports").replaceChildren(...formats.map((one) => {
    const button = element("button", { type: "button", "data-format": one.name }, one.name);
    button.disabled = !state.schedule;
    button.addEventListener("click", () => copyExport(one.name));
    return button;
  }));
}

async function begin() {
  clearProblem();
  await trying(async () => {
    state.methods = await (await ask("v1/methods")).json();
    options($("rule"), state.methods.rules);
    options($("rounding"), state.methods.roundings);
    options($("estimator"), state.methods.estimators);
    showParams();
    showExports();
    const info = await (await ask("v1/info")).json();
    $("version").textContent = `alphalloc ${info.version}`;
    await switchSource();
  });
}

function connect() {
  for (const name of ["budget", "min", "max"]) pairUp($(name), $(`${name}-range`), allocate);
  for (const radio of document.querySelectorAll("input[name=source]")) radio.addEventListener("change", switchSource);
  $("pasted").addEventListener("input", pasted);
  $("rule").addEventListener("change", () => { showParams(); allocate(); });
  for (const id of ["rounding", "confidence"]) $(id).addEventListener("change", allocate);
  $("top-k").addEventListener("input", allocate);
  $("analysis").addEventListener("change", () => { clearProblem(); trying(() => takeAnalysis($("analysis").value, choose())); });
  $("refresh").addEventListener("click", switchSource);
  $("report").addEventListener("click", saveReport);
  $("start-form").addEventListener("submit", start);
  $("cancel").addEventListener("click", () => trying(() => ask(`v1/analyses/${state.job.id}/cancel`, { method: "POST" })));
  $("against").addEventListener("change", () => { if (state.schedule) { showSchedule(); allocate(); } });
  $("keep").addEventListener("click", keep);
  $("copy-json").addEventListener("click", () => copy(state.text, "schedule as JSON"));
  $("copy-curl").addEventListener("click", () => copy(curlLine(), "curl line"));
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    state.key = $("key").value.trim();
    try {
      sessionStorage.setItem("alphalloc-key", state.key);
    } catch { /* a browser that keeps nothing: the key lives as long as the page */ }
    begin();
  });
  try {
    state.key = sessionStorage.getItem("alphalloc-key") || "";
    $("key").value = state.key;
  } catch { /* as above */ }
}

connect();
begin();
