"use strict";
// The panel: what is shown, where, and the lesions; everything the mouse does has a key.

const WINDOWS = { "soft tissue": [-160, 240], lung: [-1350, 150], brain: [0, 80], bone: [-450, 1050], liver: [-45, 105] };
const START = { pseudo_healthy: 1, attention: 0.6, residual: 0.7, uncertainty: 0.7, probability: 0.6, mask: 0.4 };
const byId = (id) => document.getElementById(id);
const state = { cases: [], case: null, prompt: null, lesion: -1, opacity: {}, shown: {} };
let pictures;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function say(text) {
  byId("said").textContent = text;
}

function fail(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = false;
  document.body.dataset.state = "failed";
}

function words(mm) {
  // Signed: the scan's origin need not be the patient's middle, so the sign does not tell the side.
  return ["R", "A", "S"].map((letter, axis) => `${letter} ${mm[axis].toFixed(1).replace("-", "−")}`);
}

function onMove(location) {
  const values = location.values.map(({ name, value }) => {
    const label = name.replace(/\.nii\.gz$/, "").replace("_", "-");
    return `${label} ${Number(value).toPrecision(3).replace(/\.?0+$/, "")}`;
  });
  byId("place").textContent = `${words(location.mm).join(", ")} mm · ${values.join(" · ")}`;
}

async function openCase(number) {
  document.body.dataset.state = "loading";
  state.case = state.cases[number];
  byId("title").textContent = state.case.name;
  document.title = `${state.case.name} · DiffuGTS viewer`;
  fill(byId("prompt"), state.case.prompts.map((prompt) => prompt.text));
  byId("report-row").hidden = !state.case.report;
  if (state.case.report) byId("report").href = state.case.report;
  byId("presets-row").hidden = state.case.modality !== "ct";
  await pictures.openScan(state.case.scan, state.case.prompts[0].window);
  showWindow();
  await openPrompt(0);
}

async function openPrompt(number) {
  document.body.dataset.state = "loading";
  state.prompt = state.case.prompts[number];
  state.lesion = -1;
  const { lesions, score, volume_ml: volume, text } = state.prompt;
  const found = lesions.length ? `${lesions.length} lesion${lesions.length > 1 ? "s" : ""}, ${volume.toFixed(2)} ml` : "Nothing found";
  byId("answer").textContent = `${found}; image-level score ${score.toFixed(2)}`;
  pictures.dropLayers();
  showLayers();
  showLesions();
  showWarnings([...state.case.warnings, ...state.prompt.warnings]);
  for (const layer of state.prompt.layers) await apply(layer);
  if (lesions.length) goToLesion(0);
  else pictures.nv.createOnLocationChange();
  document.body.dataset.state = "ready";
  say(`${text}: ${byId("answer").textContent}`);
}

function fill(select, texts) {
  select.replaceChildren(...texts.map((text, index) => make("option", { value: index }, text)));
}

function showLayers() {
  const rows = state.prompt.layers.map((layer, index) => {
    state.shown[layer.name] ??= layer.shown;
    state.opacity[layer.name] ??= START[layer.name];
    const box = make("input", { type: "checkbox", id: `layer-${layer.name}` });
    box.checked = state.shown[layer.name];
    box.addEventListener("change", () => toggle(layer, box.checked));
    const fade = make("input", { type: "range", min: 0, max: 100, "aria-label": `${layer.label}: opacity in per cent` });
    fade.value = 100 * state.opacity[layer.name];
    fade.id = `fade-${layer.name}`;
    fade.addEventListener("input", () => {
      state.opacity[layer.name] = fade.value / 100;
      if (!box.checked) toggle(layer, (box.checked = true));
      else apply(layer);
    });
    return make("li", {}, make("label", {}, box, ` ${index + 1} ${layer.label}`), fade);
  });
  byId("layers").replaceChildren(...rows);
}

async function apply(layer) {
  try {
    await pictures.show(layer, state.shown[layer.name] ? state.opacity[layer.name] : 0);
  } catch (error) {
    fail(`${layer.label} could not be loaded. Is diffugts view still running?`);
    throw error;
  }
}

async function toggle(layer, shown) {
  state.shown[layer.name] = shown;
  byId(`layer-${layer.name}`).checked = shown;
  await apply(layer);
  say(`${layer.label} ${shown ? "on" : "off"}`);
}

function showLesions() {
  const rows = state.prompt.lesions.map((lesion, index) => {
    const button = make("button", { type: "button" }, `Go to ${lesion.id}`);
    button.addEventListener("click", () => goToLesion(index));
    const cell = (number, digits) => make("td", { class: "number" }, number.toFixed(digits));
    const row = make("tr", {}, make("th", { scope: "row" }, button));
    row.append(cell(lesion.volume_ml, 2), cell(lesion.longest_diameter_mm, 1), cell(lesion.score, 2));
    return row;
  });
  if (!rows.length) rows.push(make("tr", {}, make("td", { colspan: 4 }, "Nothing was found for this prompt.")));
  byId("lesions").replaceChildren(...rows);
}

function goToLesion(index) {
  const count = state.prompt.lesions.length;
  if (!count) return;
  state.lesion = (index + count) % count;
  const lesion = state.prompt.lesions[state.lesion];
  [...byId("lesions").rows].forEach((row, i) => {
    if (i === state.lesion) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  });
  pictures.goTo(lesion.centre_mm);
  say(`Lesion ${lesion.id} of ${count} at ${words(lesion.centre_mm).join(", ")} mm`);
}

function showWarnings(warnings) {
  byId("warnings").replaceChildren(...warnings.map((warning) => make("li", {}, warning)));
  byId("warnings-row").hidden = !warnings.length;
}

function showWindow() {
  byId("low").value = Number(pictures.scan.cal_min.toPrecision(5));
  byId("high").value = Number(pictures.scan.cal_max.toPrecision(5));
  const known = Object.values(WINDOWS).findIndex(([low, high]) => low === pictures.scan.cal_min && high === pictures.scan.cal_max);
  byId("preset").value = known < 0 ? "" : known;
}

function readWindow() {
  const [low, high] = [byId("low").valueAsNumber, byId("high").valueAsNumber];
  if (low < high) pictures.setWindow(low, high);
  showWindow();
}

const STEPS = {
  ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0],
  PageUp: [0, 0, 1], PageDown: [0, 0, -1],
}; // the patient's right is on the left

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in STEPS) pictures.step(...STEPS[key].map((voxels) => voxels * (event.shiftKey ? 5 : 1)));
  else if (key === "n") goToLesion(state.lesion + 1);
  else if (key === "p") goToLesion(state.lesion < 0 ? -1 : state.lesion - 1);
  else if (key === "0") state.prompt.layers.forEach((layer) => toggle(layer, false));
  else if (state.prompt.layers[key - 1]) toggle(state.prompt.layers[key - 1], !state.shown[state.prompt.layers[key - 1].name]);
  else return;
  event.preventDefault();
  event.stopImmediatePropagation(); // NiiVue has keys of its own
}

function listen() {
  byId("case").addEventListener("change", (event) => openCase(Number(event.target.value)).catch(giveUp));
  byId("prompt").addEventListener("change", (event) => openPrompt(Number(event.target.value)).catch(giveUp));
  byId("planes").addEventListener("change", (event) => pictures.nv.setSliceType(Number(event.target.value)));
  byId("depth").addEventListener("input", ({ target }) => {
    pictures.cut(target.value / 100);
    target.setAttribute("aria-valuetext", target.value > 0 ? `${target.value} per cent cut away` : "not cut");
  });
  fill(byId("preset"), Object.keys(WINDOWS));
  byId("preset").prepend(make("option", { value: "", disabled: "" }, "own"));
  byId("preset").addEventListener("change", (event) => {
    pictures.setWindow(...Object.values(WINDOWS)[event.target.value]);
    showWindow();
  });
  for (const id of ["low", "high"]) byId(id).addEventListener("change", readWindow);
  byId("canvas").addEventListener("keydown", onKey, { capture: true });
}

function giveUp(error) {
  if (document.body.dataset.state !== "failed") fail(`The result could not be shown (${error.message}).`);
}

async function start() {
  if (!document.createElement("canvas").getContext("webgl2")) {
    fail("This browser offers no WebGL 2, which the pictures need. The report (report.html) does without.");
    return;
  }
  const data = await (await fetch("data.json")).json();
  state.cases = data.cases;
  pictures = new Layers(byId("canvas"), onMove);
  await pictures.start();
  listen();
  fill(byId("case"), state.cases.map((item) => item.name));
  byId("case-row").hidden = state.cases.length < 2;
  await openCase(0);
}

start().catch(giveUp);
