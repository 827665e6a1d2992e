"use strict";
// Draws the frames that come over the web socket, and sends the keys that are held.
const at = (id) => document.getElementById(id);
const socket = new WebSocket(`ws://${location.host}/socket`);
socket.binaryType = "arraybuffer";
let about = null, paused = false, last = null;
const held = [], arrivals = [], delays = [];
const text = new TextDecoder();

const send = (words) => { if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(words)); };
const act = () => send({ action: held.length ? held[held.length - 1] : null, at: performance.now() });

function press(action) {
  if (held.includes(action)) return;
  held.push(action);
  mark(action, true);
  act();
}

function release(action) {
  const place = held.indexOf(action);
  if (place < 0) return;
  held.splice(place, 1);
  mark(action, false);
  act();
}

function mark(action, pressed) {
  const button = document.querySelector(`[data-action="${action}"]`);
  if (button) button.classList.toggle("pressed", pressed);
}

function draw(canvas, pixels, height, width) {
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  const image = new ImageData(width, height);
  for (let from = 0, to = 0; from < pixels.length; from += 3, to += 4) {
    image.data[to] = pixels[from];
    image.data[to + 1] = pixels[from + 1];
    image.data[to + 2] = pixels[from + 2];
    image.data[to + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

function show(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(text.decode(new Uint8Array(buffer, 4, length)));
  let place = 4 + length;
  const canvases = [at("dream"), at("true")];
  head.shapes.forEach(([height, width], number) => {
    draw(canvases[number], new Uint8Array(buffer, place, height * width * 3), height, width);
    place += height * width * 3;
  });
  at("beside").hidden = head.shapes.length < 2;
  const now = performance.now();
  if (head.answers !== null) {
    delays.push(now - head.answers);
    if (delays.length > 200) delays.shift();
    at("p50").value = quantile(delays, 0.5).toFixed(0);
    at("p95").value = quantile(delays, 0.95).toFixed(0);
  }
  arrivals.push(now);
  while (arrivals.length && now - arrivals[0] > 2000) arrivals.shift();
  at("number").value = head.number;
  at("rate").value = (arrivals.length / 2).toFixed(1);
  at("made").value = (1000 * head.seconds).toFixed(0);
  if (head.name !== null) at("status").textContent = `begins with ${head.name}`;
  last = head;
}

function make(found) {
  about = found;
  at("clip").max = about.clips - 1;
  at("num_steps").max = about.most_steps;
  at("num_steps").value = at("num_steps_shown").value = about.num_steps;
  at("guidance").max = about.most_guidance;
  at("guidance").value = at("guidance_shown").value = about.guidance;
  at("guidance_label").hidden = !about.guided;
  const key_of = Object.fromEntries(Object.entries(about.keys).map(([key, action]) => [action, key]));
  about.actions.forEach((name, action) => {
    if (action === about.noop) return;
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.action = action;
    button.textContent = key_of[action] ? `${name} (${key_of[action] === " " ? "space" : key_of[action]})` : name;
    button.addEventListener("pointerdown", (event) => { button.setPointerCapture(event.pointerId); press(action); });
    for (const end of ["pointerup", "pointercancel"]) button.addEventListener(end, () => release(action));
    at("actions").append(button);
  });
}

socket.onmessage = (event) => {
  if (typeof event.data !== "string") return show(event.data);
  const message = JSON.parse(event.data);
  if (message.about) make(message.about);
  if ("drives" in message) {
    at("role").textContent = message.drives ? "you drive" : message.free ? "nobody drives: the world stands still" : "somebody else drives; you watch";
    at("drive").hidden = message.drives || !message.free;
  }
  if (message.saved) at("status").textContent = `saved ${message.saved}`;
  if (message.error) at("status").textContent = message.error;
};
socket.onclose = () => { at("role").textContent = "the connection is closed: start the command again, and open its address"; };

const in_field = (event) => ["INPUT", "SELECT"].includes(event.target.tagName);
const key_of = (event) => (event.key.length === 1 ? event.key.toLowerCase() : event.key);
document.addEventListener("keydown", (event) => {
  if (!about || in_field(event) || event.ctrlKey || event.metaKey || event.altKey) return;
  const action = about.keys[key_of(event)];
  if (action !== undefined) { event.preventDefault(); if (!event.repeat) press(action); return; }
  const button = { p: "pause", ".": "step", r: "reset" }[key_of(event)];
  if (button && !event.repeat) at(button).click();
});
document.addEventListener("keyup", (event) => {
  const action = about && about.keys[key_of(event)];
  if (action !== undefined) release(action);
});
window.addEventListener("blur", () => [...held].forEach(release));

at("pause").addEventListener("click", () => {
  paused = !paused;
  at("pause").setAttribute("aria-pressed", paused);
  send({ paused });
});
at("step").addEventListener("click", () => {
  paused = true;
  at("pause").setAttribute("aria-pressed", true);
  send({ step: 1 });
});
at("reset").addEventListener("click", () => send({ clip: Number(at("clip").value) }));
at("save").addEventListener("click", () => send({ save: true }));
at("drive").addEventListener("click", () => send({ drive: true }));
at("picture").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (file && socket.readyState === WebSocket.OPEN) socket.send(await file.arrayBuffer());
});
for (const name of ["num_steps", "guidance"]) {
  at(name).addEventListener("input", () => {
    at(`${name}_shown`).value = at(name).value;
    send({ [name]: Number(at(name).value) });
  });
}
