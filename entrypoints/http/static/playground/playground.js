// The playground: a page on the public API, without a cookie and without anything stored. The token
// comes in the fragment of the address, which browsers do not send, and stays in this module.

const SAMPLES = document.documentElement.dataset.samples; // Empty outside development.
const API = "/api/v1/generations";
const FINAL = ["completed", "failed"];
const MOST_ACCESSORIES = 8;
const TYPES = ["image/jpeg", "image/png", "image/webp"];
const CALL_MS = 30_000;
const SILENCE_MS = 100_000; // More than two pings of a stream.
const FOLLOW_MS = 2 * 3_600_000; // By then every session has ended.
const [FIRST_POLL_MS, LONGEST_POLL_MS] = [500, 5_000];
const CARDS = {
  slow: "takes 10 s", busy: "fails twice, then works", moderated: "MODERATION_BLOCKED",
  broken: "INVALID_IMAGE", gone: "IMAGE_UNREACHABLE",
};
const ADVICE = {
  INVALID_TOKEN: "Paste a fresh token: wearon dev prints a link to this page that has one.",
  INVALID_API_KEY: "Paste a key that is valid: wearon keys create makes one.",
  INSUFFICIENT_CREDITS: "The command wearon credits grant adds credits to an account.",
  DOMAIN_MISMATCH: "Open this page at the address in WEARON_PUBLIC_URL.",
  IMAGE_UNREACHABLE: "The worker could not download a picture at its link.",
  INVALID_IMAGE: "The file is no picture, or a damaged one.",
  MODERATION_BLOCKED: "The provider does not make a picture of this.",
  NO_ANSWER: "Is the service running, and is this its address?",
};

const $ = (id) => document.getElementById(id);
let token = "";
let key = newKey();
let balance = null;
let isRunning = false;
let blockedUntil = 0;
let response = "Nothing was sent yet.";

function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return "playground-" + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// -- the form ------------------------------------------------------------------------------------

function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given === null) return;
  history.replaceState(null, "", location.pathname);
  $("token").value = given;
  changeToken();
}

function changeToken() {
  token = $("token").value.trim();
  readBalance();
  refresh();
}

function addChoice(group, { label, url, image, kind = "radio", type = "", isChosen = false, name = group }) {
  const choice = document.createElement("label");
  choice.className = "choice";
  const input = Object.assign(document.createElement("input"), { type: kind, name, value: url, checked: isChosen });
  input.dataset.type = type;
  const text = Object.assign(document.createElement("span"), { textContent: label });
  const face = image
    ? Object.assign(document.createElement("img"), { src: image, alt: "", width: 72, height: 96 })
    : Object.assign(document.createElement("i"), { textContent: "\u2013", ariaHidden: "true" });
  choice.append(input, face, text);
  const list = $(group).querySelector(".choices, .chips");
  list.insertBefore(choice, list.querySelector(".file"));
  return input;
}

function addFilePicker(group, kind) {
  const picker = document.createElement("label");
  picker.className = "choice file";
  const input = Object.assign(document.createElement("input"), { type: "file", accept: TYPES.join() });
  input.setAttribute("aria-label", `${group}: choose a picture of yours`);
  const text = Object.assign(document.createElement("span"), { textContent: "Your own" });
  picker.append(input, Object.assign(document.createElement("i"), { textContent: "+", ariaHidden: "true" }), text);
  $(group).querySelector(".choices").append(picker);
  const accept = (files) => files[0] && upload(files[0], group, kind);
  input.onchange = () => { accept(input.files); input.value = ""; };
  $(group).ondragover = (event) => { event.preventDefault(); picker.classList.add("over"); };
  $(group).ondragleave = () => picker.classList.remove("over");
  $(group).ondrop = (event) => {
    event.preventDefault();
    picker.classList.remove("over");
    accept(event.dataTransfer.files);
  };
  $(group).onpaste = (event) => event.clipboardData.files.length && (event.stopPropagation(), accept(event.clipboardData.files));
}

function buildForm() {
  const sample = (name) => ({ url: `${SAMPLES}/${name}.png`, image: `/samples/${name}.png` });
  if (SAMPLES) {
    addChoice("person", { label: "Sample", ...sample("model"), isChosen: true });
    addChoice("outfit", { label: "Dress", ...sample("outfit"), isChosen: true });
    addChoice("outfit", { label: "Suit", ...sample("suit") });
    for (const type of ["hat", "bag"]) {
      addChoice("accessories", { label: type[0].toUpperCase() + type.slice(1), kind: "checkbox", type, ...sample(type) });
    }
    for (const [name, effect] of Object.entries(CARDS)) {
      addChoice("cards", { label: `${name}: ${effect}`, url: sample(name).url, name: "person" });
    }
    $("cards").hidden = false;
  }
  addChoice("outfit", { label: "None", url: "", isChosen: !SAMPLES });
  addFilePicker("person", "radio");
  addFilePicker("outfit", "radio");
  addFilePicker("accessories", "checkbox");
}

async function upload(file, group, kind) {
  const tell = (text) => { $("upload").textContent = text; };
  if (!TYPES.includes(file.type)) return tell("A picture is a JPEG, PNG or WebP file.");
  tell(`Uploading ${file.name}...`);
  const offer = await send("POST", "/api/v1/uploads", { content_type: file.type });
  if (!offer.data) return tell(inWords(offer));
  if (file.size > offer.data.max_bytes) return tell(`A picture has at most ${offer.data.max_bytes} bytes.`);
  const sent = await attempt(offer.data.upload_url, { method: "PUT", headers: offer.data.headers, body: file });
  if (sent.status >= 300 || sent.status === 0) return tell(inWords(sent));
  const stem = file.name.replace(/\.[^.]*$/, "").replace(/[^\w -]/g, "").slice(0, 40) || "accessory";
  const image = URL.createObjectURL(file);
  const isFull = kind === "checkbox" && chosen("accessories").length >= MOST_ACCESSORIES;
  addChoice(group, { label: stem, url: offer.data.image_url, image, kind, type: stem, isChosen: !isFull }).focus();
  tell(`Uploaded ${file.name}`);
  refresh();
}

const inWords = ({ error, status }) => (error ? `${error.code}: ${error.message}` : `The upload failed (HTTP ${status}).`);

const chosen = (name) => [...document.querySelectorAll(`input[name=${name}]:checked`)];

// -- the call: what is sent, and what is shown ---------------------------------------------------

function theCall() {
  const body = { model_image_url: chosen("person")[0]?.value ?? "" };
  const [outfit] = chosen("outfit");
  if (outfit?.value) body.outfit_image_url = outfit.value;
  const accessories = chosen("accessories").map(({ value, dataset }) => ({ type: dataset.type, url: value }));
  if (accessories.length) body.accessories = accessories;
  return { base: location.origin, path: API, key, body };
}

function inLanguages({ base, path, key, body }) {
  const json = JSON.stringify(body, null, 2);
  const indented = (by) => json.replaceAll("\n", "\n" + " ".repeat(by));
  return {
    curl: `curl -s ${base}${path} \\
  -H "Authorization: Bearer $WEARON_TOKEN" \\
  -H 'Content-Type: application/json' \\
  -H 'Idempotency-Key: ${key}' \\
  -H 'Prefer: wait=60' \\
  -d '${json.replaceAll("'", "'\\''")}'`,
    python: `import os
from wearon_client import Wearon

with Wearon("${base}", os.environ["WEARON_TOKEN"]) as wearon:
    request = ${indented(4)}
    session = wearon.submit_and_wait(request, idempotency_key="${key}")
    print(session["generated_image_url"] or session["error_message"])`,
    typescript: `import { Wearon } from "wearon-client";

const wearon = new Wearon({ baseUrl: "${base}", token: process.env.WEARON_TOKEN });
const request = ${json};
const session = await wearon.submitAndWait(request, { idempotencyKey: "${key}" });
console.log(session.generated_image_url ?? session.error_message);`,
    request: `POST ${path}
Authorization: Bearer ...
Content-Type: application/json
Idempotency-Key: ${key}

${json}`,
    response,
  };
}

function refresh() {
  const seconds = Math.ceil((blockedUntil - Date.now()) / 1000);
  const lack = !token ? "Paste a token to begin." : !chosen("person").length ? "Choose a person to begin." : "";
  $("hint").textContent = lack || "Press Run, or Ctrl-Enter. It costs one credit.";
  $("run").disabled = $("again").disabled = isRunning || Boolean(lack) || seconds > 0;
  const count = chosen("accessories").length;
  $("accessory-count").textContent = count;
  for (const input of document.querySelectorAll("input[name=accessories]")) {
    input.disabled = count >= MOST_ACCESSORIES && !input.checked;
  }
  $("text").textContent = inLanguages(theCall())[chosen("tab")[0].value];
  $("copied").textContent = "";
}

async function copy() {
  try {
    await navigator.clipboard.writeText($("text").textContent);
    $("copied").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("text"));
    $("copied").textContent = "Selected: press Ctrl-C";
  }
}

// -- sending -------------------------------------------------------------------------------------

async function attempt(url, options) {
  try {
    const answer = await fetch(url, { signal: AbortSignal.timeout(CALL_MS), ...options });
    const text = await answer.text();
    const json = text.startsWith("{") ? JSON.parse(text) : {};
    const headers = ["x-request-id", "location", "retry-after"].filter((name) => answer.headers.has(name));
    return {
      status: answer.status, data: json.data ?? null, error: json.error ?? null,
      requestId: answer.headers.get("x-request-id"), wait: Number(answer.headers.get("retry-after")) || 0,
      text: [`HTTP ${answer.status}`, ...headers.map((name) => `${name}: ${answer.headers.get(name)}`), "",
        JSON.stringify(json, null, 2)].join("\n"),
    };
  } catch {
    const error = { code: "NO_ANSWER", message: "The service did not answer." };
    return { status: 0, data: null, error, requestId: null, wait: 0, text: error.message };
  }
}

function send(method, path, body, headers = {}) {
  headers = { Authorization: `Bearer ${token}`, ...headers };
  if (body) headers["Content-Type"] = "application/json";
  return attempt(path, { method, headers, body: body && JSON.stringify(body) });
}

async function readBalance() {
  const asked = token;
  const answer = token ? await send("GET", "/api/v1/credits") : { data: null };
  if (asked !== token) return;
  balance = answer.data?.balance ?? null;
  $("balance").textContent = balance === null ? "" : `Credits ${balance}`;
  if (answer.status === 401) showRefusal(answer);
}

async function run() {
  refresh();
  if ($("run").disabled) return;
  const { path, body } = theCall();
  const sentKey = key;
  begin();
  const answer = await send("POST", path, body, { "Idempotency-Key": sentKey });
  if (answer.status) key = newKey(); // Without an answer, the same key: it may have been charged.
  if (answer.data) showState(answer.data);
  show(answer);
  if (answer.data) {
    const before = answer.data.credits_remaining === null ? null : answer.data.credits_remaining + 1;
    await follow(answer.data, before);
  } else {
    showRefusal(answer);
  }
  isRunning = false;
  $("cancel").hidden = true;
  refresh();
}

async function follow(submitted, before) {
  const trail = before === null ? [] : [before, before - 1];
  $("credits").textContent = trail.join(" → ") || "-";
  $("session").textContent = submitted.session_id;
  $("cancel").hidden = false;
  $("cancel").onclick = () => send("POST", `${submitted.status_url}/cancel`);
  const session = await lastState(submitted.status_url);
  await readBalance();
  if (session?.status === "failed" && balance !== null) trail.push(balance);
  $("credits").textContent = trail.join(" → ") || "-";
}

async function lastState(path) {
  const deadline = Date.now() + FOLLOW_MS;
  try {
    for await (const session of events(`${path}/events`, deadline)) {
      $("transport").textContent = "events (a stream)";
      if (showState(session)) return session;
    }
  } catch { /* Polling works where a stream does not. */ }
  for (let pause = FIRST_POLL_MS; Date.now() < deadline; pause = Math.min(pause * 1.5, LONGEST_POLL_MS)) {
    $("transport").textContent = `polling, every ${(pause / 1000).toFixed(1)} s`;
    const answer = await send("GET", path);
    show(answer);
    if (answer.data && showState(answer.data)) return answer.data;
    if ([401, 403, 404].includes(answer.status)) return showRefusal(answer, "");
    await new Promise((done) => setTimeout(done, Math.max(pause, answer.wait * 1000)));
  }
  return null;
}

// An EventSource sends no header, so the stream is read with fetch.
async function* events(path, deadline) {
  const giveUp = new AbortController();
  let watchdog = setTimeout(() => giveUp.abort(), CALL_MS);
  const headers = { Authorization: `Bearer ${token}`, Accept: "text/event-stream" };
  const answer = await fetch(path, { headers, signal: giveUp.signal });
  if (answer.status !== 200) throw new Error(`${answer.status}`);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    while (Date.now() < deadline) {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => giveUp.abort(), SILENCE_MS);
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (text + value).split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const data = /^data: (.*)$/m.exec(block);
        if (data) yield JSON.parse(data[1]);
      }
    }
  } finally {
    clearTimeout(watchdog);
    giveUp.abort();
  }
}

// -- showing -------------------------------------------------------------------------------------

let began = 0;
let ticking = 0;
const elapsed = () => `${((Date.now() - began) / 1000).toFixed(1)} s`;

function say(text, status) {
  $("status").textContent = text;
  if (status) $("stage").dataset.status = status;
}

function begin() {
  isRunning = true;
  began = Date.now();
  clearInterval(ticking);
  ticking = setInterval(() => { $("clock").textContent = elapsed(); }, 100);
  for (const id of ["picture", "error", "download", "again"]) $(id).hidden = true;
  for (const id of ["session", "request", "transport", "credits"]) $(id).textContent = "-";
  $("empty").hidden = false;
  $("hint").textContent = "";
  $("last-step").textContent = "completed";
  $("states").replaceChildren();
  $("picture").removeAttribute("src");
  say("Sending...", "sending");
  if ($("stage").getBoundingClientRect().top > innerHeight / 2) $("stage").scrollIntoView({ behavior: "smooth" });
  refresh();
}

function show(answer) {
  response = answer.text;
  $("request").textContent ||= "-";
  if ($("request").textContent === "-") $("request").textContent = answer.requestId ?? "-";
  refresh();
}

function end(text, status) {
  clearInterval(ticking);
  $("clock").textContent = began ? elapsed() : "";
  say(text, status);
  $("again").hidden = !began;
  $("empty").hidden = true;
}

// Returns whether the session has ended.
function showState(session) {
  const isFinal = FINAL.includes(session.status);
  response = JSON.stringify(session, null, 2);
  const position = session.queue_position ? `, ${session.queue_position} in the queue` : "";
  const attempt = session.attempt > 1 ? `, attempt ${session.attempt}` : "";
  const state = `${session.status}${session.status === "queued" ? position : attempt}`;
  if ($("states").lastElementChild?.dataset.state !== state) {
    const item = Object.assign(document.createElement("li"), { textContent: `${elapsed()}  ${state}` });
    item.dataset.state = state;
    $("states").append(item);
  }
  say(state, session.status);
  if (session.status === "completed") {
    $("picture").src = session.generated_image_url ?? "";
    $("download").href = session.generated_image_url ?? "";
    $("picture").hidden = $("download").hidden = !session.generated_image_url;
    end("completed", "completed");
  } else if (isFinal) {
    showError({ code: session.error_code, message: session.error_message, credit: "credit refunded" });
  }
  refresh();
  return isFinal;
}

function showRefusal({ error, status, wait }, credit = "nothing was charged") {
  const { code, message } = error ?? { code: `HTTP ${status}`, message: "The call failed." };
  showError({ code, message, credit: status ? credit : "not known whether it was charged: run again", wait });
}

function showError({ code, message, credit, wait = 0 }) {
  $("error-code").textContent = code;
  $("error-message").textContent = message;
  $("error-credit").textContent = credit;
  $("error-advice").textContent = ADVICE[code] ?? "";
  $("last-step").textContent = "failed";
  $("picture").hidden = $("download").hidden = true;
  $("error").hidden = false;
  end("failed", "failed");
  blockedUntil = Date.now() + wait * 1000;
  countDown();
}

function countDown() {
  const seconds = Math.ceil((blockedUntil - Date.now()) / 1000);
  $("error-wait").textContent = seconds > 0 ? `try again in ${seconds} s` : "";
  refresh();
  if (seconds > 0) setTimeout(countDown, 250);
}

// -- wiring --------------------------------------------------------------------------------------

buildForm();
$("form").onsubmit = (event) => { event.preventDefault(); run(); };
$("again").onclick = run;
$("copy").onclick = copy;
$("token").onchange = changeToken;
document.addEventListener("change", refresh);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  if ($("token").value.trim() !== token) changeToken();
  run();
});
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) upload(file, "person", "radio");
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => event.preventDefault()); // A miss must not leave the page.
addEventListener("hashchange", takeToken);
takeToken();
refresh();
