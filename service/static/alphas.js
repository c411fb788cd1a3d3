/* Where the alphas come from: pasted, a known analysis, or a new one that is followed to its end. */
"use strict";

/* ---- where the alphas come from ---- */

let choosing = new AbortController(); // for as long as nobody chooses again where the alphas come from

/** From here on only this choice counts: what is still under way for an earlier one is dropped. */
function choose() {
  choosing.abort();
  choosing = new AbortController();
  return choosing.signal;
}

/** The numbers of an alphas document, where a list can stand for its layers. */
function fromDocument(parsed) {
  const { layers } = parsed;
  if (!Array.isArray(layers)) throw new Error("This JSON is neither a list of numbers nor an alphas document.");
  if (layers.some((one, i) => one.layer !== i || one.stack)) {
    throw new Error(
      "The layers of this document are not 0, 1, 2 … of one stack, which a list of numbers cannot say: allocate it "
      + "with “alphalloc allocate alphas.json”, or analyse the model here under “New analysis”.",
    );
  }
  const bare = layers.filter((one) => typeof one.alpha !== "number");
  if (bare.length) throw new Error(`Layer ${bare[0].layer} has no alpha.`);
  return {
    alphas: layers.map((one) => one.alpha),
    labels: layers.map(layerLabel),
    note: "its numbers alone: the schedule does not name the model, so its id is not that of “alphalloc allocate alphas.json”",
  };
}

function layerLabel(one) {
  return one.stack ? `${one.stack}.${one.layer}` : String(one.layer);
}

/** Return { alphas, labels } of pasted text, or null for none. Throws an Error that says what is wrong. */
function parsePasted(text) {
  const trimmed = text.trim();
  if (!trimmed) return null;
  let values;
  if (trimmed.startsWith("{") || trimmed.startsWith("[")) {
    let parsed;
    try {
      parsed = JSON.parse(trimmed);
    } catch (error) {
      throw new Error(`Not valid JSON: ${error.message}`);
    }
    if (!Array.isArray(parsed)) return fromDocument(parsed);
    values = parsed;
  } else {
    values = trimmed.split(/[\s,;]+/).filter(Boolean).map((word) => {
      const value = Number(word);
      if (Number.isNaN(value)) throw new Error(`“${word.slice(0, 40)}” is not a number.`);
      return value;
    });
  }
  return { alphas: values, labels: values.map((_, i) => String(i)) };
}

function pasted() {
  const note = $("pasted-note");
  let source = null;
  note.textContent = "";
  try {
    source = parsePasted($("pasted").value);
    if (source) note.textContent = [`${source.alphas.length} layers`, source.note].filter(Boolean).join("; ");
  } catch (error) {
    note.textContent = error.message;
  }
  take(source);
}

async function listAnalyses(signal) {
  const answer = await (await ask("v1/analyses?status=succeeded&limit=100", { signal })).json();
  signal.throwIfAborted();
  const options = answer.data.map((one) => {
    const option = document.createElement("option");
    option.value = one.id;
    const model = one.model ? one.model.id : one.request.model.id || one.request.model.path;
    option.textContent = `${model} · ${one.request.estimator} · ${one.created_at.slice(0, 16).replace("T", " ")}`;
    return option;
  });
  $("analysis").replaceChildren(...options);
  $("analysis-note").textContent = options.length ? "" : "There is none yet: start one under “New analysis”.";
}

async function takeAnalysis(id, signal) {
  if (!id) {
    take(null);
    return;
  }
  const table = await (await ask(`v1/analyses/${id}/layers`, { signal })).json();
  signal.throwIfAborted();
  const at = Object.fromEntries(table.columns.map((name, i) => [name, i]));
  const layers = table.rows.map((row) => ({ layer: row[at.layer], stack: row[at.stack], alpha: row[at.alpha] }));
  const bare = layers.filter((one) => one.alpha === null).length;
  $("analysis-note").textContent = `${layers.length} layers by ${table.estimator}${bare ? `, ${bare} without an alpha` : ""}`;
  take({ id, alphas: layers.map((one) => one.alpha), labels: layers.map(layerLabel) });
}

function chosenSource() {
  return document.querySelector("input[name=source]:checked").value;
}

async function switchSource() {
  const signal = choose();
  const chosen = chosenSource();
  for (const part of document.querySelectorAll("[data-source]")) part.hidden = part.dataset.source !== chosen;
  clearProblem();
  if (chosen === "paste") pasted();
  if (chosen === "known") {
    $("analysis-note").textContent = "asking …";
    await trying(async () => {
      await listAnalyses(signal);
      await takeAnalysis($("analysis").value, signal);
    });
  }
  if (chosen === "start" && state.job) await trying(() => takeJob(state.job, signal));
}

/** Make `source` what is allocated from; null for nothing. */
function take(source) {
  state.source = source;
  state.uniform = null;
  const measured = Boolean(source && source.id);
  $("report").disabled = !measured;
  $("confidence").disabled = !measured;
  $("confidence-note").hidden = measured;
  if (!measured) $("confidence").checked = false;
  if (source && source.alphas.length !== state.layers) { // a budget is kept for as long as it can mean the same
    const layers = source.alphas.length;
    state.layers = layers;
    $("budget-range").min = 1;
    $("budget-range").max = Math.max(16 * layers, 16);
    setBoth("budget", 5 * layers);
  }
  drawAlphas();
  if (source) allocate();
  else showNothing();
}

function drawAlphas(source = state.source) {
  if (!source || !source.alphas.every((one) => one === null || (Number.isFinite(one) && one > 0))) {
    $("alphas-chart").replaceChildren();
    return;
  }
  const known = source.alphas.filter((one) => one !== null);
  const summary = known.length
    ? `Alpha by layer, from ${Math.min(...known).toFixed(3)} to ${Math.max(...known).toFixed(3)}.`
    : "No alphas yet.";
  const from = known.length && Math.min(...known) > 1 ? 1 : 0;
  $("alphas-chart").replaceChildren(barChart({ labels: source.labels, values: source.alphas, name: "alpha", from, summary }));
}

/* ---- a new analysis ---- */

function analysisRequest() {
  const named = $("model").value.trim();
  const path = named.startsWith("/") || named.startsWith("~") || named.startsWith(".");
  const revision = $("revision").value.trim();
  const include = $("include").value.split(",").map((one) => one.trim()).filter(Boolean);
  return {
    model: path ? { path: named } : { id: named, ...(revision ? { revision } : {}) },
    estimator: $("estimator").value,
    stability: $("stability").checked,
    ...(include.length ? { layer_filter: { include } } : {}),
  };
}

/** Yield { event, data } of a server-sent stream; fetch is used because EventSource cannot send a key. */
async function* streamed(path, signal) {
  const response = await ask(path, { signal, headers: { Accept: "text/event-stream" } });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const blocks = held.split(/\r?\n\r?\n/);
    held = blocks.pop();
    for (const block of blocks) {
      const fields = { data: [] };
      for (const line of block.split(/\r?\n/)) {
        const colon = line.indexOf(":");
        if (colon < 1) continue;
        const text = line.slice(colon + 1).replace(/^ /, "");
        if (line.slice(0, colon) === "data") fields.data.push(text);
        else fields[line.slice(0, colon)] = text;
      }
      if (fields.data.length) yield { event: fields.event || "message", data: JSON.parse(fields.data.join("\n")) };
    }
  }
}

function tell(analysis) {
  const { done, total } = analysis.progress;
  const bar = $("job-bar");
  if (total) {
    bar.max = total;
    bar.value = done;
  } else {
    bar.removeAttribute("value");
  }
  const left = analysis.eta_seconds ? `, about ${Math.ceil(analysis.eta_seconds)} s left` : "";
  $("job-note").textContent = `${analysis.status}${total ? `: ${done} of ${total} matrices${left}` : ""}`;
}

/** Take the alphas of a job that is done; of one that runs show what there is, which nothing is allocated from. */
async function takeJob(job, signal) {
  if (job.status === "succeeded") {
    await takeAnalysis(job.id, signal);
  } else if (job.status === "running") {
    take(null);
    drawAlphas(job.soFar);
  }
}

/** Follow the job to its end and return it; its alphas appear layer by layer where nothing else has been chosen. */
async function follow(analysis, job) {
  const { signal } = job.abort;
  const layers = new Map();
  while (!["succeeded", "failed", "cancelled"].includes(analysis.status)) {
    tell(analysis);
    try {
      for await (const { event, data } of streamed(analysis.links.events.replace(/^\//, ""), signal)) {
        if (event === "progress") {
          tell({ status: "running", progress: data, eta_seconds: null });
        } else if (event === "layer") {
          layers.set(layerLabel(data), data);
          const known = [...layers.values()].sort((a, b) => (a.stack < b.stack ? -1 : a.stack > b.stack ? 1 : a.layer - b.layer));
          job.soFar = { alphas: known.map((one) => one.alpha), labels: known.map(layerLabel) };
          if (chosenSource() === "start") drawAlphas(job.soFar);
        }
      }
    } catch (error) {
      if (error.name === "AbortError" || error instanceof Refusal) throw error;
      await new Promise((resolve) => { setTimeout(resolve, 1000); }); // the connection broke; ask where it stands
    }
    analysis = await (await ask(`v1/analyses/${analysis.id}`, { signal })).json();
  }
  tell(analysis);
  return analysis;
}

async function start(event) {
  event.preventDefault();
  clearProblem();
  if (state.job) state.job.abort.abort();
  choose();
  const job = { id: null, status: "asked", soFar: null, abort: new AbortController() };
  state.job = job;
  $("job").hidden = false;
  $("job-note").textContent = "asking …";
  $("job-bar").removeAttribute("value");
  await trying(async () => {
    try {
      let analysis = await (await ask("v1/analyses", { method: "POST", body: analysisRequest(), signal: job.abort.signal })).json();
      job.id = analysis.id;
      job.status = "running";
      $("cancel").hidden = false;
      if (chosenSource() === "start") await takeJob(job);
      analysis = await follow(analysis, job);
      job.status = analysis.status;
      if (analysis.status === "failed") throw new Refusal(analysis.error);
      if (chosenSource() === "start") await takeJob(job, choosing.signal);
    } catch (error) {
      if (error instanceof Refusal) $("job-note").textContent = "not analysed";
      throw error;
    } finally {
      if (state.job === job) $("cancel").hidden = true;
    }
  });
}
