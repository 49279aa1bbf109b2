// The pages are complete as the server sends them; this script keeps them so.  It listens to the page's event stream, asks for the
// page again when something has happened, and takes over what differs.  Curves are drawn by uPlot from the metrics of the API.
"use strict";

(() => {
  const PAUSE_MS = 1000; // between two refreshes, or longer where the server needs longer
  const SMOOTHED_POINTS = 20;

  /* ---- keeping the page up to date ---- */

  /** Make `old` equal to `fresh`, touching only what differs: focus, scrolling and opened details stay as they are. */
  function morph(old, fresh) {
    for (const { name, value } of fresh.attributes) {
      if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    for (const { name } of [...old.attributes]) {
      if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
    }
    let place = old.firstChild;
    for (const next of [...fresh.childNodes]) {
      const known = next.id ? [...old.children].find((child) => child.id === next.id) : null;
      while (known && place !== known && place && !(place.id && fresh.querySelector(`#${CSS.escape(place.id)}`))) {
        const gone = place;
        place = place.nextSibling;
        gone.remove();
      }
      if (place && place.nodeName === next.nodeName && (place.id || "") === (next.id || "")) {
        if (next.nodeType === Node.ELEMENT_NODE) morph(place, next);
        else if (place.nodeValue !== next.nodeValue) place.nodeValue = next.nodeValue;
        place = place.nextSibling;
      } else if (known) {
        old.insertBefore(known, place);
        morph(known, next);
      } else {
        old.insertBefore(document.importNode(next, true), place);
      }
    }
    while (place) {
      const gone = place;
      place = place.nextSibling;
      gone.remove();
    }
  }

  async function refreshPage() {
    const response = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!response.ok) throw new Error(`the page answered ${response.status}`);
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    document.title = fresh.title;
    for (const part of document.querySelectorAll("[data-live]")) {
      const next = fresh.getElementById(part.id);
      if (next) morph(part, next);
    }
  }

  let timer = null;
  let busy = false;
  let again = false;
  let pause = 0;

  /** Refresh soon; however many events come meanwhile, once. */
  function refresh() {
    again = true;
    if (!timer && !busy) timer = setTimeout(refreshNow, pause);
  }

  async function refreshNow() {
    timer = null;
    busy = true;
    again = false;
    const began = performance.now();
    try {
      await Promise.all([refreshPage(), refreshCurves()]);
    } catch {
      again = true; // the server is away; the event stream says so to the user
    }
    pause = Math.max(PAUSE_MS, 4 * (performance.now() - began));
    busy = false;
    if (again) refresh();
    else setTimeout(() => (pause = 0), pause);
  }

  function listen() {
    const { events, after } = document.body.dataset;
    if (!events) return;
    const shown = document.getElementById("connection");
    const tell = (open, text) => {
      shown.hidden = false;
      shown.classList.toggle("open", open);
      shown.textContent = text;
      shown.title = open ? "This page follows what happens" : "What you see may be old; the connection is tried again";
    };
    const source = new EventSource(`${events}?after=${after}`);
    source.onopen = () => tell(true, "Live");
    source.onerror = () => tell(false, source.readyState === EventSource.CLOSED ? "Not live" : "Reconnecting");
    for (const type of ["state", "progress", "round", "artifact"]) source.addEventListener(type, refresh);
    source.addEventListener("state", (event) => {
      const { job_id: other, state } = JSON.parse(event.data);
      if (other || state === "queued" || state === "running") return;
      source.close();
      tell(false, "Ended");
      shown.title = "The job is over; nothing more will happen";
    });
    addEventListener("pagehide", () => source.close());
    addEventListener("pageshow", (event) => event.persisted && location.reload());
  }

  /* ---- curves ---- */

  const DASHES = {
    grown: [], uniform: [7, 4], cost_only: [2, 3], random: [9, 3, 2, 3], twins: [5, 2], seed_alone: [12, 3], slimming: [4, 4],
    retrained: [12, 3, 3, 3],
  };
  const charts = new Map(); // element -> {plot, zoomed}
  let metrics = null;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const runColour = (run) => colour(`run-${run}`) || colour("run-other");
  const runTitle = (run) => (run === "grown" || run === "retrained" ? run : `${run.replaceAll("_", " ")} (control)`);
  const place = (run) => (Object.keys(DASHES).indexOf(run) + 1 || 99) - 1; // the order in which runs are carried out

  async function refreshCurves() {
    const box = document.querySelector("[data-metrics]");
    if (!box) return;
    const response = await fetch(box.dataset.metrics);
    if (!response.ok) throw new Error(`the metrics answered ${response.status}`);
    metrics = (await response.json()).metrics;
    draw();
  }

  function draw() {
    if (metrics) for (const element of document.querySelectorAll("[data-curve]")) drawOne(element);
  }

  /** An exponential mean over about so many points. */
  function smooth(values) {
    const weight = 2 / (SMOOTHED_POINTS + 1);
    let mean = values[0];
    return values.map((value, i) => (mean += Math.max(weight, 1 / (i + 1)) * (value - mean)));
  }

  /** Steps and values of one run; a cost stays what it is until the run's last step. */
  function curveOf(run, name) {
    const points = metrics[run][name];
    const steps = points.map(([step]) => step);
    let values = points.map(([, value]) => (name === "accuracy" ? 100 * value : value));
    const smoothed = name !== "selection_loss" && document.getElementById("smooth").checked;
    if (name !== "cost") return [steps, smoothed ? smooth(values) : values];
    const last = Math.max(...Object.values(metrics[run]).map((curve) => curve.at(-1)[0]));
    if (last > steps.at(-1)) {
      steps.push(last);
      values = [...values, values.at(-1)];
    }
    return [steps, values];
  }

  /** What a chart shows: a line per run, and dots for held-out losses or a line for the limit. */
  function linesOf(name, limit) {
    const runs = Object.keys(metrics).filter((run) => metrics[run][name]?.length).sort((a, b) => place(a) - place(b));
    const lines = runs.map((run) => ({
      label: runTitle(run), points: curveOf(run, name), stroke: runColour(run), width: run === "grown" ? 2.5 : 1.5, dash: DASHES[run] ?? [4, 4],
    }));
    if (runs.length && limit !== null) {
      const ends = lines.flatMap((line) => [line.points[0][0], line.points[0].at(-1)]);
      const points = [[Math.min(...ends), Math.max(...ends)], [limit, limit]];
      lines.push({ label: "limit", points, stroke: colour("limit"), width: 1.5, dash: [3, 3] });
    }
    if (name === "loss" && metrics.grown?.selection_loss) {
      lines.push({ label: "grown, held-out", points: curveOf("grown", "selection_loss"), stroke: runColour("grown"), dots: true });
    }
    return lines;
  }

  function drawOne(element) {
    const name = element.dataset.curve;
    const limit = element.dataset.limit === undefined ? null : Number(element.dataset.limit);
    const lines = linesOf(name, limit);
    if (!lines.length) return;
    const data = uPlot.join(lines.map((line) => line.points));
    const labels = lines.map((line) => line.label).join();
    const known = charts.get(element);
    if (known?.labels === labels) {
      known.plot.setData(data, !known.zoomed);
      if (known.zoomed) known.plot.redraw();
      return;
    }
    known?.plot.destroy();
    charts.set(element, newChart(element, name, lines, labels, data));
  }

  function newChart(element, name, lines, labels, data) {
    const chart = { labels, zoomed: false };
    const words = numberWords(name, element.dataset.unit);
    const axisWords = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });
    const grid = { stroke: colour("grid"), width: 1 };
    const axis = { stroke: colour("soft"), grid, ticks: grid, font: "12px system-ui, sans-serif" };
    const series = lines.map(({ label, stroke, width, dash, dots }) => ({
      label, stroke, width, dash, spanGaps: true,
      points: dots ? { show: true, size: 9, width: 2, fill: stroke, stroke: colour("surface") } : { show: false },
      ...(dots ? { paths: () => null } : name === "cost" && { paths: uPlot.paths.stepped({ align: 1 }) }),
      // away from the pointer the legend shows where each line stands now
      value: (plot, value, i, at) => words(at === null ? plot.data[i].findLast((each) => each !== null && each !== undefined) : value),
    }));
    const options = {
      width: element.clientWidth,
      height: 230,
      scales: { x: { time: false }, y: { range: (_, low, high) => yRange(name, low, high) } },
      series: [{ label: "step", value: (_, step) => (step === null ? "last" : step.toLocaleString("en")) }, ...series],
      axes: [
        { ...axis, space: 64, size: 36, values: (_, steps) => steps.map((step) => (Number.isInteger(step) ? step.toLocaleString("en") : "")) },
        { ...axis, size: 52, values: (_, values) => values.map((value) => axisWords.format(value)) },
      ],
      legend: { markers: { width: 2.5, dash: (_, i) => (lines[i - 1]?.dots ? "dotted" : lines[i - 1]?.dash.length ? "dashed" : "solid") } },
      cursor: { focus: { prox: 16 } },
      focus: { alpha: 0.35 },
      hooks: { setSelect: [(plot) => plot.select.width > 0 && (chart.zoomed = true)] },
    };
    chart.plot = new uPlot(options, data, element);
    chart.plot.over.addEventListener("dblclick", () => (chart.zoomed = false));
    return chart;
  }

  function numberWords(name, unit) {
    const text = (value) => {
      if (name === "accuracy") return value.toFixed(1);
      if (name === "loss") return value.toFixed(4);
      return value >= 10000 ? Math.round(value).toLocaleString("en") : value.toPrecision(4);
    };
    return (value) => (value === null || value === undefined ? "–" : `${text(value)} ${unit}`);
  }

  /** Costs from zero, so that lengths can be compared; accuracy never beyond 100 %. */
  function yRange(name, low, high) {
    if (low === null || high === null) return [0, 1];
    if (name === "cost") return [0, high * 1.08];
    const margin = (high - low || Math.abs(high) || 1) * 0.06;
    return [Math.max(0, low - margin), name === "accuracy" ? Math.min(100, high + margin) : high + margin];
  }

  function redraw() {
    for (const { plot } of charts.values()) plot.destroy();
    charts.clear();
    draw();
  }

  function startCurves() {
    const box = document.querySelector("[data-metrics]");
    if (!box) return;
    document.getElementById("smooth-label").hidden = false;
    document.getElementById("smooth").addEventListener("change", draw);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    new ResizeObserver(() => {
      for (const [element, { plot }] of charts) {
        if (element.clientWidth !== plot.width) plot.setSize({ width: element.clientWidth, height: plot.height });
      }
    }).observe(box);
    refreshCurves().catch(() => refresh());
  }

  startCurves();
  listen();
})();
