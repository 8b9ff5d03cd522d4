// The pages work without this file. It shows times of the reader's own zone, copies texts, draws
// charts, and says when the page could not be refreshed.
"use strict";

const ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone;

function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    time.title = `${time.dateTime}\n${at.toLocaleString()} (${ZONE})`;
  }
}

function copyButtons(root) {
  for (const button of root.querySelectorAll("button[data-copy]")) {
    button.hidden = false;
    button.onclick = async () => {
      await navigator.clipboard.writeText(button.dataset.copy);
      const before = button.textContent;
      button.textContent = "copied";
      setTimeout(() => { button.textContent = before; }, 1500);
    };
  }
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function charts(root) {
  if (typeof uPlot === "undefined") return;
  for (const place of root.querySelectorAll("[data-chart]")) {
    const { series, unit, time } = JSON.parse(place.dataset.chart);
    const axis = { stroke: colour("--faint"), grid: { stroke: colour("--line"), width: 1 },
      ticks: { show: false }, font: "12px system-ui" };
    const names = Object.keys(series).filter((name) => name !== "at");
    const strokes = [colour("--accent"), colour("--bad")];
    const draw = () => new uPlot({
      width: place.clientWidth, height: 190, padding: [8, 8, 0, 0], tzDate: (ts) =>
        uPlot.tzDate(new Date(ts * 1e3), "UTC"),
      series: [{ label: "UTC", value: (_, at) => at === null ? "–" :
        new Date(at * 1e3).toISOString().slice(0, time ? 16 : 10).replace("T", " ") }, ...names.map((label, index) => ({
        label, stroke: strokes[index], fill: index ? undefined : colour("--accent-wash"),
        width: 1.5, points: { show: series.at.length < 40 },
        value: (_, value) => value === null ? "–" : unit + value,
      }))],
      axes: [{ ...axis, values: (_, all) => all.map((at) =>
        new Date(at * 1e3).toLocaleString("en-GB", time
          ? { hour: "2-digit", minute: "2-digit", timeZone: "UTC" }
          : { day: "numeric", month: "short", timeZone: "UTC" })) }, { ...axis, size: 48, values: (_, all) => all.map((value) => unit + value) }],
      scales: { y: { range: (_, low, high) => [0, Math.max(high, 1) * 1.08] } },
    }, [series.at, ...names.map((name) => series[name])], place);
    place.replaceChildren();
    let chart = draw();
    new ResizeObserver(() => chart.setSize({ width: place.clientWidth, height: 190 }))
      .observe(place);
  }
}

function prepare(root) {
  localTimes(root);
  copyButtons(root);
  charts(root);
}

document.addEventListener("DOMContentLoaded", () => {
  prepare(document);
  document.addEventListener("keydown", (event) => {
    const field = document.querySelector("#find");
    const typing = event.target.matches("input, textarea, select");
    if (event.key === "/" && !typing && field) { event.preventDefault(); field.focus(); }
  });
  const stale = document.querySelector("#stale");
  const warn = (text) => { if (stale) { stale.hidden = false; stale.textContent = text; } };
  document.body.addEventListener("htmx:afterSwap", (event) => {
    if (stale) stale.hidden = true;
    prepare(event.detail.target.isConnected ? event.detail.target : document);
  });
  document.body.addEventListener("htmx:sendError", () => warn("The console does not answer."));
  document.body.addEventListener("htmx:responseError", (event) => {
    if (event.detail.xhr.status === 401) location.reload();
    else warn(`Not refreshed: the console answered ${event.detail.xhr.status}.`);
  });
});
