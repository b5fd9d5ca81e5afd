// The four plots of the last hour, by uPlot (a global of assets/uplot.js).
import * as text from "./text.js";

const PLOTS = {
  throughput: { series: [["received", "received"], ["sent", "sent"]], format: text.rate },
  latency: { series: [["round_trip", "median"], ["round_trip_most", "slowest"]], format: text.seconds },
  streams: { series: [["streams", "streams"], ["sessions", "sessions"]], format: whole },
  recoveries: { series: [["recoveries", "in this interval"]], format: whole, bars: true },
};
export const KEEP = 720; // as many samples as the server keeps

function whole(value) {
  return value === null || value === undefined ? "–" : Number.isInteger(value) ? String(value) : "";
}

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// While nobody points at a moment, the legend is about the latest one.
function showLatest(plot) {
  if (plot.cursor.idx == null && plot.data[0].length) plot.setLegend({ idx: plot.data[0].length - 1 });
}

export class Plots {
  constructor() {
    this.columns = { at: [] };
    this.plots = new Map();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(document.getElementById("plots"));
  }

  // All samples, in columns by name.
  fill(columns) {
    this.columns = columns;
    this.draw();
  }

  // One more sample, by the same names.
  add(sample) {
    const last = this.columns.at.at(-1);
    if (last !== undefined && sample.at <= last) return;
    for (const [name, values] of Object.entries(this.columns)) {
      values.push(sample[name] ?? null);
      if (values.length > KEEP) values.shift();
    }
    for (const [name, plot] of this.plots) {
      plot.setData(this.data(name));
      showLatest(plot);
    }
  }

  data(name) {
    return [this.columns.at, ...PLOTS[name].series.map(([key]) => this.columns[key] ?? [])];
  }

  draw() {
    for (const plot of this.plots.values()) plot.destroy();
    this.plots.clear();
    for (const name of Object.keys(PLOTS)) this.plots.set(name, this.plot(name));
  }

  plot(name) {
    const { series, format, bars } = PLOTS[name];
    const place = document.querySelector(`#plot-${name} .plot`);
    const axis = { stroke: color("--soft"), grid: { stroke: color("--grid"), width: 1 }, ticks: { show: false } };
    const colors = [color("--plot-a"), color("--plot-b")];
    const plot = new uPlot(
      {
        width: Math.max(place.clientWidth, 100),
        height: 170,
        cursor: { sync: { key: "hour" }, drag: { x: false, y: false } },
        scales: { x: { time: true, range: (_, least, most) => this.span(least, most) }, y: { range: (_, __, most) => [0, most > 0 ? most * 1.1 : 1] } },
        axes: [
          { ...axis, space: 70, values: (_, at) => at.map((moment) => new Date(moment * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })) },
          { ...axis, size: 76, values: (_, values) => values.map(format) },
        ],
        series: [
          { value: (_, at) => (at ? new Date(at * 1000).toLocaleTimeString() : "–") },
          ...series.map(([, label], index) => ({
            label,
            stroke: colors[index],
            width: 1.5,
            points: { show: false },
            value: (_, value) => format(value),
            ...(bars ? { paths: uPlot.paths.bars({ size: [1, 12] }), fill: colors[index] } : {}),
          })),
        ],
      },
      this.data(name),
      place,
    );
    showLatest(plot);
    return plot;
  }

  // The last hour, or ten minutes while there is less: a line in a corner says little.
  span(least, most) {
    const end = most ?? Date.now() / 1000;
    return [Math.max(end - 3600, Math.min(least ?? end, end - 600)), end];
  }

  resize() {
    for (const [name, plot] of this.plots) {
      const width = document.querySelector(`#plot-${name} .plot`).clientWidth;
      if (width && width !== plot.width) plot.setSize({ width, height: 170 });
    }
  }
}
