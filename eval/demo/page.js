"use strict";
// Everything that comes from files or people is put in as text, never as HTML.

const at = (id) => document.getElementById(id);
const state = { image: null, picture: null, heat: null, mode: "labels" };
const DEFAULTS = {
  labels: { template: "{c}", names: at("names").value },
  question: { template: "{question} {option}", names: "yes\nno" },
};
// Of matplotlib's inferno: dark where the text is least like the patch.
const RAMP = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

function colour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const i = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[i].map((low, k) => Math.round(low + (RAMP[i + 1][k] - low) * (place - i)));
}

async function request(path, body, type) {
  const options = body === undefined ? {} : { method: "POST", body, headers: { "Content-Type": type } };
  const reply = await fetch(path, options);
  const content = await reply.json();
  if (!reply.ok) throw new Error(content.error);
  return content;
}

const ask = (path, content) => request(path, JSON.stringify(content), "application/json");

async function attempt(work) {
  at("error").hidden = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    await work();
  } catch (error) {
    at("error").textContent = error.message || "the program doesn't answer; is it still running?";
    at("error").hidden = false;
  } finally {
    document.body.removeAttribute("aria-busy");
  }
}

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

// --- the image -------------------------------------------------------------------------------

async function show(file) {
  const found = await request("/image", file, "application/octet-stream");
  const picture = new Image();
  picture.src = `/image/${found.id}`;
  await picture.decode();
  Object.assign(state, { image: found.id, picture, heat: null });
  at("size").textContent = `${found.width} × ${found.height} pixels`;
  at("hint").hidden = true;
  at("canvas").hidden = false;
  at("drop").classList.add("filled");
  draw();
  cards(found.neighbours);
  await compare();
}

function draw() {
  const { picture, heat } = state;
  const canvas = at("canvas");
  canvas.width = picture.naturalWidth;
  canvas.height = picture.naturalHeight;
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  at("legend").hidden = heat === null;
  if (heat === null) return;
  const values = heat.rows.flat();
  const low = Math.min(...values), high = Math.max(...values);
  const small = new OffscreenCanvas(heat.rows[0].length, heat.rows.length);
  const pixels = new ImageData(small.width, small.height);
  values.forEach((value, i) => {
    const share = high > low ? (value - low) / (high - low) : 0;
    pixels.data.set([...colour(share), 60 + 130 * share], 4 * i);
  });
  small.getContext("2d").putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  const { left, top, width, height } = heat.region;
  context.drawImage(small, left * canvas.width, top * canvas.height, width * canvas.width, height * canvas.height);
  // What a centre crop cuts away, the model doesn't see.
  context.strokeStyle = "#ffffffcc";
  context.setLineDash([6, 4]);
  context.strokeRect(left * canvas.width, top * canvas.height, width * canvas.width, height * canvas.height);
  at("legend-text").textContent = heat.text;
  at("low").textContent = low.toFixed(3);
  at("high").textContent = high.toFixed(3);
}

async function map(text, button) {
  state.heat = await ask("/heat", { image: state.image, text });
  for (const other of document.querySelectorAll("#answers button")) other.setAttribute("aria-pressed", other === button);
  draw();
}

// --- labels and questions --------------------------------------------------------------------

async function compare() {
  if (state.image === null) throw new Error("drop an image first");
  const question = state.mode === "question" ? at("question").value.trim() : "";
  if (state.mode === "question" && !question) throw new Error("write a question");
  const names = at("names").value.split("\n");
  const { answers } = await ask("/scores", { image: state.image, names, template: at("template").value, question });
  at("answers").replaceChildren(...answers.map((answer) => {
    const line = element("li"), button = element("button"), bar = element("span", "bar");
    button.type = "button";
    button.title = answer.text;
    button.setAttribute("aria-pressed", "false");
    bar.style.width = `${100 * answer.probability}%`;
    const how = `${(100 * answer.probability).toFixed(1)}% (${answer.cosine.toFixed(3)})`;
    button.append(bar, element("span", "what", answer.name), element("span", "how", how));
    button.addEventListener("click", () => attempt(() => map(answer.text, button)));
    line.append(button);
    return line;
  }));
  at("about-scores").hidden = false;
}

function choose(mode) {
  DEFAULTS[state.mode] = { template: at("template").value, names: at("names").value };
  state.mode = mode;
  at("template").value = DEFAULTS[mode].template;
  at("names").value = DEFAULTS[mode].names;
  at("for-question").hidden = mode !== "question";
  at("names-label").textContent = mode === "question" ? "Answers, one on each line" : "Labels, one on each line";
  at("tab-labels").setAttribute("aria-selected", mode === "labels");
  at("tab-question").setAttribute("aria-selected", mode === "question");
}

// --- nearest figures -------------------------------------------------------------------------

function cards(neighbours) {
  at("nearest").hidden = neighbours.length === 0;
  at("cards").replaceChildren(...neighbours.map((figure) => {
    const card = element("article", "card"), picture = element("img");
    picture.src = `/figure/${figure.index}`;
    picture.alt = figure.image;
    const source = element("p", "source", `${figure.cosine.toFixed(3)} · `);
    if (figure.link) {
      const link = element("a", "", figure.article);
      link.href = figure.link;
      link.rel = "noreferrer noopener";
      link.target = "_blank";
      source.append(link);
    } else {
      source.append(figure.article || figure.image);
    }
    if (figure.licence) source.append(` · ${figure.licence}`);
    const caption = element("p", "caption", figure.caption);
    caption.title = figure.caption;
    card.append(picture, caption, source);
    if (figure.citation) card.append(element("p", "source", figure.citation));
    return card;
  }));
}

// --- events ----------------------------------------------------------------------------------

at("file").addEventListener("change", () => {
  const [file] = at("file").files;
  if (file) attempt(() => show(file));
});
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) attempt(() => show(event.dataTransfer.files[0]));
  });
}
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) attempt(() => show(file));
});
at("drop").addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") at("file").click();
});
at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(compare);
});
at("tab-labels").addEventListener("click", () => choose("labels"));
at("tab-question").addEventListener("click", () => choose("question"));
at("clear").addEventListener("click", () => {
  state.heat = null;
  for (const button of document.querySelectorAll("#answers button")) button.setAttribute("aria-pressed", "false");
  draw();
});
at("ramp").style.background = `linear-gradient(90deg, ${RAMP.map((rgb) => `rgb(${rgb})`).join(", ")})`;
attempt(async () => {
  const about = await request("/about");
  at("model").textContent = about.model;
  at("notes").textContent = about.notes.join("; ");
  at("count").textContent = about.figures.toLocaleString("en");
});
