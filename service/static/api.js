/* What the page knows, and how it asks the API of the service that it came from. Text is only ever set as text. */
"use strict";

const $ = (id) => document.getElementById(id);

const state = {
  key: "",
  methods: null,
  source: null, // { alphas, labels, id? }
  layers: 0,
  text: "", // the schedule as the API gave it
  schedule: null,
  uniform: null,
  kept: null,
  stored: new Map(), // ids of kept schedules, by the question
  job: null, // { id, status, soFar, abort }
};

/* ---- the API ---- */

class Refusal extends Error {
  constructor(problem) {
    super(problem.detail || problem.title || "the request failed");
    this.problem = problem;
  }
}

async function ask(path, { method = "GET", body, headers = {}, signal } = {}) {
  const sent = { ...headers };
  if (state.key) sent.Authorization = `Bearer ${state.key}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers: sent, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal({ detail: `The service does not answer (${error.message}).`, code: "unreachable" });
  }
  if (response.ok) return response;
  let problem = {};
  try {
    problem = await response.json();
  } catch (error) { // not a problem document: something between us and the service answered
    if (error.name === "AbortError") throw error;
  }
  throw new Refusal({ detail: `The answer was ${response.status} ${response.statusText}.`, ...problem });
}

function showProblem(problem) {
  const box = $("problem");
  const said = document.createElement("p");
  said.textContent = problem.detail || problem.title;
  const parts = [said];
  const fields = problem.errors || [];
  if (fields.length > 1) {
    const list = document.createElement("ul");
    for (const field of fields) {
      const item = document.createElement("li");
      item.textContent = `${field.pointer || "body"}: ${field.detail}`;
      list.append(item);
    }
    parts.push(list);
  }
  const small = document.createElement("p");
  small.className = "code";
  small.textContent = [problem.code, problem.request_id && `request ${problem.request_id}`].filter(Boolean).join(" · ");
  parts.push(small);
  box.replaceChildren(...parts);
  box.hidden = false;
}

function clearProblem() {
  $("problem").hidden = true;
}

/** Run `work` and show what it was refused for. */
async function trying(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    if (!(error instanceof Refusal)) throw error;
    showProblem(error.problem);
    if (error.problem.status === 401) $("access").open = true;
    return undefined;
  }
}
