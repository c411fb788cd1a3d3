/* Where the alphas come from: pasted, a known analysis, or a new one that is followed to its end. */
"use strict";

/* ---- where the alphas come from ---- */

function fromDocument(document_) {
  if (!document_ || !Array.isArray(document_.layers)) throw new Error("This JSON is neither a list of numbers nor an alphas document.");
  const missing = document_.layers.filter((one) => typeof one.alpha !== "number");
  if (missing.length) throw new Error(`Layer ${missing[0].layer} has no alpha.`);
  return { alphas: document_.layers.map((one) => one.alpha), labels: document_.layers.map(layerLabel) };
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
    if (source) note.textContent = `${source.alphas.length} layers`;
  } catch (error) {
    note.textContent = error.message;
  }
  take(source);
}

async function listAnalyses(chosen) {
  const answer = await (await ask("v1/analyses?status=succeeded&limit=100")).json();
  const options = answer.data.map((one) => {
    const option = document.createElement("option");
    option.value = one.id;
    const model = one.model ? one.model.id : one.request.model.id || one.request.model.path;
    option.textContent = `${model} · ${one.request.estimator} · ${one.created_at.slice(0, 16).replace("T", " ")}`;
    return option;
  });
  $("analysis").replaceChildren(...options);
  $("analysis-note").textContent = options.length ? "" : "There is none yet: start one under “New analysis”.";
  if (chosen) $("analysis").value = chosen;
}

async function takeAnalysis(id) {
  if (!id) {
    take(null);
    return;
  }
  const table = await (await ask(`v1/analyses/${id}/layers`)).json();
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
  const chosen = chosenSource();
  for (const part of document.querySelectorAll("[data-source]")) part.hidden = part.dataset.source !== chosen;
  clearProblem();
  if (chosen === "paste") pasted();
  if (chosen === "known") {
    $("analysis-note").textContent = "asking …";
    await trying(async () => {
      await listAnalyses();
      await takeAnalysis($("analysis").value);
    });
  }
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

function drawAlphas() {
  const { source } = state;
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

/** Follow the job to its end and return it; alphas appear layer by layer. */
async function follow(analysis, signal) {
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
          state.source = { alphas: known.map((one) => one.alpha), labels: known.map(layerLabel) };
          drawAlphas();
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
  const abort = new AbortController();
  $("job").hidden = false;
  $("job-note").textContent = "asking …";
  $("job-bar").removeAttribute("value");
  await trying(async () => {
    try {
      let analysis = await (await ask("v1/analyses", { method: "POST", body: analysisRequest(), signal: abort.signal })).json();
      state.job = { id: analysis.id, abort };
      $("cancel").hidden = false;
      take(null);
      analysis = await follow(analysis, abort.signal);
      if (analysis.status === "failed") throw new Refusal(analysis.error);
      if (analysis.status === "succeeded") await takeAnalysis(analysis.id);
    } catch (error) {
      if (error instanceof Refusal) $("job-note").textContent = "not analysed";
      throw error;
    } finally {
      $("cancel").hidden = true;
    }
  });
}
