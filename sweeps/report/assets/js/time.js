// When everything ran, and what it cost.

function timeOption(colours, width) {
  const line = store.record.timeline;
  const later = [...new Set(line.spans.filter((span) => span.kind !== "lease").map((span) => (span.kind === "soup" ? "soup" : "final step")))];
  const names = [...Array.from({ length: line.lanes }, (_, i) => `slot ${i + 1}`), ...later];
  const total = line.seconds || 1;
  const unit = total > 5400 ? [3600, "hours"] : total > 180 ? [60, "minutes"] : [1, "seconds"];
  const spans = line.spans.map((span) => ({ ...span, row: span.kind === "lease" ? span.lane : line.lanes + later.indexOf(span.kind === "soup" ? "soup" : "final step"), stop: span.end === null ? total : span.end }));
  const { stars } = roles(store.record);
  const colour = (span) => (span.kind === "soup" ? colours.soup : span.kind === "final" ? colours.ink : span.how === "failed" ? colours.bad : stars.has(span.name.split("/seed-")[0]) ? colours.accent : colours.other);
  const height = Math.max(150, 60 + names.length * (names.length > 12 ? 18 : 30));
  return {
    height,
    grid: { left: 78, right: 20, top: 8, bottom: 42 },
    tooltip: tooltip(colours, (item) => { const span = spans[item.dataIndex]; return tip(span.name, [["took", duration(span.stop - span.start)], span.kind === "lease" ? ["from", `${span.from} ${store.record.unit}`] : null, span.why ? ["as", span.why] : null, ["ended", span.end === null ? "still running" : span.how]]); }),
    xAxis: axis(colours, { type: "value", min: 0, max: total / unit[0], name: `${unit[1]} since the start${line.breaks.length ? ", breaks left out" : ""}`, nameLocation: "middle", nameGap: 27, axisLabel: { formatter: tickText, showMaxLabel: false }, splitLine: { show: true, lineStyle: { color: colours.rule } } }),
    yAxis: axis(colours, { type: "category", data: names, inverse: true, axisTick: { show: false }, axisLine: { show: false }, axisLabel: { interval: names.length > 30 ? "auto" : 0 } }),
    series: [{
      type: "custom", encode: { x: [1, 2], y: 0 }, clip: true, data: spans.map((span) => [span.row, span.start / unit[0], span.stop / unit[0]]),
      renderItem: (params, api) => {
        const span = spans[params.dataIndex];
        const [x1, y] = api.coord([api.value(1), api.value(0)]);
        const [x2] = api.coord([api.value(2), api.value(0)]);
        const tall = Math.min(18, api.size([0, 1])[1] * 0.68);
        const open = span.end === null;
        return { type: "rect", shape: { x: x1, y: y - tall / 2, width: Math.max(1.5, x2 - x1 - 1), height: tall }, style: { fill: open ? colours.paper : colour(span), stroke: colour(span), lineWidth: open ? 1.5 : 0.5, opacity: span.kind === "lease" && span.how === "interrupted" ? 0.5 : 1 } };
      },
      markLine: line.breaks.length ? { silent: true, symbol: "none", lineStyle: { color: colours.ink, type: "dashed" }, label: { formatter: "break", color: colours.soft, fontSize: 11 }, data: line.breaks.map((one) => ({ xAxis: one.at / unit[0] })) } : undefined,
    }],
  };
}

function costRows(record) {
  return [...record.trials].filter((trial) => isNumber(trial.seconds) && trial.state !== "duplicate").sort((a, b) => a.order - b.order).map((trial) => {
    const evaluation = isNumber(trial.cost.evaluation_seconds) ? Math.min(trial.cost.evaluation_seconds, trial.seconds) : null;
    return { trial, evaluation, training: trial.seconds - (evaluation || 0) };
  });
}

function costOption(colours, width) {
  const rows = costRows(store.record);
  const split = rows.some((row) => row.evaluation !== null);
  const bar = (name, values, colour) => ({ type: "bar", name, stack: "seconds", data: values, itemStyle: { color: colour }, barMaxWidth: 26, barCategoryGap: "22%" });
  return {
    height: 230,
    grid: { left: 8, right: 16, top: 26, bottom: 34, containLabel: true },
    tooltip: tooltip(colours, (item) => { const row = rows[item.dataIndex]; return tip(row.trial.id, [["in all", duration(row.trial.seconds)], split ? ["training", duration(row.training)] : null, split ? ["evaluation", duration(row.evaluation)] : null, ["reached", row.trial.rung === null ? "–" : `${row.trial.rung} ${store.record.unit}`]]); }),
    xAxis: axis(colours, { type: "category", data: rows.map((row) => String(row.trial.order)), name: "trial", nameLocation: "middle", nameGap: 26, axisTick: { show: false } }),
    yAxis: axis(colours, { type: "value", name: "worker seconds", nameGap: 10, nameTextStyle: { align: "left", color: colours.soft, fontSize: 12 }, axisLine: { show: false }, axisTick: { show: false }, splitLine: { show: true, lineStyle: { color: colours.rule, opacity: 0.7 } }, axisLabel: { formatter: tickText } }),
    series: split ? [bar("training", rows.map((row) => row.training), colours.other), bar("evaluation", rows.map((row) => row.evaluation || 0), colours.shade)] : [bar("seconds", rows.map((row) => row.training), colours.other)],
  };
}

function showTime(record) {
  const line = record.timeline;
  const rows = costRows(record);
  $("time").hidden = !line.spans.length;
  if (!line.spans.length) return;
  const evaluation = rows.reduce((sum, row) => sum + (row.evaluation || 0), 0);
  const whole = rows.reduce((sum, row) => sum + row.trial.seconds, 0);
  const busy = line.spans.filter((span) => span.kind === "lease").reduce((sum, span) => sum + ((span.end === null ? line.seconds : span.end) - span.start), 0);
  fill("time-lead", `${duration(record.totals.seconds)} of work by ${plural(record.reproduction.drivers.length, "driver")}; ${plural(line.lanes, "slot")}, ${line.lanes ? Math.round((100 * busy) / (line.lanes * Math.max(1, lastLease(line)))) : 0} % busy while trials ran. `,
    evaluation ? `Of ${duration(whole)} on workers, ${Math.round((100 * evaluation) / whole)} % went into evaluation.` : "");
  chart("time-chart", timeOption, `When each of ${line.spans.length} leases ran, by slot.`, (instance) => {
    instance.on("mouseover", (item) => { const span = store.record.timeline.spans[item.dataIndex]; if (span && span.kind === "lease") look(span.name.split("/seed-")[0], "time"); });
    instance.on("mouseout", () => look(null, "time"));
  });
  fill("time-fine", "A bar is one lease: a trial's way from one rung to the next. Blue is the best trial", line.spans.some((span) => span.how === "failed") ? ", red ended in a failure" : "", line.spans.some((span) => span.end === null) ? ", open ones still run" : "", ". The ledger does not name slots; leases are laid into the first one that was free.",
    line.breaks.length ? ` Left out: ${line.breaks.map((one) => duration(one.seconds)).join(", ")} without a driver.` : "");
  $("cost-chart").hidden = !rows.length;
  $("cost-chart").previousElementSibling.hidden = !rows.length;
  if (rows.length) chart("cost-chart", costOption, "Worker seconds of each trial, training below and evaluation above.");
  const names = Object.keys(record.totals.costs);
  fill("cost-table", h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "in all"), h("th", { class: "num", scope: "col" }, "sweep"), h("th", { class: "num", scope: "col" }, "median trial"))),
    h("tbody", {}, [["worker seconds", "seconds", record.totals.worker_seconds, rows.map((row) => row.trial.seconds)], ...names.map((name) => [words(name), name, record.totals.costs[name], record.trials.map((trial) => trial.cost[name]).filter(isNumber)])].map(([label, name, sum, each]) =>
      h("tr", {}, h("td", {}, label, name.includes("peak") ? " (largest)" : ""), h("td", { class: "num" }, costText(name, sum)), h("td", { class: "num" }, costText(name, median(each))))))));
}

const lastLease = (line) => Math.max(0, ...line.spans.filter((span) => span.kind === "lease").map((span) => (span.end === null ? line.seconds : span.end)));

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.floor((sorted.length - 1) / 2)] : null;
}
