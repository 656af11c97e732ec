// Upload a scan, watch its job, open or fetch the result. All text goes in as text, never as markup.
"use strict";

const POLL_MS = 1000;
const HEADERS = { "X-DiffuGTS": "1" };
const ENDED = ["done", "failed", "cancelled", "deleted"];
const byId = (id) => document.getElementById(id);
const shown = new Map(); // id of a job -> its list item
let timer = 0;

async function call(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { ...HEADERS, ...options.headers } });
  if (answer.status === 401) { askForToken(); }
  if (!answer.ok) { throw new Error(await sentence(answer)); }
  return answer.status === 204 ? null : answer.json();
}

async function sentence(answer) {
  try { return (await answer.json()).detail; } catch { return `the server answered ${answer.status}`; }
}

// --- token ---------------------------------------------------------------------------------------------------

function askForToken() {
  byId("token-form").hidden = false;
  byId("job-form").hidden = true;
  byId("token").focus();
}

byId("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  byId("token-problem").textContent = "";
  try {
    await call("/v1/session", { method: "POST", headers: { Authorization: `Bearer ${byId("token").value}` } });
    byId("token").value = "";
    byId("token-form").hidden = true;
    byId("job-form").hidden = false;
    refresh();
  } catch (error) { byId("token-problem").textContent = error.message; }
});

// --- a new job -----------------------------------------------------------------------------------------------

function phrases() {
  return byId("prompts").value.split("\n").map((line) => line.trim()).filter(Boolean);
}

byId("prompts").addEventListener("change", async () => {
  const texts = phrases();
  byId("understood").textContent = "";
  if (!texts.length) { return; }
  try {
    const query = new URLSearchParams(texts.map((text) => ["text", text]));
    const { prompts } = await call(`/v1/prompts?${query}`);
    byId("understood").textContent = prompts.map((p) => p.error ??
      `${p.text}: ${p.negated ? "absence of " : ""}${p.finding} in ${p.anatomy ?? "any anatomy"}`).join(" · ");
  } catch (error) { byId("understood").textContent = error.message; }
});

byId("job-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = new FormData(event.target);
  for (const text of phrases()) { form.append("prompt", text); }
  if (!form.get("series")) { form.delete("series"); }
  if (!form.get("region")?.size) { form.delete("region"); }
  byId("problem").textContent = "";
  byId("submit").disabled = true;
  try {
    show(await upload(form));
    watch();
  } catch (error) {
    byId("problem").textContent = error.message;
  } finally {
    byId("submit").disabled = false;
    byId("upload").hidden = true;
  }
});

function upload(form) { // fetch does not tell how much has been sent
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "/v1/jobs");
    for (const [name, value] of Object.entries(HEADERS)) { request.setRequestHeader(name, value); }
    request.responseType = "json";
    request.upload.onprogress = (event) => {
      byId("upload").hidden = false;
      byId("upload").value = event.total ? event.loaded / event.total : 0;
    };
    request.onload = () => {
      if (request.status === 401) { askForToken(); }
      if (request.status === 202) { resolve(request.response); }
      else { reject(new Error(request.response?.detail ?? `the server answered ${request.status}`)); }
    };
    request.onerror = () => reject(new Error("the server cannot be reached, or refused the upload for its size"));
    request.send(form);
  });
}

// --- the jobs ------------------------------------------------------------------------------------------------

function words(job) {
  if (job.status === "queued") { return job.position ? `queued, ${job.position} before it` : "queued"; }
  if (job.status === "running") { return job.stage ? `running: ${job.stage}` : "running"; }
  const until = job.status === "done" ? `, kept until ${new Date(job.expires).toLocaleTimeString()}` : "";
  return job.status + until;
}

function show(job) {
  let item = shown.get(job.id);
  if (!item) {
    item = byId("job").content.firstElementChild.cloneNode(true);
    item.querySelector("h3").textContent = job.prompts.join(", ");
    byId("jobs").prepend(item);
    shown.set(job.id, item);
  }
  if (item.dataset.status && item.dataset.status !== job.status) {
    byId("news").textContent = `${job.prompts.join(", ")}: ${job.status}`;
  }
  const state = item.querySelector(".state");
  if (state.textContent !== words(job)) { state.textContent = words(job); }
  const bar = item.querySelector("progress");
  bar.hidden = job.status !== "running";
  bar.setAttribute("aria-label", `progress of ${job.prompts.join(", ")}`);
  if (job.progress == null) { bar.removeAttribute("value"); } else { bar.value = job.progress; }
  if (item.dataset.status === job.status) { return; }
  item.dataset.status = job.status;
  item.querySelector(".problem").textContent = job.error ?? "";
  item.querySelector(".warnings").replaceChildren(...job.warnings.map((text) => element("li", text)));
  item.querySelector("table").hidden = !job.results;
  item.querySelector("tbody").replaceChildren(...Object.entries(job.results ?? {}).map(row));
  item.querySelector(".actions").replaceChildren(...actions(job));
}

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) { made.setAttribute(key, value); }
  return made;
}

function row([prompt, found]) {
  const line = document.createElement("tr");
  line.append(element("th", prompt, { scope: "row" }), element("td", found.lesions),
    element("td", `${found.volume_ml.toFixed(2)} ml`), element("td", found.score.toFixed(2)));
  return line;
}

function actions(job) {
  const made = [];
  if (job.status === "done") {
    made.push(element("a", "Open the viewer", { href: job.links.viewer, target: "_blank", rel: "noopener" }),
      element("a", "Open the report", { href: job.links.report, target: "_blank", rel: "noopener" }),
      element("a", "Download", { href: job.links.results, download: "" }));
  }
  if (["queued", "running", "done"].includes(job.status)) {
    const button = element("button", job.status === "done" ? "Delete" : "Cancel", { type: "button" });
    button.addEventListener("click", async () => {
      button.disabled = true;
      try { show(await call(`/v1/jobs/${job.id}`, { method: "DELETE" })); }
      catch (error) { byId("problem").textContent = error.message; }
    });
    made.push(button);
  }
  return made;
}

async function refresh() {
  try {
    const jobs = await call("/v1/jobs");
    const known = new Set(jobs.map((job) => job.id));
    for (const [id, item] of shown) { if (!known.has(id)) { item.remove(); shown.delete(id); } }
    jobs.forEach(show);
    byId("none").hidden = shown.size > 0;
    byId("problem").dataset.lost = "";
    return jobs;
  } catch (error) {
    byId("news").textContent = error.message;
    return [];
  }
}

async function watch() {
  clearTimeout(timer);
  const jobs = await refresh();
  if (jobs.some((job) => !ENDED.includes(job.status))) { timer = setTimeout(watch, POLL_MS); }
}

watch();
