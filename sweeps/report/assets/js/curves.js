// Learning curves: one line a run, the pruned ones faint, a band of 95 % around the one that is looked at.

const curves = { metric: null, logX: null, logY: null, whole: false };
const Z = 1.959964;

function curveNames(record) {
  const found = new Set();
  for (const trial of record.trials) for (const run of trial.runs) for (const name of Object.keys(run.curves)) found.add(name);
  const first = record.metrics.map((metric) => metric.name).filter((name) => found.has(name));
  return [...new Set([...first, ...[...found].sort()])];
}

function curveRuns(record, metric) {
  const { stars } = roles(record);
  const made = [];
  for (const trial of record.trials) {
    for (const run of trial.runs) {
      const points = (run.curves[metric] || []).filter(([, value]) => isNumber(value));
      if (points.length) made.push({ id: `${trial.id}/seed-${run.seed}`, trial, run, points, winner: stars.has(trial.id) });
    }
  }
  return made.reverse();
}

function geometric(steps) {
  const ratios = steps.slice(1).map((step, i) => step / steps[i]);
  return steps.length > 2 && Math.min(...ratios) > 1.4 && steps[0] > 0;
}

function curveLook(colours, one) {
  if (one.winner) return { color: colours.accent, width: 2.6, opacity: 1, z: 6 };
  if (one.trial.state === "stopped" || one.trial.state === "failed") return { color: colours.pruned, width: 1.1, opacity: 0.42, z: 2 };
  if (one.trial.state === "running" || one.trial.state === "waiting" || one.trial.state === "interrupted") return { color: colours.other, width: 1.3, opacity: 0.75, z: 3, type: "dashed" };
  return { color: colours.other, width: 1.5, opacity: 0.95, z: 4 };
}

function curvesOption(colours, width) {
  const record = store.record;
  const runs = curveRuns(record, curves.metric);
  const xs = [...new Set(runs.flatMap((one) => one.points.map(([x]) => x)))].sort((a, b) => a - b);
  const ys = runs.flatMap((one) => one.points.map(([, y]) => y));
  const logX = curves.logX && xs[0] > 0;
  const logY = curves.logY && Math.min(...ys) > 0;
  const [low, high] = curves.whole || logY ? [Math.min(...ys), Math.max(...ys)] : calmRange(ys);
  const round = rounded(...padded(low, high, 0.03));
  const marks = record.milestones.filter((m) => xs.includes(m));
  const series = runs.map((one) => {
    const look = curveLook(colours, one);
    const shown = isSelected(one.trial) ? look.opacity : 0.05;
    return {
      type: "line", id: one.id, name: one.trial.id, data: one.points.map(([x, y]) => [x, y]), triggerLineEvent: true,
      symbol: "circle", symbolSize: one.winner ? 6 : one.points.length === 1 ? 4.5 : 3.5, showSymbol: true, z: look.z,
      color: look.color, itemStyle: { opacity: shown }, cursor: "pointer",
      lineStyle: { color: look.color, width: look.width, opacity: shown, type: look.type || "solid" },
      emphasis: { focus: "series", lineStyle: { width: 3, opacity: 1, color: one.winner ? colours.accent : colours.ink }, itemStyle: { opacity: 1, color: one.winner ? colours.accent : colours.ink } },
      blur: { lineStyle: { opacity: shown * 0.3 }, itemStyle: { opacity: shown * 0.3 } },
    };
  });
  series.push(band(colours, runs));
  return {
    grid: { left: 8, right: 20, top: 26, bottom: 34, containLabel: true },
    tooltip: tooltip(colours, (item) => curveTip(runs, item)),
    xAxis: axis(colours, {
      type: logX ? "log" : "value", logBase: 10, name: record.unit, nameLocation: "middle", nameGap: 30,
      min: logX ? xs[0] : Math.min(0, xs[0]), max: xs[xs.length - 1],
      axisTick: { show: true, customValues: marks.length && marks.length < 14 ? marks : undefined },
      axisLabel: { customValues: marks.length && marks.length < 14 ? marks : undefined, formatter: tickText },
      splitLine: { show: false },
    }),
    yAxis: axis(colours, {
      type: logY ? "log" : "value", name: curves.metric, nameLocation: "end", nameGap: 10,
      nameTextStyle: { color: colours.soft, fontSize: 12, align: "left", fontFamily: colours.sans },
      ...(logY ? { min: low * 0.96, max: high * 1.04 } : round), axisTick: { show: false, customValues: logY ? logTicks(low * 0.96, high * 1.04) : undefined }, axisLine: { show: false },
      splitLine: { show: true, customValues: logY ? logTicks(low * 0.96, high * 1.04) : undefined, lineStyle: { color: colours.rule, opacity: 0.7 } },
      axisLabel: { formatter: tickText, customValues: logY ? logTicks(low * 0.96, high * 1.04) : undefined },
    }),
    series,
  };
}

function band(colours, runs) {
  const mine = runs.filter((one) => one.trial.id === store.hot);
  const data = mine.flatMap((one) => {
    const known = one.points.filter(([, , se]) => isNumber(se) && se > 0);
    return known.length ? [known.flatMap(([x, y, se]) => [x, y - Z * se, y + Z * se])] : [];
  });
  return {
    type: "custom", id: "band", silent: true, z: 1, clip: true, data: data.map((flat) => [flat[0], flat[1], flat]),
    tooltip: { show: false }, encode: { x: 0, y: 1 },
    renderItem: (params, api) => {
      const flat = data[params.dataIndex];
      const [lower, upper] = [[], []];
      for (let i = 0; i < flat.length; i += 3) {
        lower.push(api.coord([flat[i], flat[i + 1]]));
        upper.push(api.coord([flat[i], flat[i + 2]]));
      }
      const fine = (points) => points.filter((point) => point.every(Number.isFinite));
      const ends = { stroke: colours.accent, lineWidth: 1.4 };
      if (lower.length === 1) return { type: "line", shape: { x1: lower[0][0], y1: lower[0][1], x2: upper[0][0], y2: upper[0][1] }, style: ends };
      return { type: "polygon", shape: { points: fine([...lower, ...upper.reverse()]) }, style: { fill: colours.accent, opacity: 0.16 }, blur: { style: { opacity: 0.16 } } };
    },
  };
}

function curveTip(runs, item) {
  const one = runs.find((run) => run.id === item.seriesId);
  if (!one) return "";
  const x = Array.isArray(item.value) ? item.value[0] : null;
  const point = one.points.find(([at]) => at === x) || one.points[one.points.length - 1];
  return tip(one.trial.id, [
    [`${curves.metric} at ${point[0]}`, scoreText({ value: point[1], se: point[2] })],
    one.trial.runs.length > 1 ? ["seed", one.run.seed] : null,
    ...Object.entries(one.trial.parameters).slice(0, 8).map(([path, value]) => [labelOf(path), short(valueText(value), 30)]),
    ["state", stateText(one.trial)],
  ]);
}

function blueWords(record) {
  const { stars, judged } = roles(record);
  if (stars.size > 1) return judged ? `Blue are the ${stars.size} that were judged` : `Blue are the ${stars.size} on the front`;
  return `Blue is the best${judged ? " (the one that was judged)" : " so far"}`;
}

function showCurves(record) {
  const names = curveNames(record);
  $("curves").hidden = !names.length;
  if (!names.length) return;
  if (!names.includes(curves.metric)) curves.metric = names[0];
  if (curves.logX === null) curves.logX = geometric(record.milestones);
  curveTools(record, names);
  const pruned = record.trials.filter((trial) => trial.state === "stopped").length;
  fill("curves-lead", `One line a run, ${record.milestones.length > 1 ? `compared at ${record.milestones.join(", ")} ${record.unit}` : `scored at ${record.milestones[0]} ${record.unit}`}. `,
    blueWords(record), pruned ? `, faint are the ${pruned} that were stopped early` : "", ". Point at a line for its values and its 95 % band.");
  chart("curves-chart", curvesOption, `Learning curves of ${plural(record.trials.length, "trial")}: ${curves.metric} by ${record.unit}. The leaderboard has the same numbers.`, (instance) => {
    instance.on("mouseover", (item) => { if (item.seriesType === "line") look(item.seriesName, "curves"); });
    instance.on("mouseout", () => look(null, "curves"));
    instance.on("click", (item) => { if (item.seriesType === "line") openRow(item.seriesName); });
  });
  curvesReadout();
}

function curveTools(record, names) {
  const ys = curveRuns(record, curves.metric).flatMap((one) => one.points.map(([, y]) => y));
  const positive = ys.length && Math.min(...ys) > 0;
  const wide = positive && Math.max(...ys) / Math.min(...ys) > 3;
  if (curves.logY === null) curves.logY = positive && Math.max(...ys) / Math.min(...ys) > 5;
  if (!wide) curves.logY = false;
  const outside = calmRange(ys)[2];
  const again = () => showCurves(store.record);
  const box = (text, key, label) => h("label", {}, h("input", { type: "checkbox", checked: curves[key], onchange: (event) => { curves[key] = event.target.checked; again(); }, "aria-label": label }), text);
  fill("curves-tools",
    names.length > 1 ? h("label", {}, "Show", h("select", { "aria-label": "Which numbers the curves show", onchange: (event) => { curves.metric = event.target.value; curves.logY = null; again(); } }, names.map((name) => h("option", { value: name, selected: name === curves.metric }, name)))) : null,
    record.milestones.length > 2 ? box(`log ${record.unit}`, "logX", "Logarithmic horizontal axis") : null,
    wide ? box("log values", "logY", "Logarithmic vertical axis") : null,
    outside && !curves.logY ? box(`whole range (${plural(outside, "point")} ${outside === 1 ? "lies" : "lie"} outside)`, "whole", "Show all points") : null,
  );
}

function curvesReadout() {
  const trial = store.record.trials.find((one) => one.id === store.hot);
  const count = store.selected === null ? "" : `${store.selected.size} of ${store.record.trials.length} trials selected. `;
  fill("curves-readout", count, trial ? [h("span", { class: "id" }, trial.id), ` ${trial.score.value !== null ? `${scoreText(trial.score)} at ${trial.rung}` : "no score yet"}, ${stateText(trial)}. `,
    Object.entries(trial.parameters).map(([path, value]) => `${labelOf(path)} ${short(valueText(value), 40)}`).join(", ")] : "");
}

store.ears.hot.push((from) => {
  const entry = charts.get("curves-chart");
  if (!entry || !store.record) return;
  const runs = curveRuns(store.record, curves.metric);
  entry.instance.setOption({ series: [band(ink(), runs)] }, { lazyUpdate: false });
  if (from !== "curves") {
    entry.instance.dispatchAction({ type: "downplay" });
    for (const one of runs.filter((run) => run.trial.id === store.hot)) entry.instance.dispatchAction({ type: "highlight", seriesId: one.id });
  }
  curvesReadout();
});
store.ears.select.push(() => { if (charts.has("curves-chart")) { draw(charts.get("curves-chart")); curvesReadout(); } });
