// The leaderboard: sorted, searched, opened row by row; and how every trial ended.

const board = { sort: "place", down: false, search: "", open: new Set(), all: false };
const FIRST = 60;

const STATES = { finished: "finished", stopped: "stopped early", failed: "failed", waiting: "waiting at a rung", running: "running", interrupted: "interrupted", duplicate: "repeats another" };

function stateText(trial) {
  const said = STATES[trial.state] || trial.state;
  return trial.state === "failed" && trial.kind ? `${said}: ${trial.kind}` : said;
}

// What a question takes: the probe's median (and what 95 % stay within), else the mean of stored times, marked; tokens and price.
function questionColumns(record) {
  if (record.unit !== "questions") return [];
  const latency = (trial) => (trial.latency && isNumber(trial.latency.p50) ? trial.latency.p50 : trial.cost.latency ?? null);
  const wait = (trial) => (trial.latency && isNumber(trial.latency.p50) ? `${plain(trial.latency.p50, 2)} (${plain(trial.latency.p95, 2)})` : isNumber(trial.cost.latency) ? `~${plain(trial.cost.latency, 2)}` : "–");
  const each = ["tokens", "price"].filter((name) => record.trials.some((trial) => trial.cost[name]));
  return [
    record.trials.some((trial) => latency(trial) !== null) ? { key: "latency", title: "s/question", num: true, value: latency, cell: wait } : null,
    ...each.map((name) => ({ key: `q:${name}`, title: `${name}/question`, num: true, value: (trial) => trial.cost[name] ?? null, cell: (trial) => plain(trial.cost[name], 4) })),
  ];
}

function boardColumns(record) {
  const place = new Map(record.trials.map((trial, i) => [trial.id, i]));
  const columns = [
    { key: "place", title: "#", num: true, value: (trial) => place.get(trial.id), cell: (trial) => (trial.rank === null ? "–" : h("span", {}, trial.rank, trial.tie ? h("span", { class: "tie", title: "can't be told from the first" }, "=") : "")) },
    { key: "id", title: "trial", id: true, value: (trial) => trial.order, cell: (trial) => (trial.baseline ? `${trial.id} (baseline)` : trial.id) },
    { key: "state", title: "state", cls: "nowrap", value: (trial) => stateText(trial), cell: (trial) => h("span", { class: trial.state === "failed" ? "state-failed" : "" }, stateText(trial)) },
    record.milestones.length > 1 ? { key: "rung", title: "rung", num: true, value: (trial) => trial.rung, cell: (trial) => plain(trial.rung, 9) } : null,
    { key: "score", title: record.metric, num: true, value: (trial) => trial.score.value, cell: (trial) => score(trial.score) },
    record.trials.some((trial) => trial.score.n !== null) ? { key: "n", title: "n", num: true, value: (trial) => trial.score.n, cell: (trial) => (trial.score.unscored ? `${trial.score.n} (−${trial.score.unscored})` : plain(trial.score.n)) } : null,
    record.trials.some((trial) => trial.test) ? { key: "test", title: "test", num: true, value: (trial) => (trial.test ? trial.test.value : null), cell: (trial) => score(trial.test) } : null,
    ...record.metrics.slice(1).map((metric) => ({ key: `m:${metric.name}`, title: metric.name, num: true, value: (trial) => frontValue(trial, metric.name.replace(/^cost\//, ""))[0] ?? frontValue(trial, metric.name)[0], cell: (trial) => { const [value, se] = frontValue(trial, metric.name.startsWith("cost/") ? metric.name.slice(5) : metric.name); return score({ value, se }); } })),
    ...record.also.map((name) => ({ key: `a:${name}`, title: name.replace(/^tune\//, ""), num: true, value: (trial) => (trial.also[name] ? trial.also[name].value : null), cell: (trial) => score(trial.also[name] || null) })),
    ...questionColumns(record),
    new Set(record.trials.map((trial) => trial.trainable).filter(isNumber)).size > 1 ? { key: "trainable", title: "trainable", num: true, value: (trial) => trial.trainable, cell: (trial) => (isNumber(trial.trainable) ? trial.trainable.toLocaleString("en") : "–") } : null,
    ...record.axes.map((one) => ({ key: `p:${one.path}`, title: one.label, num: one.kind !== "category" || one.values.every(isNumber), value: (trial) => trial.parameters[one.path], cell: (trial) => short(valueText(trial.parameters[one.path]), 28) })),
    { key: "seconds", title: "seconds", num: true, value: (trial) => trial.seconds, cell: (trial) => (isNumber(trial.seconds) ? (trial.seconds < 100 ? trial.seconds.toFixed(1) : Math.round(trial.seconds)) : "–") },
  ];
  return columns.filter(Boolean);
}

// Words anywhere in a row, and conditions: learning_rate<1e-3 lora_r=16.
function matcher(record, text) {
  const terms = text.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const names = (trial) => ({ ...Object.fromEntries(Object.entries(trial.parameters).flatMap(([path, value]) => [[path.toLowerCase(), value], [path.split(".").pop().toLowerCase(), value]])), score: trial.score.value, seconds: trial.seconds, rung: trial.rung, state: stateText(trial) });
  const tests = terms.map((term) => {
    const split = term.match(/^([\w.]+)(<=|>=|=|<|>)(.+)$/);
    if (!split) return (trial, row) => row.includes(term);
    const [, name, sign, wanted] = split;
    return (trial) => {
      const value = names(trial)[name];
      if (value === undefined || value === null) return false;
      if (sign === "=") return isNumber(value) && Number.isFinite(Number(wanted)) ? Math.abs(value - Number(wanted)) <= 1e-9 * Math.abs(value) : String(typeof value === "object" ? JSON.stringify(value) : value).toLowerCase() === wanted;
      const number = Number(wanted);
      if (!isNumber(value) || !Number.isFinite(number)) return false;
      return sign === "<" ? value < number : sign === ">" ? value > number : sign === "<=" ? value <= number : value >= number;
    };
  });
  return (trial) => {
    const row = [trial.id, stateText(trial), trial.reason, ...Object.entries(trial.parameters).map(([path, value]) => `${path} ${valueText(value)}`)].join(" ").toLowerCase();
    return tests.every((test) => test(trial, row));
  };
}

function sorted(trials, column) {
  const known = (value) => value !== null && value !== undefined && value !== "–";
  const order = board.down ? -1 : 1;
  return [...trials].sort((a, b) => {
    const [x, y] = [column.value(a), column.value(b)];
    if (known(x) !== known(y)) return known(x) ? -1 : 1;
    if (!known(x)) return 0;
    const number = (value) => (value === "inf" ? Infinity : value === "-inf" ? -Infinity : value);
    const [u, v] = [number(x), number(y)];
    if (typeof u === "number" && typeof v === "number") return order * (u - v);
    return order * String(u).localeCompare(String(v), "en", { numeric: true });
  });
}

function showBoard(record) {
  $("leaderboard").hidden = !record.trials.length;
  if (!record.trials.length) return;
  const tied = record.trials.filter((trial) => trial.tie);
  fill("leaderboard-lead", `Ordered by rung, then ${record.metric} (${record.direction === "minimize" ? "lower" : "higher"} is better). `,
    tied.length ? [h("span", { class: "tie" }, "="), ` marks the ${tied.length} that can't be told from the first.`] : record.trials.some((trial) => trial.tie === false) ? "The first is better than each one compared with it; it was chosen for that, so test has the last word." : "");
  if (!$("search")) {
    fill("leaderboard-tools", h("label", {}, "Search", h("input", { type: "search", id: "search", placeholder: "words, or lora_r=16 score<0.5", oninput: (event) => { board.search = event.target.value; boardTable(); } })),
      h("span", { id: "board-count", role: "status" }), h("button", { type: "button", class: "quiet push", id: "board-all", onclick: () => { board.all = !board.all; boardTable(); } }));
  }
  boardTable();
  const compared = record.trials.filter((trial) => trial.tie !== null).length;
  fill("leaderboard-fine", compared ? `Ties: paired on stored items at the first one's rung, Holm over ${compared}, α = ${record.alpha}. ` : "", "Errors are one standard error, clustered by prompt; a dash is unknown, never zero.");
}

function boardTable() {
  const record = store.record;
  const columns = boardColumns(record);
  const column = columns.find((one) => one.key === board.sort) || columns[0];
  const fits = matcher(record, board.search);
  const found = sorted(record.trials.filter((trial) => isSelected(trial) && fits(trial)), column);
  const shown = board.all || printing ? found : found.slice(0, FIRST);
  const focus = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.focus : null;
  const head = h("tr", {}, h("th", { class: "open-cell" }, h("span", { class: "print-no" }, "")), columns.map((one) => h("th", { scope: "col", class: one.num ? "num" : "", "aria-sort": one.key === column.key ? (board.down ? "descending" : "ascending") : "none" },
    h("button", { type: "button", "data-focus": `sort:${one.key}`, onclick: () => sortBy(one.key) }, one.title))));
  const body = shown.flatMap((trial) => [boardRow(record, columns, trial), board.open.has(trial.id) ? detailRow(record, columns, trial) : null]).filter(Boolean);
  const scroll = $("leaderboard-table").scrollLeft;
  fill("leaderboard-table", h("table", {}, h("thead", {}, head), h("tbody", { id: "board-body" }, body)));
  $("leaderboard-table").scrollLeft = scroll;
  if (focus) { const again = [...document.querySelectorAll("[data-focus]")].find((one) => one.dataset.focus === focus); if (again) again.focus({ preventScroll: true }); }
  $("board-count").textContent = found.length === record.trials.length ? plural(found.length, "trial") : `${found.length} of ${plural(record.trials.length, "trial")}${store.selected ? " (selected above)" : ""}`;
  const more = $("board-all");
  more.hidden = found.length <= FIRST;
  more.textContent = board.all ? `First ${FIRST} only` : `All ${found.length}`;
}

function sortBy(key) {
  if (board.sort === key) board.down = !board.down;
  else { board.sort = key; board.down = false; }
  boardTable();
}

function boardRow(record, columns, trial) {
  const open = board.open.has(trial.id);
  const faded = trial.state === "stopped" || trial.state === "duplicate";
  return h("tr", { class: `line${trial.rank === 1 ? " first" : ""}${faded ? " faded" : ""}`, "data-trial": trial.id, onmouseenter: () => look(trial.id, "board"), onmouseleave: () => look(null, "board"), onclick: (event) => { if (!event.target.closest("button") && !String(getSelection())) toggleRow(trial.id); } },
    h("td", { class: "open-cell" }, h("button", { type: "button", "aria-expanded": String(open), "aria-label": `Details of ${trial.id}`, "data-focus": `open:${trial.id}`, onclick: () => toggleRow(trial.id) }, open ? "−" : "+")),
    columns.map((one) => h("td", { class: one.cls || (one.num ? "num" : one.id ? "id" : "") }, one.cell(trial))));
}

function toggleRow(id) {
  if (board.open.has(id)) board.open.delete(id);
  else board.open.add(id);
  boardTable();
}

function openRow(id) {
  const place = store.record.trials.findIndex((trial) => trial.id === id);
  if (place < 0) return;
  if (place >= FIRST) board.all = true;
  board.open.add(id);
  board.search = "";
  if ($("search")) $("search").value = "";
  boardTable();
  const row = [...document.querySelectorAll("#board-body tr[data-trial]")].find((one) => one.dataset.trial === id);
  if (row) row.scrollIntoView({ block: "center", behavior: "auto" });
}

function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.filter((pair) => pair && pair[1] !== "" && pair[1] !== null).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

function detailRow(record, columns, trial) {
  const failures = trial.runs.flatMap((run) => run.failures.map((failure) => ({ ...failure, seed: run.seed })));
  return h("tr", { class: "inside" }, h("td", { colspan: columns.length + 1 }, facts([
    ["parameters", Object.entries(trial.parameters).map(([path, value]) => `${path} = ${valueText(value)}`).join(", ") || "none"],
    ["ended", trial.reason || stateText(trial)],
    Object.keys(trial.changes).length ? ["changed by a retry", Object.entries(trial.changes).map(([path, value]) => `${path} = ${valueText(value)}`).join(", ")] : null,
    isNumber(trial.p) ? ["against the first", `p ${isNumber(trial.p) && trial.p < 0.001 ? "" : "= "}${pText(trial.p)} (Holm)${trial.tie ? ", can't be told from it" : ""}`] : null,
    isNumber(trial.trainable) ? ["trained parameters", trial.trainable.toLocaleString("en")] : null,
    ["cost", [`${duration(trial.seconds)} on workers`, ...Object.entries(trial.cost).map(([name, value]) => `${words(name)} ${costText(name, value)}`)].join(", ")],
    ["runs", trial.runs.map((run) => `seed ${run.seed}: ${STATES[run.state] || run.state}, ${plural(run.attempts, "attempt")}, ${plural(run.leases, "lease")}`).join("; ")],
    ["scores", lastScores(trial)],
    ...failures.map((failure) => [`failure: ${failure.kind}`, failure.message]),
  ])));
}

function lastScores(trial) {
  const found = {};
  for (const run of trial.runs) for (const [name, points] of Object.entries(run.curves)) if (!name.startsWith("train/") && points.length) { const [x, value, se] = points[points.length - 1]; found[`${name}${trial.runs.length > 1 ? ` (seed ${run.seed})` : ""}`] = `${scoreText({ value, se })} at ${x}`; }
  return Object.entries(found).map(([name, value]) => `${name} ${value}`).join(", ");
}

store.ears.select.push(() => { if (store.record) boardTable(); });
store.ears.hot.push(() => { for (const row of document.querySelectorAll("#board-body tr[data-trial]")) row.classList.toggle("hot", row.dataset.trial === store.hot); });

function showEndings(record) {
  const ended = record.trials.filter((trial) => ["finished", "stopped", "failed", "duplicate"].includes(trial.state));
  $("endings").hidden = !ended.length;
  if (!ended.length) return;
  const mended = record.trials.filter((trial) => trial.state !== "failed" && trial.runs.some((run) => run.failures.length));
  const groups = [["failed", "failed"], ["stopped", "stopped early"], ["finished", "finished"], ["duplicate", "repeated an earlier one"]].map(([state, title]) => [state, title, ended.filter((trial) => trial.state === state).sort((a, b) => a.order - b.order)]).filter(([, , trials]) => trials.length);
  fill("endings-lead", groups.map(([, title, trials]) => `${trials.length} ${title}`).join(", "), mended.length ? `; ${mended.length} went on after a failure` : "", ".");
  const opened = new Map([...document.querySelectorAll("#endings-list details")].map((one) => [one.dataset.state, one.open]));
  const row = (trial) => h("tr", {}, h("td", { class: "id" }, trial.id), h("td", { class: "num" }, trial.rung === null ? "–" : trial.rung), h("td", { class: "num" }, score(trial.score)), h("td", {}, trial.kind ? h("span", { class: "state-failed" }, trial.kind) : STATES[trial.state]), h("td", { class: "wide" }, endReason(trial)));
  const table = (trials) => h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Ended trials" }, h("table", {}, h("thead", {}, h("tr", {}, ["trial", "reached", record.metric, "how", "why"].map((name, i) => h("th", { scope: "col", class: i === 1 || i === 2 ? "num" : "" }, name)))), h("tbody", {}, trials.map(row))));
  fill("endings-list", [...groups, ...(mended.length ? [["mended", "went on after a failure", mended]] : [])].map(([state, title, trials]) =>
    h("details", { "data-state": state, open: opened.has(state) ? opened.get(state) : state === "failed" || ended.length <= 12 }, h("summary", {}, title[0].toUpperCase() + title.slice(1), h("span", { class: "count" }, ` ${trials.length}`)), table(trials))));
}

function endReason(trial) {
  const failures = trial.runs.flatMap((run) => run.failures.map((failure) => ({ ...failure, seed: run.seed, many: trial.runs.length > 1 })));
  const last = failures.length ? failures[failures.length - 1].message : "";
  if (failures.length === 1 && trial.kind && !failures[0].many) return failures[0].message;
  const said = failures.map((failure) => h("div", {}, failure.many ? `seed ${failure.seed}: ` : "", h("span", { class: "state-failed" }, failure.kind), `: ${failure.message}`));
  return [trial.reason && trial.reason !== last ? h("div", {}, trial.reason) : null, said];
}
