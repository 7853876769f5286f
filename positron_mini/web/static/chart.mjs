// A line chart that follows its data, its width and the light. uPlot draws it; it is fetched when the first chart is.

import { html, useDark, useEffect, useRef } from "./ui.mjs";

let library = null;

function load() {
  library ??= new Promise((resolve, reject) => {
    const style = Object.assign(document.createElement("link"), { rel: "stylesheet", href: "/vendor/uplot/uPlot.min.css" });
    const script = Object.assign(document.createElement("script"), { src: "/vendor/uplot/uPlot.iife.min.js" });
    script.onload = () => resolve(window.uPlot);
    script.onerror = reject;
    document.head.append(style, script);
  });
  return library;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--line-${name}`).trim();

/** Series `{name, values, hue: "blue" | "orange" | "grey" | "green", dash, points, width}` over the steps `x`; `summary` says it in words. */
export function Chart({ x, series, summary, height = 220, log = false, show = (value) => value.toPrecision(4) }) {
  const box = useRef(null);
  const plot = useRef(null);
  const dark = useDark();
  const shape = JSON.stringify([series.map(({ name, hue, dash, points }) => [name, hue, dash, points]), log, dark, height]);
  const data = useRef(null);
  data.current = [x, ...series.map((one) => one.values)];

  useEffect(() => {
    let gone = false;
    let watcher = null;
    load().then((uPlot) => {
      if (gone) return;
      const width = () => Math.max(200, box.current.clientWidth);
      plot.current = new uPlot(options(series, { width: width(), height, log, show }), data.current, box.current);
      watcher = new ResizeObserver(() => plot.current?.setSize({ width: width(), height }));
      watcher.observe(box.current);
    });
    return () => {
      gone = true;
      watcher?.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [shape]);
  useEffect(() => {
    plot.current?.setData(data.current);
    if (plot.current && plot.current.cursor.idx === null) newest(plot.current);
  }, [x, ...series.map((one) => one.values)]);
  return html`<div class="chart" ref=${box} role="img" aria-label=${summary}></div>`;
}

/** Let the legend show the last step while nothing is pointed at. */
const newest = (plot) => plot.setLegend({ idx: plot.data[0].length - 1 });

function options(series, { width, height, log, show }) {
  const axis = { stroke: colour("text"), grid: { stroke: colour("grid"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const steps = (_, ticks) => ticks.map((value) => (value === null ? "" : value.toLocaleString("en-US")));
  return {
    width,
    height,
    scales: { x: { time: false, distr: log ? 3 : 1 } },
    cursor: { points: { size: 7 }, drag: { x: true, y: false } },
    legend: { live: true },
    hooks: { setCursor: [(plot) => plot.cursor.idx ?? newest(plot)], ready: [newest] },
    axes: [
      { ...axis, values: steps, space: 60 },
      { ...axis, size: 56, values: (_, ticks) => ticks.map((value) => (Math.abs(value) >= 1000 ? value.toLocaleString("en-US") : String(+value.toPrecision(4)))) },
    ],
    series: [
      { label: "Step", value: (_, value) => (value === null ? "–" : value.toLocaleString("en-US")) },
      ...series.map((one) => ({
        label: one.name,
        stroke: colour(one.hue),
        width: one.width ?? 1.75,
        dash: one.dash,
        spanGaps: true,
        points: { show: one.points ?? false, size: 6, fill: colour(one.hue) },
        value: (_, value) => (value === null || value === undefined ? "–" : show(value)),
      })),
    ],
  };
}
