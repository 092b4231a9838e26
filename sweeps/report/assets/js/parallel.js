// Parallel coordinates. Every axis is drawn from 0 to 1 by its own scale, so that a branch's parameter that a trial does not
// have gets a place of its own below the axis instead of a made-up value.

const parallel = { intervals: new Map(), silent: false };
const NONE = -0.16;

function scaleOf(record, described) {
  const { kind } = described;
  if (kind === "category") {
    const values = described.values.map((value) => JSON.stringify(value));
    const at = (i) => (values.length === 1 ? 0.5 : i / (values.length - 1));
    return {
      to: (value) => { const i = values.indexOf(JSON.stringify(value)); return i < 0 ? NONE : at(i); },
      ticks: described.values.length > 14 ? [] : described.values.map((value, i) => [at(i), short(valueText(value), 16)]),
    };
  }
  const log = kind === "log";
  const f = log ? Math.log10 : (x) => x;
  const [low, high] = [f(described.low), f(described.high)];
  const to = (value) => (isNumber(value) && (!log || value > 0) ? (high > low ? Math.min(1, Math.max(0, (f(value) - low) / (high - low))) : 0.5) : NONE);
  const values = [described.low, ...between(described.low, described.high, log), described.high];
  return { to, ticks: values.map((value) => [to(value), plain(value, 3)]) };
}

// Round numbers well inside a range.
function between(low, high, log) {
  const found = [];
  if (log) {
    for (let e = Math.ceil(Math.log10(low)); e <= Math.log10(high); e += 1) found.push(10 ** e);
  } else {
    const step = 10 ** Math.floor(Math.log10((high - low) / 2 || 1));
    const size = (high - low) / step > 5 ? 2 * step : step;
    for (let x = Math.ceil(low / size) * size; x < high; x += size) found.push(Number(x.toPrecision(12)));
  }
  const span = (x) => (log ? Math.log(x / low) / Math.log(high / low) : (x - low) / (high - low));
  return found.filter((x) => span(x) > 0.1 && span(x) < 0.9);
}

function parallelAxes(record) {
  const made = record.axes.map((described) => ({ title: described.label, when: described.when, kind: described.kind, scale: scaleOf(record, described), value: (trial) => trial.parameters[described.path] }));
  const seen = record.trials.map((trial) => trial.score.value).filter(isNumber);
  if (seen.length) {
    const [low, high] = calmRange(seen);
    const log = low > 0 && high / low > 30;
    made.push({ title: record.metric, when: [], kind: "score", scale: scaleOf(record, { kind: log ? "log" : "linear", low, high }), value: (trial) => trial.score.value });
  }
  return made;
}

function parallelOption(colours, width) {
  const record = store.record;
  const axes = parallelAxes(record);
  const upright = width < 620;
  const rows = record.trials.map((trial) => ({ trial, at: axes.map((one) => one.scale.to(one.value(trial))) }));
  const missing = axes.map((_, i) => rows.some((row) => row.at[i] === NONE));
  const { stars } = roles(record);
  const line = (colour) => ({ color: colour, width: 1 });
  const height = upright ? Math.max(300, axes.length * 74 + 60) : undefined;
  return {
    height,
    tooltip: tooltip(colours, (item) => trialTip(record, item.name)),
    parallel: {
      left: upright ? 22 : 46, right: upright ? 34 : 80, top: upright ? 34 : 46, bottom: upright ? 30 : 20, layout: upright ? "vertical" : "horizontal",
      parallelAxisDefault: { type: "value", realtime: true, z: 20 },
    },
    parallelAxis: axes.map((one, i) => ({
      dim: i, name: upright ? one.title : short(one.title, Math.max(9, Math.floor(width / axes.length / 6.6))), type: "value",
      min: missing.some(Boolean) ? NONE : 0, max: 1, nameLocation: upright ? "start" : "end", nameGap: upright ? 0 : 14,
      nameTextStyle: { color: colours.ink, fontSize: 12, fontWeight: 600, fontFamily: colours.sans, ...(upright ? { align: "left", verticalAlign: "bottom", padding: [0, 0, 12, 0] } : {}) },
      axisLine: { lineStyle: line(colours.faint) }, minorTick: { show: false }, splitLine: { show: false },
      axisTick: { show: true, customValues: ticks(one, missing[i]).map(([at]) => at), lineStyle: line(colours.faint), length: 4 },
      axisLabel: { color: colours.soft, fontSize: 11, fontFamily: colours.sans, customValues: ticks(one, missing[i]).map(([at]) => at), formatter: (at) => nearest(ticks(one, missing[i]), at), hideOverlap: upright, backgroundColor: colours.paper, padding: [1, 2], margin: 5 },
      areaSelectStyle: { width: 22, borderWidth: 1, borderColor: colours.accent, color: colours.accent, opacity: 0.22 },
    })),
    series: [{
      type: "parallel", id: "trials", z: 1, smooth: false, progressive: 0, inactiveOpacity: 0.04, activeOpacity: 1, silent: false,
      emphasis: { disabled: false, lineStyle: { width: 3, opacity: 1, color: colours.ink } },
      data: [...rows].reverse().map(({ trial, at }) => ({
        name: trial.id, value: at,
        lineStyle: { color: stars.has(trial.id) ? colours.accent : trial.state === "failed" ? colours.bad : trial.state === "stopped" ? colours.pruned : colours.other, width: stars.has(trial.id) ? 2.8 : 1.3, opacity: stars.has(trial.id) ? 1 : trial.state === "stopped" ? 0.45 : 0.85, type: trial.state === "failed" ? "dotted" : "solid" },
      })),
    }],
  };
}

const ticks = (one, missing) => (missing ? [[NONE, one.kind === "score" ? "no score" : "not set"], ...one.scale.ticks] : one.scale.ticks);
const nearest = (marks, at) => (marks.reduce((best, mark) => (Math.abs(mark[0] - at) < Math.abs(best[0] - at) ? mark : best), [9, ""]))[1];

function trialTip(record, id) {
  const trial = record.trials.find((one) => one.id === id);
  if (!trial) return "";
  return tip(trial.id, [[record.metric, scoreText(trial.score)], ...Object.entries(trial.parameters).slice(0, 12).map(([path, value]) => [labelOf(path), short(valueText(value), 30)]), ["state", stateText(trial)]]);
}

function showParameters(record) {
  const there = record.trials.length > 0 && parallelAxes(record).length > 1; // one axis alone is no picture
  $("parameters").hidden = !there;
  if (!there) return;
  const branched = record.axes.filter((one) => one.when.length);
  fill("parameters-lead", "One line a trial; the last axis is its score at the rung that it reached. Drag along axes to select: the curves and the leaderboard follow. Click beside the selection to let it go.",
    branched.length ? ` ${branched.map((one) => `${one.label} is set only where ${short(one.when.join(" or "), 80)}`).join("; ")}: the others pass through “not set”.` : "");
  const instance = chart("parameters-chart", parallelOption, `Parameters and score of ${plural(record.trials.length, "trial")} as parallel coordinates. The leaderboard's search takes conditions such as lora_r=16.`, (made) => {
    made.on("axisareaselected", () => { if (!parallel.silent) readBrush(made); });
    made.on("mouseover", (item) => { if (item.seriesType === "parallel") look(item.name, "parameters"); });
    made.on("mouseout", () => look(null, "parameters"));
    made.on("click", (item) => { if (item.seriesType === "parallel") openRow(item.name); });
  });
  restoreBrush(instance);
  parametersReadout();
}

function readBrush(instance) {
  parallel.intervals.clear();
  instance.getOption().parallelAxis.forEach((_, i) => {
    const model = instance.getModel().getComponent("parallelAxis", i);
    const spans = ((model && model.activeIntervals) || []).filter(([a, b]) => Number.isFinite(a) && Number.isFinite(b) && b > a);
    if (spans.length) parallel.intervals.set(i, spans);
  });
  applyBrush();
}

function applyBrush() {
  if (!parallel.intervals.size) { select(null, "parameters"); return; }
  const axes = parallelAxes(store.record);
  const inside = (trial) => [...parallel.intervals].every(([i, spans]) => { const at = axes[i].scale.to(axes[i].value(trial)); return spans.some(([low, high]) => at >= low - 1e-9 && at <= high + 1e-9); });
  select(new Set(store.record.trials.filter(inside).map((trial) => trial.id)), "parameters");
}

function restoreBrush(instance) {
  parallel.silent = true;
  for (const [i, intervals] of parallel.intervals) {
    const id = instance.getModel().getComponent("parallelAxis", i);
    if (id) instance.dispatchAction({ type: "axisAreaSelect", parallelAxisId: id.id, intervals });
  }
  parallel.silent = false;
}

function clearSelection() {
  parallel.intervals.clear();
  const entry = charts.get("parameters-chart");
  if (entry) draw(entry);
  select(null, "clear");
}

function parametersReadout() {
  const total = store.record.trials.length;
  fill("parameters-readout", store.selected === null ? "" : [`${store.selected.size} of ${total} trials selected. `, h("button", { type: "button", class: "quiet", onclick: clearSelection }, "Clear the selection")]);
}
store.ears.select.push(() => parametersReadout());
store.ears.hot.push((from) => {
  const entry = charts.get("parameters-chart");
  if (!entry || from === "parameters") return;
  entry.instance.dispatchAction({ type: "downplay", seriesId: "trials" });
  if (store.hot) entry.instance.dispatchAction({ type: "highlight", seriesId: "trials", name: store.hot });
});
