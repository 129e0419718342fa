// The page at /: choose a model, give it a photo, a text, a drawing or rows, read its answer and where the time went.
// No build step. Addresses are relative, for root paths; the server's words are only ever set as text.

const STAGES = ["decode", "queue", "preprocess", "inference", "postprocess"];
const DRAW = "Draw a digit to see how it is read.";
const $ = (id) => document.getElementById(id);

// The key lives here alone: no storage, no cookie.
const state = { choices: [], choice: null, pane: null, photo: null, key: "", running: null };

/** An answer that is an error: the API's sentence, with the id under which the server logged it. */
class Refusal extends Error {
  constructor(response, body) {
    const item = body?.error ? body : body?.results?.find((result) => result.error);
    super(item?.error ?? `the server answered ${response.status} ${response.statusText}`.trim());
    this.status = response.status;
    this.requestId = body?.request_id ?? response.headers.get("x-request-id");
  }
}

// --- requests

async function send({ path, ...init }) {
  const headers = { ...init.headers, ...(state.key && { Authorization: `Bearer ${state.key}` }) };
  const started = performance.now();
  const response = await fetch(path, { ...init, headers }).catch((cause) => {
    throw new Error("The request did not get through: the server is gone, or the file has changed.", { cause });
  });
  const body = await response.json().catch(() => null);
  const roundTrip = performance.now() - started;
  if (!response.ok || body === null) throw new Refusal(response, body);
  return { body, roundTrip, serverTiming: response.headers.get("server-timing") ?? "" };
}

/** The request for what stands in the pane; throws Error with a sentence where there is nothing to send yet. */
function buildRequest() {
  const { ref } = state.choice;
  if (state.pane === "photo") {
    if (!state.photo) throw new Error("Choose a photo first.");
    // A file without a known type goes as an image all the same: the server looks at its bytes.
    const headers = { "Content-Type": state.photo.type || "image/unknown" };
    return { path: `predict?model=${ref}`, method: "POST", headers, body: state.photo };
  }
  const inputs = state.pane === "draw" ? () => [drawing.toRow()] : readRows;
  const content = state.pane === "text" ? { text: $("text").value } : { inputs: inputs() };
  const body = JSON.stringify({ ...content, model: ref });
  return { path: "predict", method: "POST", headers: { "Content-Type": "application/json" }, body };
}

function readRows() {
  try {
    return JSON.parse($("rows").value);
  } catch (error) {
    throw new Error(`The inputs are not JSON: ${error.message}`);
  }
}

/** Sends what stands in the pane. One that is still running is aborted. */
async function predict() {
  stop();
  const running = (state.running = new AbortController());
  // Most answers come before the eye could read this.
  const timer = setTimeout(() => showBusy(true), 150);
  try {
    const request = buildRequest();
    showCurl(request);
    showAnswer(await send({ ...request, signal: running.signal }));
  } catch (error) {
    if (!running.signal.aborted) showError(error);
  } finally {
    clearTimeout(timer);
    if (state.running === running) stop();
  }
}

function stop() {
  state.running?.abort();
  state.running = null;
  showBusy(false);
}

// --- models

async function loadModels() {
  try {
    const { body } = await send({ path: "models" });
    state.choices = listChoices(body);
    $("key-form").hidden = true;
  } catch (error) {
    $("model").replaceChildren(new Option("No models"));
    return showError(error);
  }
  $("model").replaceChildren(...state.choices.map((choice) => new Option(describe(choice), choice.ref)));
  $("model").disabled = state.choices.length === 0;
  if (state.choices.length) return chooseModel();
  showError(new Error("No model of this server is ready; “headway models verify” says why."));
}

/** Ready versions: image models before others, the default before its peers, stable before the newest. */
function listChoices({ models, defaults }) {
  const rank = (model) => (model.kind === "image" ? 0 : 2) + (defaults[model.kind] === model.name ? 0 : 1);
  return models.toSorted((a, b) => rank(a) - rank(b)).flatMap((model) => {
    const isStable = ({ version }) => model.aliases.stable === version;
    const ready = model.versions.filter((version) => version.state === "ready").reverse();
    return ready.toSorted((a, b) => isStable(b) - isStable(a)).map(({ version }) => ({
      ...model,
      version,
      ref: `${model.name}@${version}`,
      aliases: Object.keys(model.aliases).filter((alias) => model.aliases[alias] === version),
    }));
  });
}

const describe = ({ ref, aliases }) => (aliases.length ? `${ref} (${aliases.join(", ")})` : ref);

async function chooseModel() {
  stop();
  const choice = (state.choice = state.choices.find(({ ref }) => ref === $("model").value));
  $("model-note").textContent = (choice.task ?? choice.kind).replace("-", " ");
  clearAnswer();
  if (choice.kind === "image") return showPane("photo", "Choose a photo to see what it shows.");
  if (choice.kind === "text") return showPane("text", "Write a text to see how it is read.");
  showPane(null, "Loading the model’s card…");
  try {
    const { body } = await send({ path: `models/${choice.name}/${choice.version}` });
    if (state.choice === choice) showTensorPane(body);
  } catch (error) {
    if (state.choice === choice) showError(error);
  }
}

function showTensorPane({ manifest, labels }) {
  const { inputs } = manifest;
  const isDigits = inputs.length === 1 && String(inputs[0].shape) === "-1,64" && labels?.length === 10;
  if (isDigits) return showPane("draw", DRAW);
  $("rows").value = exampleRows(inputs);
  $("rows-note").textContent = inputs
    .map(({ name, datatype, shape }) => `${name}: ${datatype} [${shape.join(", ").replaceAll("-1", "n")}]`)
    .join(", ");
  showPane("rows", "Give the model its inputs.");
}

/** Zeros of the right shape: something to change, not something to look up. */
function exampleRows(inputs) {
  const zeros = ([length, ...rest]) => (length ? Array.from({ length: Math.abs(length) }, () => zeros(rest)) : 0);
  const size = (shape) => Math.abs(shape.reduce((product, length) => product * length, 1));
  const examples = inputs.map(({ name, shape }) => [name, size(shape) <= 1024 ? zeros(shape) : []]);
  return JSON.stringify(examples.length === 1 ? examples[0][1] : Object.fromEntries(examples));
}

function showPane(pane, invitation) {
  state.pane = pane;
  for (const name of ["photo", "text", "draw", "rows"]) $(`${name}-pane`).hidden = name !== pane;
  $("predict").hidden = pane === null;
  setStatus(invitation);
}

// --- photo

async function choosePhoto(file) {
  if (!file) return;
  await loaded;
  const fitting = [state.choice, ...state.choices].find((choice) => choice?.kind === "image");
  if (!fitting) return showError(new Error("No image model is ready on this server."));
  if (fitting !== state.choice) {
    $("model").value = fitting.ref;
    chooseModel();
  }
  state.photo = file;
  showPreview(file);
  predict();
}

function showPreview(file) {
  const preview = $("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.alt = `Preview of ${file.name}`;
  preview.hidden = false;
  $("photo-note").textContent = `${file.name}, ${(file.size / 1e3).toFixed(1)} kB, sent as it is`;
}

// --- drawing

/** Strokes of one digit, as lists of points in 0…1. `onStroke` is called when a stroke ends or all are cleared. */
class Drawing {
  strokes = [];
  pen = { x: 0.5, y: 0.2, isDown: false, isShown: false };

  constructor(canvas, onStroke) {
    this.canvas = canvas;
    this.onStroke = onStroke;
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    canvas.addEventListener("pointermove", (event) => this.#drag(event));
    canvas.addEventListener("keydown", (event) => this.#steer(event));
    for (const type of ["pointerup", "pointercancel", "blur"]) canvas.addEventListener(type, () => this.#lift());
  }

  clear() {
    this.strokes = [];
    this.pen.isDown = this.pen.isShown = false;
    this.paint();
    this.onStroke();
  }

  /** The 64 numbers in 0…16 that stand for the drawing, in the manner of scikit-learn's digits. */
  toRow() {
    if (!this.strokes.length) throw new Error("Draw a digit first.");
    return countBlocks(rasterise(this.strokes));
  }

  paint() {
    const { width, height } = this.canvas;
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    context.strokeStyle = getComputedStyle(this.canvas).color;
    strokeAll(context, this.strokes, width * 0.075, ({ x, y }) => [x * width, y * height]);
    if (!this.pen.isShown) return;
    context.lineWidth = 4;
    context.beginPath();
    context.arc(this.pen.x * width, this.pen.y * height, this.pen.isDown ? 12 : 24, 0, 7);
    context.stroke();
  }

  #press(event) {
    if (event.button > 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.pen.isShown = false;
    this.#lower(this.#locate(event));
  }

  #drag(event) {
    if (!this.pen.isDown || this.pen.isShown) return;
    this.strokes.at(-1).push(this.#locate(event));
    this.paint();
  }

  #locate({ clientX, clientY }) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    return { x: (clientX - left) / width, y: (clientY - top) / height };
  }

  /** By keyboard. The first key only shows where the pen is. */
  #steer(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], " ": [0, 0] };
    if (!(event.key in steps)) return;
    const [dx, dy] = steps[event.key];
    event.preventDefault();
    const { pen } = this;
    if (event.key === " " && pen.isDown) return this.#lift();
    const step = pen.isShown ? 0.04 : 0;
    const keepInside = (value) => Math.min(1, Math.max(0, value));
    Object.assign(pen, { isShown: true, x: keepInside(pen.x + dx * step), y: keepInside(pen.y + dy * step) });
    if (event.key === " ") return this.#lower({ x: pen.x, y: pen.y });
    if (pen.isDown) this.strokes.at(-1).push({ x: pen.x, y: pen.y });
    this.paint();
  }

  #lower(point) {
    this.pen.isDown = true;
    this.strokes.push([point]);
    this.paint();
  }

  #lift() {
    if (!this.pen.isDown) return;
    this.pen.isDown = false;
    this.paint();
    this.onStroke();
  }
}

function strokeAll(context, strokes, lineWidth, place) {
  Object.assign(context, { lineWidth, lineCap: "round", lineJoin: "round" });
  for (const points of strokes) {
    context.beginPath();
    for (const point of [points[0], ...points]) context.lineTo(...place(point));
    context.stroke();
  }
}

// Each of scikit-learn's digits fills all 32 rows and at most 22 or so of 32 columns, and has 312 ± 34 of the 1024
// pixels set. So strokes are drawn anew at that size, with the pen that gives that much ink.
function rasterise(strokes) {
  const context = new OffscreenCanvas(32, 32).getContext("2d", { willReadFrequently: true });
  let [thin, thick, pixels] = [2, 11, null];
  for (let round = 0; round < 7; round++) {
    const pen = (thin + thick) / 2;
    context.clearRect(0, 0, 32, 32);
    strokeAll(context, strokes, pen, fit(strokes.flat(), pen));
    pixels = context.getImageData(0, 0, 32, 32).data.filter((_, index) => index % 4 === 3).map((alpha) => alpha > 127);
    if (pixels.reduce((sum, pixel) => sum + pixel) < 312) thin = pen;
    else thick = pen;
  }
  return pixels;
}

/** Maps points to the 32 × 32 bitmap: the bounding box fills the rows, is narrowed if wide, and is centred. */
function fit(points, pen) {
  const range = (values) => [Math.min(...values), Math.max(...values)];
  const [left, right] = range(points.map(({ x }) => x));
  const [top, bottom] = range(points.map(({ y }) => y));
  const width = right - left;
  const scaleY = (32 - pen) / Math.max(bottom - top, width / 3, 0.05);
  const scaleX = Math.min(scaleY, (22 - pen) / Math.max(width, 0.001));
  return ({ x, y }) => [16 + (x - (left + right) / 2) * scaleX, 16 + (y - (top + bottom) / 2) * scaleY];
}

function countBlocks(pixels) {
  const row = new Array(64).fill(0);
  pixels.forEach((pixel, index) => (row[((index >> 7) << 3) | ((index & 31) >> 2)] += pixel));
  return row;
}

function showGrid() {
  const row = drawing.strokes.length ? drawing.toRow() : [];
  const context = $("grid").getContext("2d");
  context.clearRect(0, 0, 8, 8);
  context.fillStyle = getComputedStyle($("grid")).color;
  row.forEach((value, index) => {
    context.globalAlpha = value / 16;
    context.fillRect(index % 8, index >> 3, 1, 1);
  });
}

function onStroke() {
  stop();
  showGrid();
  if (drawing.strokes.length) return predict();
  clearAnswer();
  setStatus(DRAW);
}

const drawing = new Drawing($("canvas"), onStroke);

// --- answer

function element(tag, className, ...children) {
  const made = Object.assign(document.createElement(tag), { className });
  made.append(...children);
  return made;
}

const number = (value, unit = "") => (value === null ? "not finite" : `${value} ${unit}`.trim());

function percent(confidence) {
  if (confidence > 0 && confidence < 0.0005) return "< 0.1 %";
  return number(confidence && (confidence * 100).toFixed(1), "%");
}

function setStatus(text, figure = "") {
  $("status").className = figure ? "status done" : "status";
  $("status").replaceChildren(text, " ", element("span", "", figure));
}

function showBusy(isBusy) {
  $("answer").ariaBusy = $("predict").ariaDisabled = String(isBusy);
  $("predict").textContent = isBusy ? "Running…" : "Predict";
  if (isBusy) setStatus("Running…");
}

function clearAnswer() {
  for (const id of ["error", "results", "source"]) $(id).replaceChildren();
  for (const id of ["timing", "curl"]) $(id).hidden = true;
}

function showError(error) {
  for (const id of ["results", "source"]) $(id).replaceChildren();
  $("timing").hidden = true;
  setStatus("");
  $("error").replaceChildren(error.message[0].toUpperCase() + error.message.slice(1));
  if (error.requestId) $("error").append(" ", element("small", "", `request ${error.requestId}`));
  if (error.status === 401) askForKey();
}

function askForKey() {
  $("key-form").hidden = false;
  $("key").value = state.key = "";
  $("key").focus();
}

function showAnswer({ body, roundTrip, serverTiming }) {
  $("error").replaceChildren();
  const items = body.results ?? [body];
  setStatus(...headline(items, body.unit));
  const shown = items.slice(0, 50).map((item, row) => renderItem(item, body.unit, items.length > 1 ? row + 1 : null));
  $("results").replaceChildren(...shown);
  const ref = `${body.model}@${body.version}`;
  const known = state.choices.find((choice) => choice.ref === ref);
  const source = describe({ ref, aliases: body.alias ? [body.alias] : (known?.aliases ?? []) });
  $("source").textContent = [source, ...(body.warnings ?? [])].join(" · ");
  showTimings(serverTiming, roundTrip);
  // On a phone the answer is below the photo; a drawing must not move away under the pen.
  if (state.pane === "photo") $("status").scrollIntoView({ block: "nearest" });
}

function headline(items, unit) {
  if (items.length > 1) return [`${items.length} answers`, " "];
  const [{ predictions, value }] = items;
  if (predictions?.length) return [predictions[0].label, percent(predictions[0].confidence)];
  return value === undefined ? ["Output", " "] : ["Value", number(value, unit)];
}

function renderItem({ error, predictions, outputs, value }, unit, row) {
  const parts = row ? [element("h2", "", `Row ${row}`)] : [];
  if (error) parts.push(element("p", "error", error));
  else if (predictions) parts.push(renderBars(predictions));
  else if (outputs) parts.push(element("pre", "", JSON.stringify(outputs, null, 1).slice(0, 20000)));
  else if (row) parts.push(number(value, unit));
  return element("div", "", ...parts);
}

function renderBars(predictions) {
  const bars = predictions.map(({ label, confidence }) => {
    const fill = element("span", "fill");
    requestAnimationFrame(() => (fill.style.width = `${confidence * 100}%`));
    const words = [element("span", "label", label), element("span", "percent", percent(confidence))];
    return element("li", "", ...words, element("span", "track", fill));
  });
  return element("ol", "bars", ...bars);
}

/** https://www.w3.org/TR/server-timing/ as a stacked bar; `other` is what the stages leave of the total. */
function showTimings(header, roundTrip) {
  const times = Object.fromEntries([...header.matchAll(/([\w-]+);dur=([\d.]+)/g)].map(([, name, ms]) => [name, +ms]));
  const stages = STAGES.filter((name) => name in times).map((name) => [name, times[name]]);
  const rest = stages.reduce((left, [, ms]) => left - ms, times.total);
  if (rest >= 0) stages.push(["other", rest]);
  const sums = [["total", times.total], ["round trip", roundTrip]].filter(([, ms]) => ms !== undefined);
  $("stack").replaceChildren(...stages.map(([name, ms]) => renderSegment(name, ms)));
  $("legend").replaceChildren(...[...stages, ...sums].map(([name, ms]) => renderTime(name, ms)));
  $("timing").hidden = false;
}

function renderSegment(name, ms) {
  const segment = element("span", "");
  segment.style.flexGrow = ms;
  segment.style.background = `var(--${name})`;
  return segment;
}

function renderTime(name, ms) {
  const isStage = STAGES.includes(name) || name === "other";
  const time = [element("dt", "", name), element("dd", "", `${ms.toFixed(ms < 10 ? 2 : 1)} ms`)];
  return element("div", isStage ? "" : "sum", ...(isStage ? [renderSegment(name, 0)] : []), ...time);
}

// --- curl

function showCurl({ path, headers, body }) {
  const data = typeof body === "string" ? `-d ${quote(body)}` : `--data-binary ${quote(`@${body.name}`)}`;
  const key = state.key ? " -H 'Authorization: Bearer YOUR_KEY'" : "";
  const type = quote(`Content-Type: ${headers["Content-Type"]}`);
  $("command").value = `curl ${quote(new URL(path, document.baseURI).href)}${key} -H ${type} ${data}`;
  $("copied").textContent = "";
  $("curl").hidden = false;
}

const quote = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

async function copyCommand() {
  try {
    await navigator.clipboard.writeText($("command").value);
  } catch {
    // Over plain HTTP from another machine there is no clipboard API.
    $("command").select();
    document.execCommand("copy");
  }
  $("copied").textContent = "Copied";
}

// --- events

function onDrag(event) {
  event.preventDefault();
  $("drop").classList.toggle("over", event.type === "dragover");
}

$("model").addEventListener("change", chooseModel);
$("photo").addEventListener("change", (event) => choosePhoto(event.target.files[0]));
$("preview").addEventListener("error", () => ($("preview").hidden = true));
$("clear").addEventListener("click", () => drawing.clear());
$("copy").addEventListener("click", copyCommand);
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!state.running) predict();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = $("key").value;
  $("key-form").hidden = true;
  if (state.pane) predict();
  else loadModels();
});
for (const type of ["dragover", "dragleave", "drop"]) document.addEventListener(type, onDrag);
document.addEventListener("drop", (event) => choosePhoto(event.dataTransfer.files[0]));
document.addEventListener("paste", (event) => choosePhoto(event.clipboardData.files[0]));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  drawing.paint();
  showGrid();
});
const loaded = loadModels();
