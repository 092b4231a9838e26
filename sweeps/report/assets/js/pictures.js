// Verdicts, importance, the front, the soup, time and cost: the smaller pictures.

function forest(colours, rows, options) {
  const values = rows.flatMap((row) => [row.low, row.high, row.value, row.noise]).filter(isNumber);
  const [low, high] = options.range || padded(Math.min(0, ...values), Math.max(0, ...values), 0.08);
  const width = options.width;
  const room = Math.min(width * 0.42, 7.2 * Math.max(...rows.map((row) => row.name.length)) + 18);
  return {
    height: 46 + 34 * rows.length + (options.axisName ? 22 : 0),
    grid: { left: room, right: 24, top: 10, bottom: options.axisName ? 46 : 26 },
    tooltip: tooltip(colours, (item) => options.tip(rows[item.dataIndex])),
    xAxis: axis(colours, { type: "value", min: low, max: high, name: options.axisName, nameLocation: "middle", nameGap: 28, axisLabel: { formatter: options.format || tickText, showMinLabel: Boolean(options.range), showMaxLabel: Boolean(options.range) }, splitLine: { show: true, lineStyle: { color: colours.rule } } }),
    yAxis: axis(colours, { type: "category", inverse: true, data: rows.map((row) => row.name), axisLine: { show: false }, axisTick: { show: false }, axisLabel: { color: colours.ink, fontSize: 13, width: room - 14, overflow: "truncate", interval: 0 } }),
    series: [
      options.noise ? { type: "bar", data: rows.map((row) => row.noise), barWidth: 16, itemStyle: { color: colours.shade }, silent: true, z: 1 } : null,
      { type: "custom", silent: true, z: 3, encode: { x: [1, 2], y: 0 }, data: rows.map((row, i) => [i, row.low, row.high]), renderItem: (params, api) => (isNumber(rows[params.dataIndex].low) ? whisker({ value: (k) => api.value(k), coord: ([x, y]) => api.coord([x, y]) }, rows[params.dataIndex].colour, false, 2) : null) },
      { type: "scatter", z: 4, symbolSize: 11, data: rows.map((row) => ({ value: [row.value, row.name], itemStyle: { color: row.hollow ? colours.paper : row.colour, borderColor: row.colour, borderWidth: 2, opacity: 1 } })),
        markLine: options.zero ? { silent: true, symbol: "none", label: { show: false }, lineStyle: { color: colours.soft, type: "solid", width: 1 }, data: [{ xAxis: 0 }] } : undefined },
    ].filter(Boolean),
  };
}

function showImportance(record) {
  const found = record.importance;
  $("importance").hidden = !record.axes.length || !record.trials.length;
  if ($("importance").hidden) return;
  const rows = found.indices.filter((one) => isNumber(one.value));
  const left = found.indices.filter((one) => !isNumber(one.value));
  $("importance-chart").hidden = !rows.length;
  if (!rows.length) {
    fill("importance-lead", `How much each parameter mattered is not shown: ${found.reason || left.map((one) => `${labelOf(one.name)}: ${one.reason}`).join("; ")}.`);
    fill("importance-fine", "");
    return;
  }
  const clear = rows.filter((one) => one.low > 0 && one.value > one.noise).map((one) => labelOf(one.name));
  fill("importance-lead", clear.length ? `Over ${found.n} ended trials, ${clear.join(" and ")} can be told from chance.` : `Over ${found.n} ended trials, no parameter can be told from chance.`,
    " The dot is the share of the differences in rank that a parameter explains by itself, the line its 95 % interval; the grey bar is what a parameter without any effect stays below in 19 of 20 sweeps.");
  chart("importance-chart", (colours, width) => forest(colours, rows.map((one) => ({ ...one, name: labelOf(one.name), colour: one.value > one.noise ? colours.accent : colours.faint, hollow: one.value <= one.noise })), {
    width, noise: true, range: [0, 1], axisName: "share of the variance of ranks", format: (x) => `${Math.round(100 * x)} %`,
    tip: (row) => tip(row.name, [["share", `${Math.round(100 * row.value)} %`], ["95 % interval", `${Math.round(100 * row.low)} to ${Math.round(100 * row.high)} %`], ["chance stays below", `${Math.round(100 * row.noise)} %`], ["trials", row.n]]),
  }), `Importance of ${rows.map((one) => `${one.name} ${Math.round(100 * one.value)} percent`).join(", ")}.`);
  fill("importance-fine", `Main effects of functional ANOVA on ranks (Hutter et al., ICML 2014; local linear smoother, Da Veiga et al. 2009), bootstrap over the ${found.n} trials`,
    found.pruned ? `, of which ${found.pruned} were stopped early and rank below those that went on` : "", ". What parameters do only together is not in it; with few trials strong effects come out somewhat too small.",
    left.length ? ` Not shown: ${left.map((one) => `${labelOf(one.name)} (${one.reason})`).join(", ")}.` : "");
}

function showVerdicts(record) {
  const rows = record.verdicts.filter((one) => isNumber(one.difference));
  $("verdicts").hidden = !record.verdicts.length && !record.finals.length;
  if ($("verdicts").hidden) return;
  const metrics = [...new Set(rows.map((one) => one.metric))];
  const first = metrics[0];
  const drawn = rows.filter((one) => one.metric === first && isNumber(one.low));
  fill("verdicts-lead", `Test was opened ${record.openings === 1 ? "once" : `${record.openings} times`}, ${record.verdicts.length ? plural(record.verdicts.length, "verdict") : "nothing was compared there"}. `,
    record.verdicts.length ? `Differences are paired on the same rows; ${record.direction === "minimize" ? "left of zero the first-named is better" : "right of zero the first-named is better"}. ` : "",
    record.verdicts.some((one) => one.covers === "data") ? "Intervals cover the choice of rows, not the luck of training." : "");
  $("verdicts-chart").hidden = !drawn.length;
  if (drawn.length) {
    chart("verdicts-chart", (colours, width) => forest(colours, drawn.map((one) => ({ name: width < 520 ? `${bare(one.left)} − ${bare(one.right)}` : `${bare(one.left)} minus ${bare(one.right)}`, value: one.difference, low: one.low, high: one.high, colour: one.decided === "neither" ? colours.faint : /^soup/.test(one.left) ? colours.soup : colours.accent, hollow: one.decided === "neither", verdict: one })), {
      width, zero: true, axisName: `difference in ${first}, 95 % interval`,
      tip: (row) => tip(row.name, [["difference", plain(row.value, 3)], ["95 %", `${plain(row.low, 3)} to ${plain(row.high, 3)}`], ["p (Holm)", pText(row.verdict.p_holm)], ["rows", row.verdict.n]]),
    }), `Verdicts: ${drawn.map((one) => one.line).join("; ")}.`);
  }
  fill("verdicts-table", !record.verdicts.length ? null : h("table", {}, h("thead", {}, h("tr", {}, ["", "metric", "difference", "95 % interval", "p", "p (Holm)", "rows", "verdict"].map((name, i) => h("th", { scope: "col", class: i > 1 && i < 7 ? "num" : "" }, name)))),
    h("tbody", {}, record.verdicts.map((one) => h("tr", {}, h("td", { class: "nowrap" }, `${bare(one.left)} minus ${bare(one.right)}`), h("td", {}, one.metric), h("td", { class: "num" }, withError(one.difference, one.se)[0]),
      h("td", { class: "num" }, isNumber(one.low) ? `${limit(one.low, one.se)} to ${limit(one.high, one.se)}` : "–"), h("td", { class: "num" }, pText(one.p)), h("td", { class: "num" }, pText(one.p_holm)), h("td", { class: "num" }, one.clusters !== one.n ? `${one.n} in ${one.clusters} groups` : one.n),
      h("td", { class: "wide" }, one.words, one.note ? `; ${one.note}` : "", one.covers === "data and training" ? `; ${plural(new Set([...one.seeds.left, ...one.seeds.right]).size, "training seed")}` : ""))))));
  const spread = (one) => [withError(one.value, one.se)[0], isNumber(one.low) ? h("small", {}, ` ${limit(one.low, one.se)} to ${limit(one.high, one.se)}`) : ""];
  const seeds = (one) => one.seeds.length || 1;
  fill("gaps-lead", !record.gaps.length ? "" : "What chose each, beside what it is worth on test, with 95 % intervals: Student's t, over the rows (clustered) and the training seeds where there are several.");
  fill("gaps-table", !record.gaps.length ? null : h("table", {}, h("thead", {}, h("tr", {}, ["chosen", "by", "score there", "seeds", "on test", "seeds", "worse on test by"].map((name, i) => h("th", { scope: "col", class: i > 1 ? "num" : "" }, name)))),
    h("tbody", {}, record.gaps.map((one) => h("tr", {}, h("td", { class: "nowrap" }, bare(one.role)), h("td", {}, one.chosen_on), h("td", { class: "num" }, spread(one.tuned)), h("td", { class: "num" }, seeds(one.tuned)), h("td", { class: "num" }, spread(one.tested)), h("td", { class: "num" }, seeds(one.tested)), h("td", { class: "num" }, spread(one.worse)))))));
  const keys = [...new Set(record.finals.flatMap((one) => Object.keys(one.scores)))];
  fill("finals-table", !record.finals.length ? null : h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "scored on test"), keys.map((key) => h("th", { scope: "col", class: "num" }, key)))),
    h("tbody", {}, record.finals.map((one) => h("tr", {}, h("td", {}, bare(one.role), one.seed !== null ? ` (${one.own ? "tuning " : ""}seed ${one.seed})` : ""), keys.map((key) => h("td", { class: "num" }, score(one.scores[key]))))))));
}

const limit = (value, se) => { const text = withError(value, se)[0]; return Number(text.replace("−", "-")) === 0 && value !== 0 ? plain(value, 2) : text; };
const bare = (role) => ({ winner: "best single", baseline: "baseline", soup: "soup" })[role] || (role.startsWith("front-") ? role : `soup ${role}`);

const front = { x: null, y: null, log: false };

function frontChoices(record) {
  const names = curveNames(record).filter((name) => !name.startsWith("train/"));
  const costs = new Set(["seconds"]);
  for (const trial of record.trials) for (const name of Object.keys(trial.cost)) costs.add(name);
  return { scores: names, costs: [...costs].filter((name) => record.trials.some((trial) => isNumber(frontValue(trial, name)[0]))) };
}

function frontValue(trial, name) {
  if (name === "seconds") return [trial.seconds, null];
  if (name in trial.cost) return [trial.cost[name], null];
  if (name === store.record.metric) return [trial.score.value, trial.score.se];
  const found = trial.runs.map((run) => (run.curves[name] || []).filter(([x]) => trial.rung === null || x <= trial.rung).pop()).filter(Boolean);
  if (!found.length) return [null, null];
  const mean = (k) => found.reduce((sum, point) => sum + (isNumber(point[k]) ? point[k] : NaN), 0) / found.length;
  return [mean(1), mean(2)];
}

function goalOf(record, name) {
  const known = record.metrics.find((metric) => metric.name === name || metric.name === `cost/${name}`);
  if (known) return known.direction;
  return name === record.metric ? record.direction : "minimize";
}

function paretoIds(points, record) {
  const sign = (name) => (goalOf(record, name) === "maximize" ? -1 : 1);
  const [sx, sy] = [sign(front.x), sign(front.y)];
  if (record.metrics.length === 2 && new Set([front.x, front.y, `cost/${front.x}`]).has(record.metrics[0].name) && record.metrics.some((one) => one.name === front.x || one.name === `cost/${front.x}`)) return new Set(points.filter((point) => point.trial.front === 1).map((point) => point.trial.id));
  return new Set(points.filter((a) => !points.some((b) => b !== a && sx * b.x <= sx * a.x && sy * b.y <= sy * a.y && (sx * b.x < sx * a.x || sy * b.y < sy * a.y))).map((point) => point.trial.id));
}

function frontOption(colours, width) {
  const record = store.record;
  const all = record.trials.map((trial) => { const [x, sx] = frontValue(trial, front.x); const [y, sy] = frontValue(trial, front.y); return { trial, x, y, sx, sy }; }).filter((point) => isNumber(point.x) && isNumber(point.y));
  const best = paretoIds(all, record);
  const { stars } = roles(record);
  const chain = all.filter((point) => best.has(point.trial.id)).sort((a, b) => a.x - b.x);
  const xs = all.map((point) => point.x);
  const [low, high] = calmRange(all.map((point) => point.y));
  const round = rounded(...padded(low, high));
  const log = Math.min(...xs) > 0 && Math.max(...xs) / Math.min(...xs) > 20;
  const look = (point) => ({ borderColor: point.trial.possible ? colours.ink : undefined, borderWidth: point.trial.possible ? 1.5 : 0, color: stars.has(point.trial.id) ? colours.accent : best.has(point.trial.id) ? colours.ink : colours.pruned, opacity: isSelected(point.trial) ? (best.has(point.trial.id) ? 1 : 0.6) : 0.08 });
  return {
    grid: { left: 8, right: 20, top: 26, bottom: 36, containLabel: true },
    tooltip: tooltip(colours, (item) => { const point = item.data.point; return point ? tip(point.trial.id, [[words(front.x), costText(front.x, point.x)], [front.y, scoreText({ value: point.y, se: point.sy })], ["on the front", best.has(point.trial.id) ? "yes" : "no"], ["state", stateText(point.trial)]]) : ""; }),
    xAxis: axis(colours, { type: log ? "log" : "value", scale: true, name: words(front.x), nameLocation: "middle", nameGap: 30, axisLabel: { formatter: (x) => (front.x.endsWith("bytes") ? bytes(x) : tickText(x)) } }),
    yAxis: axis(colours, { type: "value", ...round, name: front.y, nameTextStyle: { align: "left", color: colours.soft, fontSize: 12 }, nameGap: 10, axisLine: { show: false }, axisTick: { show: false }, splitLine: { show: true, lineStyle: { color: colours.rule, opacity: 0.7 } }, axisLabel: { formatter: tickText } }),
    series: [
      { type: "line", step: "end", data: chain.map((point) => [point.x, point.y]), symbol: "none", lineStyle: { color: colours.ink, width: 1, type: "dashed" }, silent: true, z: 2, tooltip: { show: false } },
      { type: "custom", silent: true, z: 2, clip: true, encode: { x: 0, y: [1, 2] }, data: all.filter((point) => isNumber(point.sy) && isSelected(point.trial)).map((point) => [point.x, point.y - point.sy, point.y + point.sy]), renderItem: (_, api) => whisker(api, colours.pruned, true, 1) },
      { type: "scatter", z: 4, symbolSize: 9, cursor: "pointer", clip: true, data: all.map((point) => ({ value: [point.x, point.y], point, name: point.trial.id, itemStyle: look(point), symbolSize: stars.has(point.trial.id) ? 13 : best.has(point.trial.id) ? 10 : 7 })) },
    ],
  };
}

function showFront(record) {
  const { scores, costs } = frontChoices(record);
  const ready = record.trials.some((trial) => isNumber(trial.score.value)) && scores.length && costs.length;
  $("front").hidden = !ready;
  if (!ready) return;
  const several = record.metrics.length > 1;
  const second = several ? record.metrics[1].name : null;
  const choices = [...costs, ...scores];
  const possible = record.trials.filter((trial) => trial.possible).length;
  const known = (name) => (name && choices.includes(name) ? name : name && choices.includes(name.replace("cost/", "")) ? name.replace("cost/", "") : null);
  if (!choices.includes(front.y)) front.y = known(record.metric) || scores[0];
  if (!choices.includes(front.x)) front.x = known(second) || "seconds";
  fill("front-title", several ? "The front" : "Score against cost");
  fill("front-lead", `Dark points and the dashed line are the front: nothing is better in both. Lines through points are one standard error${several ? "" : "; a trial that was stopped early cost less for that reason"}${possible ? `; ringed are ${possible} more that are not shown to be dominated` : ""}. The front is a choice among scores on tune, not a proof.`);
  fill("front-fine", several && record.front ? record.front.lines.map((line) => h("div", {}, line)) : "");
  const again = () => showFront(store.record);
  const pick = (label, key, names) => h("label", {}, label, h("select", { "aria-label": `${label} axis`, onchange: (event) => { front[key] = event.target.value; again(); } }, names.map((name) => h("option", { value: name, selected: front[key] === name }, words(name)))));
  fill("front-tools", pick("across", "x", choices), scores.length > 1 ? pick("up", "y", scores) : null);
  chart("front-chart", frontOption, `${front.y} against ${words(front.x)}, one point a trial.`, (instance) => {
    instance.on("mouseover", (item) => { if (item.seriesType === "scatter") look(item.name, "front"); });
    instance.on("mouseout", () => look(null, "front"));
    instance.on("click", (item) => { if (item.seriesType === "scatter") openRow(item.name); });
  });
}
store.ears.select.push(() => { if (charts.has("front-chart") && !$("front").hidden) draw(charts.get("front-chart")); });
