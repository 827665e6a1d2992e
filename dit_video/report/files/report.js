"use strict";
// Draws the curves of a report and plays its clips. What is not on the screen is neither drawn nor decoded.
(() => {
  const $ = (selector, inside = document) => inside.querySelector(selector);
  const $$ = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  let data;
  const hidden = new Set(); // names of runs
  const plots = new Map(); // element of a chart -> uPlot
  const visible = (run) => !hidden.has(data.runs[run].name);
  const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const grouped = (number) => number.toLocaleString("en");
  const units = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k", 1e3]];
  function short(value) {
    if (value == null) return "–";
    const size = Math.abs(value), unit = units.find(([from]) => size >= from);
    if (unit) return `${+(value / (unit[2] ?? unit[0])).toPrecision(4)} ${unit[1]}`;
    return size && size < 1e-3 ? value.toExponential(2) : `${+value.toPrecision(4)}`;
  }

  // --- curves -------------------------------------------------------------------------------------------------------
  const smoothness = () => +$("#smooth").value / 100;
  // Exponential mean over points, corrected at the beginning.
  function smoothed(values, weight) {
    let mean = 0, mass = 0;
    return values.map((value) => {
      if (value == null) return value;
      mean = weight * mean + (1 - weight) * value;
      mass = weight * mass + (1 - weight);
      return mean / mass;
    });
  }

  const overHours = () => $("#over")?.value === "hours";
  // Hours at which a run had done these steps: on the straight line between the two that it knows around each.
  function hoursOf(run, steps) {
    const [known, hours] = data.runs[run].clock;
    let i = 0;
    return steps.map((step) => {
      while (i + 2 < known.length && known[i + 1] < step) i++;
      const [a, b] = [known[i], known[i + 1] ?? known[i]];
      return a === b ? hours[i] : Math.max(0, hours[i] + (step - a) / (b - a) * (hours[i + 1] - hours[i]));
    });
  }

  // Joined columns for uPlot, and what each column is.
  function columnsOf(chart) {
    const tables = [], columns = [];
    const weight = chart.smooth ? smoothness() : 0;
    for (const [run, steps, values] of chart.curves) {
      if (!visible(run) || overHours() && !data.runs[run].clock[0].length) continue;
      const smooth = weight > 0 && values.length > 20;
      const table = [overHours() ? hoursOf(run, steps) : steps, values];
      columns.push({ run, faint: smooth });
      if (smooth) { table.push(smoothed(values, weight)); columns.push({ run }); }
      tables.push(table);
    }
    return { columns, joined: tables.length ? uPlot.join(tables) : [[]] };
  }

  function levelsOf(chart, at) {
    const tables = [], columns = [];
    for (const [run, steps] of Object.entries(chart.runs)) {
      const known = Object.keys(steps).map(Number).filter((step) => step <= at);
      if (!visible(run) || !known.length) continue;
      tables.push([chart.levels, steps[Math.max(...known)]]);
      columns.push({ run: +run });
    }
    return { columns, joined: tables.length ? uPlot.join(tables) : [[]] };
  }

  function seriesOf(column, numPoints) {
    const run = data.runs[column.run];
    const colour = token(`--run${run.colour}`);
    return {
      label: run.name, spanGaps: true, stroke: column.faint ? colour + "40" : colour, width: column.faint ? 1 : 1.75,
      dash: run.dash ? [[8, 4], [2, 3], [8, 3, 2, 3]][(run.dash - 1) % 3] : undefined,
      points: { show: !column.faint && numPoints <= 24, size: 6, fill: colour }, faint: column.faint, run: column.run,
    };
  }

  function readout(element, plot, head) {
    const index = plot.cursor.idx;
    element.textContent = "";
    if (index == null) return;
    element.append(head(plot.data[0][index]));
    const clear = plot.series.map((series, i) => [series, i]).slice(1).filter(([series]) => !series.faint);
    const named = clear.filter(([series]) => clear.length <= 6 || series._focus);
    for (const [series, i] of named.slice(0, 6)) {
      let at = index; // the nearest point of this curve at or before the cursor
      while (at > 0 && plot.data[i][at] == null) at--;
      const swatch = document.createElement("i"), value = document.createElement("b");
      swatch.style.borderColor = typeof series.stroke === "function" ? series.stroke() : series.stroke;
      value.textContent = short(plot.data[i][at]);
      element.append(swatch, `${series.label} `, value);
    }
  }

  function draw(element) {
    plots.get(element)?.destroy();
    const isLevel = element.dataset.levels != null;
    const chart = isLevel ? data.levels[element.dataset.levels] : data.charts[element.dataset.chart];
    const { columns, joined } = isLevel ? levelsOf(chart, levelStep(element)) : columnsOf(chart);
    element.hidden = false;
    const axis = { stroke: token("--quiet"), font: "12px system-ui, sans-serif", grid: { stroke: token("--line"), width: 1 }, ticks: { show: false } };
    const logarithmic = $("#log")?.checked && joined.slice(1).flat().every((value) => value == null || value > 0);
    const text = element.nextElementSibling;
    const plot = new uPlot({
      width: element.clientWidth, height: element.clientHeight, legend: { show: false },
      scales: { x: { time: false }, y: { distr: logarithmic ? 3 : 1 } },
      series: [{}, ...columns.map((column) => seriesOf(column, joined[0].length))],
      axes: [{ ...axis, size: 28, values: (_, ticks) => ticks.map(isLevel || overHours() ? short : grouped) }, { ...axis, size: 56, values: (_, ticks) => ticks.map((tick) => tick == null ? "" : short(tick)) }],
      focus: { alpha: columns.length > 8 ? 0.25 : 0.5 },
      cursor: { sync: isLevel ? undefined : { key: "steps", scales: ["x", null] }, focus: { prox: 24 }, drag: { x: true, y: false }, points: { size: 7 } },
      hooks: { setCursor: [(plot) => readout(text, plot, (x) => isLevel ? `log SNR ${x}` : overHours() ? `${short(x)} h` : `step ${grouped(x)}`)] },
    }, joined, element);
    plots.set(element, plot);
  }
  const redraw = () => { for (const element of plots.keys()) draw(element); };

  // Zoom by keyboard, as by dragging.
  function key(event) {
    const plot = plots.get(event.currentTarget);
    if (!plot || !plot.data[0].length) return;
    const all = [plot.data[0][0], plot.data[0].at(-1)];
    const { min, max } = plot.scales.x, width = max - min;
    const moves = { "+": [min + width / 4, max - width / 4], "=": [min + width / 4, max - width / 4], "-": [min - width / 2, max + width / 2], ArrowLeft: [min - width / 4, max - width / 4], ArrowRight: [min + width / 4, max + width / 4], 0: all };
    const to = moves[event.key];
    if (!to) return;
    event.preventDefault();
    plot.setScale("x", { min: Math.max(to[0], all[0]), max: Math.min(to[1], all[1]) });
  }

  const drawn = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting && !plots.has(target)) draw(target);
    }
  }, { rootMargin: "300px" });
  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const plot = plots.get(target);
      if (plot && target.clientWidth && plot.width !== target.clientWidth) plot.setSize({ width: target.clientWidth, height: target.clientHeight });
    }
  });
  let waiting = 0;
  const soon = () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(redraw); };
  function show(box, on) { box.checked = on; hidden[on ? "delete" : "add"](data.runs[box.value].name); }
  function startCurves() {
    for (const element of $$(".plot")) {
      element.hidden = false;
      element.addEventListener("keydown", key);
      drawn.observe(element);
      resized.observe(element);
    }
    $("#smooth")?.addEventListener("input", soon);
    $("#log")?.addEventListener("change", soon);
    $("#over")?.addEventListener("change", soon);
    for (const box of $$(".toggle")) {
      show(box, visible(box.value));
      box.addEventListener("change", () => { show(box, box.checked); soon(); });
    }
    for (const [id, on] of [["#none", false], ["#all", true]]) {
      $(id)?.addEventListener("click", () => { for (const box of $$(".toggle")) show(box, on); soon(); });
    }
    for (const slider of $$(".level-step")) {
      slider.addEventListener("input", () => {
        slider.parentElement.querySelector("output").textContent = grouped(stepOf(slider));
        const element = $(`.plot[data-levels="${slider.dataset.level}"]`);
        if (plots.has(element)) draw(element);
      });
    }
  }
  const stepOf = (slider) => +slider.dataset.steps.split(" ")[slider.value];
  function levelStep(element) {
    const slider = $(`.level-step[data-level="${element.dataset.levels}"]`);
    return slider ? stepOf(slider) : Infinity;
  }

  // --- clips --------------------------------------------------------------------------------------------------------
  const addresses = new Map();
  function bytesOf(id) {
    const text = atob($(`#${id}`).textContent), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
  }
  // Where a file of samples is: with the server, or in this page.
  function addressOf(id) {
    if (data.live) return `/media/${id}`;
    if (!addresses.has(id)) addresses.set(id, URL.createObjectURL(new Blob([bytesOf(id)], { type: $(`#${id}`).dataset.type })));
    return addresses.get(id);
  }
  const textOf = async (id) => data.live ? (await fetch(addressOf(id))).text() : new TextDecoder().decode(bytesOf(id));
  // The picture of a run at a step, or at the last before it.
  function fill(figure, steps, at, playing) {
    const known = Object.keys(steps).map(Number).sort((a, b) => a - b);
    const step = known.filter((each) => each <= at).at(-1) ?? known[0];
    const id = steps[step];
    if (figure.dataset.shown === id) return;
    figure.dataset.shown = id;
    $(".at", figure).textContent = `step ${grouped(step)}`;
    const video = $("video", figure), image = $("img", figure), text = $("pre", figure);
    if (video) { video.src = addressOf(id); if (playing) video.play().catch(() => {}); }
    if (image) image.src = addressOf(id);
    if (text) textOf(id).then((lines) => { text.textContent = lines.split("\n").filter(Boolean).map((line) => JSON.parse(line).text).join("\n\n"); });
  }
  function clips(block) {
    const shown = data.shown[block.dataset.media], slider = $(".step", block), button = $(".play", block);
    let seen = false, playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
    const at = () => slider ? stepOf(slider) : Infinity;
    const label = () => { button.textContent = playing ? "pause" : "play"; };
    const fillAll = () => { for (const figure of $$("figure", block)) fill(figure, shown[figure.dataset.run], at(), playing); };
    const each = (action) => { for (const video of $$("video", block)) if (video.src) action(video); };
    new IntersectionObserver((entries) => {
      const { isIntersecting } = entries.at(-1);
      if (isIntersecting) { seen = true; fillAll(); }
      each((video) => isIntersecting && playing ? video.play().catch(() => {}) : video.pause());
    }, { rootMargin: "200px" }).observe(block);
    slider?.addEventListener("input", () => { slider.parentElement.querySelector("output").textContent = grouped(at()); if (seen) fillAll(); });
    button.addEventListener("click", () => { playing = !playing; label(); each((video) => playing ? video.play() : video.pause()); });
    button.removeAttribute("aria-pressed");
    button.hidden = !$("video", block);
    label();
  }
  // --- page ---------------------------------------------------------------------------------------------------------
  function start() {
    data = JSON.parse($("#data").textContent);
    for (const element of $$("[data-script]")) element.hidden = false;
    startCurves();
    $$(".media").forEach(clips);
  }
  $("#theme").addEventListener("change", (event) => {
    const chosen = event.target.value;
    chosen ? document.documentElement.dataset.theme = chosen : delete document.documentElement.dataset.theme;
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => {
    for (const details of $$("details:not(#experiments details)")) details.open = true;
    for (const element of $$(".plot")) if (element.offsetParent && !plots.has(element)) draw(element);
  });

  // --- kept current -------------------------------------------------------------------------------------------------
  // Every table, and what it is of: as it is called inside its section.
  const named = (element) => ($("[aria-label]", element)?.getAttribute("aria-label") ?? "") + $("summary", element).textContent;
  // What a reader has chosen, by the name or place of the control in the page.
  function choices() {
    return {
      open: $$("details").map((element) => [named(element), element.open]),
      values: $$("main input[type=range]").map((element) => [element.id, element.value, element.value === element.max]),
      log: $("#log")?.checked,
      over: $("#over")?.value,
    };
  }
  function choose({ open, values, log, over }) {
    const known = new Map(open);
    for (const element of $$("details")) element.open = known.get(named(element)) ?? false;
    $$("main input[type=range]").forEach((element, i) => {
      const [, value, atEnd] = values[i] ?? [null, null, true];
      if (element.id ? value != null : !atEnd) element.value = value;
      element.parentElement.querySelector("output")?.replaceChildren(grouped(stepOf(element)));
    });
    if ($("#log") && log != null) $("#log").checked = log;
    if ($("#over") && over) $("#over").value = over;
  }
  async function look() {
    const state = $("#state");
    try {
      const answer = await fetch("/version");
      if (!answer.ok) throw new Error(answer.statusText);
      if (await answer.json() === data.live) return;
      const fresh = new DOMParser().parseFromString(await (await fetch("/")).text(), "text/html");
      const chosen = choices(), top = scrollY;
      for (const plot of plots.values()) plot.destroy();
      plots.clear();
      drawn.disconnect();
      resized.disconnect();
      for (const part of ["main", "nav", "#state", "#data"]) $(part).replaceWith(document.adoptNode($(part, fresh)));
      choose(chosen);
      start();
      scrollTo({ top, behavior: "instant" });
    } catch (error) {
      if (!state.textContent.endsWith("stopped")) state.append(" · watch has stopped");
    }
  }
  // The clips stand behind this script.
  document.addEventListener("DOMContentLoaded", () => {
    start();
    if (data.live) setInterval(look, 2000);
  });
})();
