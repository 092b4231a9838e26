// One way to make, redraw and print a chart.

const charts = new Map();

// Registers a chart: `option(colours, width)` gives all of it; `ready(chart)` wires its events once.
function chart(id, option, label, ready) {
  const place = $(id);
  let entry = charts.get(id);
  if (!entry) {
    const instance = echarts.init(place, null, { renderer: "svg" });
    entry = { place, instance };
    charts.set(id, entry);
    if (ready) ready(instance);
    new ResizeObserver(() => { if (!printing && place.clientWidth && place.clientWidth !== entry.width) draw(entry); }).observe(place);
  }
  entry.option = option;
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", label);
  draw(entry);
  return entry.instance;
}

let printing = false;
const PRINT_WIDTH = 690;

function draw(entry) {
  const width = printing ? PRINT_WIDTH : entry.place.clientWidth;
  if (!width) return;
  const made = entry.option(ink(), width);
  entry.width = entry.place.clientWidth;
  if (made.height) entry.place.style.height = `${made.height}px`;
  entry.instance.resize({ width, height: made.height || entry.place.clientHeight || 320 });
  delete made.height;
  entry.instance.setOption({ animation: false, ...made }, { notMerge: true });
  if (printing) entry.instance.getZr().flush();
}

const redraw = () => { for (const entry of charts.values()) draw(entry); };

// A chart's axis in the page's own hand.
function axis(colours, extra) {
  return {
    nameTextStyle: { color: colours.soft, fontSize: 12, fontFamily: colours.sans },
    axisLabel: { color: colours.soft, fontSize: 12, fontFamily: colours.sans, hideOverlap: true, ...(extra.axisLabel || {}) },
    axisLine: { show: true, lineStyle: { color: colours.faint } },
    axisTick: { show: true, lineStyle: { color: colours.faint } },
    splitLine: { show: false },
    minorSplitLine: { show: false },
    ...Object.fromEntries(Object.entries(extra).filter(([key]) => key !== "axisLabel")),
  };
}

function tooltip(colours, body, extra) {
  return {
    trigger: "item", confine: true, transitionDuration: 0, backgroundColor: colours.paper, borderColor: colours.faint,
    borderWidth: 1, padding: [7, 10], extraCssText: "box-shadow:none;border-radius:3px", textStyle: { color: colours.ink },
    formatter: body, ...(extra || {}),
  };
}

function tip(title, rows) {
  return h("div", { class: "tip" }, h("b", {}, title), rows.filter(Boolean).map(([name, value]) => h("div", {}, h("span", {}, name), h("span", {}, value))));
}

function tickText(value) {
  return plain(value, 3);
}

// A whisker through a point: `low`, `high` on one axis at `at` on the other.
function whisker(api, colour, vertical, width = 1.4) {
  const [at, low, high] = [api.value(0), api.value(1), api.value(2)];
  const a = api.coord(vertical ? [at, low] : [low, at]);
  const b = api.coord(vertical ? [at, high] : [high, at]);
  return { type: "line", shape: { x1: a[0], y1: a[1], x2: b[0], y2: b[1] }, style: { stroke: colour, lineWidth: width }, silent: true };
}

// A range that a few far-off values do not spoil: [low, high, how many lie outside].
function calmRange(values) {
  const sorted = values.filter(isNumber).sort((a, b) => a - b);
  if (!sorted.length) return [0, 1, 0];
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  let [low, high] = [sorted[0], sorted[sorted.length - 1]];
  const spread = at(0.85) - at(0.1);
  if (sorted.length >= 12 && spread > 0) {
    if (high > at(0.85) + 2.5 * spread) high = at(0.85) + 0.8 * spread;
    if (low < at(0.1) - 2.5 * spread) low = at(0.1) - 0.8 * spread;
  }
  return [low, high, sorted.filter((value) => value < low || value > high).length];
}

function padded(low, high, share = 0.05) {
  const room = high > low ? (high - low) * share : Math.abs(high) * share || 1;
  return [low >= 0 ? Math.max(0, low - room) : low - room, high <= 0 ? Math.min(0, high + room) : high + room];
}

// Places for labels on a logarithmic axis: 1, 2, 5 of every power, or the powers alone where these are many.
function logTicks(low, high) {
  const found = [];
  const marks = high / low < 8 ? [1, 1.5, 2, 3, 4, 5, 7] : high / low < 300 ? [1, 2, 5] : [1];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e += 1) for (const k of marks) found.push(Number((k * 10 ** e).toPrecision(6)));
  const inside = found.filter((x) => x >= low && x <= high);
  return inside.length > 1 ? inside : [low, high];
}

// Ends and steps of a value axis at round numbers.
function rounded(low, high) {
  const step = 10 ** Math.floor(Math.log10((high - low) / 3 || 1));
  const size = [1, 2, 5, 10].map((k) => k * step).find((k) => (high - low) / k <= 6) || step;
  return { min: Number((Math.floor(low / size) * size).toPrecision(10)), max: Number((Math.ceil(high / size) * size).toPrecision(10)), interval: size };
}
