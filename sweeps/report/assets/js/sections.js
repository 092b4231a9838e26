// The head of the page, the data, and what it takes to make it all again.

const PHASES = { finished: "finished", running: "running", stopped: "stopped", interrupted: "interrupted", empty: "empty" };

function showHead(record) {
  document.title = `${record.name} · Stockpot`;
  fill("rail-name", record.name);
  fill("kicker", `${record.name}, a sweep by Stockpot`, `, ${PHASES[record.phase] || record.phase}`, record.totals.updated_at ? `, as of ${when(record.totals.updated_at)}` : "");
  fill("title", record.headline.title);
  fill("lines", record.headline.lines.map((line) => h("p", {}, line)), record.notes.map((note) => h("p", { class: "note" }, note)));
  const { totals } = record;
  const count = (state) => totals.states[state] || 0;
  const parts = ["finished", "stopped", "failed", "running", "waiting", "interrupted", "duplicate"].filter(count).map((state) => `${count(state)} ${{ stopped: "stopped early", waiting: "waiting", duplicate: "repeated" }[state] || state}`);
  const best = totals.best;
  const figure = (label, value, small) => h("div", {}, h("dt", {}, label), h("dd", {}, value, small ? h("small", {}, small) : ""));
  const tokens = totals.costs.tokens;
  fill("figures",
    figure("Trials", totals.planned && totals.planned !== totals.trials ? `${totals.trials} of ${totals.planned}` : totals.trials, parts.join(", ")),
    best ? figure(`Best ${record.metric}`, score(best), `${best.n !== null && best.n !== undefined ? `n = ${best.n}` : "telemetry, no error"}, at ${best.rung} ${record.unit}${totals.tied ? `, ${totals.tied} tied` : ""}`) : figure(`Best ${record.metric}`, "–", "no result yet"),
    record.cards.map((card) => figure(`${card.metric} against people`, isNumber(card.spearman) ? plain(card.spearman, 2) : "–", cardText(card))),
    figure("Time", duration(totals.seconds), totals.started_at ? `since ${when(totals.started_at).slice(0, 16)}` : ""),
    figure("Workers", duration(totals.worker_seconds), record.unit === "steps" && isNumber(tokens) ? `${costText("tokens", tokens)} tokens trained on` : `${totals.resource}${totals.expected ? ` of ${totals.expected}` : ""} ${record.unit}`),
    isNumber(totals.costs.joules) ? figure("Energy", energyText(totals.costs.joules), energyNote(totals.costs)) : null);
}

const energyText = (joules) => (joules >= 360000 ? `${plain(joules / 3600000)} kWh` : `${plain(joules)} J`);

// What stands under the energy of all trials: where it is from, and its CO2.
function energyNote(costs) {
  const source = !costs.estimated_joules ? "measured" : costs.estimated_joules < costs.joules ? "in part an estimate from stated watts" : "an estimate from stated watts";
  return isNumber(costs.co2_grams) ? `${source}; ${plain(costs.co2_grams)} g of CO2` : source;
}

// What stands under the rank correlation of a metric with people.
function cardText(card) {
  const [low, high] = card.spearman_interval;
  const interval = isNumber(low) && isNumber(high) ? `, 95 % ${plain(low, 2)} to ${plain(high, 2)}` : "";
  const ceiling = isNumber(card.ceiling) ? `; people among themselves ${plain(card.ceiling, 2)}` : "";
  return `Spearman${interval}, n = ${card.n}${ceiling}; ${Math.round(100 * card.coverage)} % scored (${card.file}, ${card.label})`;
}

function showData(record) {
  const { data } = record;
  const files = Object.entries(data.files || {});
  $("data").hidden = !data.splits.length && !files.length;
  if ($("data").hidden) return;
  fill("data-lead", "The smallest difference is what a paired comparison on these rows shows in 4 of 5 draws of them (α = 0.05), from the spread between the candidates that were there. A smaller one is out of these rows' reach.");
  const about = data.train_rows ? [h("tr", {}, h("td", {}, "train"), h("td", {}, "–"), h("td", { class: "num" }, `about ${data.train_rows}`), h("td", { class: "num" }, "–"), h("td", { class: "num" }, "–"))] : [];
  fill("data-table", h("table", {}, h("thead", {}, h("tr", {}, ["split", "metric", "rows", "groups", "smallest difference"].map((name, i) => h("th", { scope: "col", class: i > 1 ? "num" : "" }, name)))),
    h("tbody", {}, about, data.splits.map((one) => h("tr", {}, h("td", {}, one.split), h("td", {}, one.metric), h("td", { class: "num" }, plain(one.rows, 9)), h("td", { class: "num" }, plain(one.groups, 9)), h("td", { class: "num" }, isNumber(one.smallest) ? plain(one.smallest, 2) : "–"))))));
  fill("data-files", files.length ? facts(files.filter(([, value]) => value !== null).map(([name, value]) => [name, typeof value === "object" ? Object.entries(value).filter(([, inner]) => inner !== null).map(([key, inner]) => `${key} ${valueText(inner)}`).join(", ") : valueText(value)])) : null);
}

function showReproduction(record) {
  const facts_ = record.reproduction;
  $("reproduce").hidden = record.phase === "empty";
  if ($("reproduce").hidden || $("reproduce-list").dataset.etag === record.etag) return;
  $("reproduce-list").dataset.etag = record.etag;
  const opened = new Set([...document.querySelectorAll("#reproduce-list details[open]")].map((one) => one.dataset.key));
  const fold = (key, title, count, ...children) => h("details", { "data-key": key, open: opened.has(key) }, h("summary", {}, title, count !== null ? h("span", { class: "count" }, ` ${count}`) : ""), children);
  const yaml = h("pre", { tabindex: "0" }, facts_.yaml || "");
  let json = false;
  const text = () => (json ? JSON.stringify(facts_.spec, null, 2) : facts_.yaml);
  const swap = h("button", { type: "button" }, "As JSON");
  swap.addEventListener("click", () => { json = !json; swap.textContent = json ? "As YAML" : "As JSON"; yaml.textContent = text(); });
  const { ledger } = facts_;
  fill("reproduce-list",
    facts_.commands.map((one) => h("div", {}, h("p", { class: "fine" }, one.what[0].toUpperCase() + one.what.slice(1)), h("div", { class: "command" }, h("code", {}, one.command), copyButton(() => one.command)))),
    h("h3", {}, "Seeds and versions"),
    facts([...Object.entries(facts_.seeds).map(([name, value]) => [`seed: ${name}`, Array.isArray(value) ? value.join(", ") || "none" : value]), ["versions", Object.entries(facts_.versions).map(([name, version]) => `${name} ${version}`).join(", ") || "not recorded"],
      ["drivers", facts_.drivers.map((driver) => `${driver.host}, pid ${driver.pid}, ${when(driver.start)}: ${driver.how}`).join("; ")],
      ["ledger", `${ledger.events} events in ${plural(ledger.segments, "segment")}, ${when(ledger.first_at)} to ${when(ledger.last_at)}`],
      ledger.openings.length ? ["openings of test", ledger.openings.map((one) => `${when(one.time)} by ${one.by} for ${one.candidates.join(", ")}`).join("; ")] : null,
      ["checkpoints deleted", ledger.deleted_checkpoints ? `${ledger.deleted_checkpoints} (${bytes(ledger.deleted_bytes)})` : "none"], ["folder", facts_.folder]]),
    facts_.yaml ? fold("spec", "The resolved sweep", null, h("p", { class: "command" }, swap, copyButton(text)), yaml) : null,
    facts_.hashes.length ? fold("hashes", "Hashes (SHA-256)", facts_.hashes.length, h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Hashes" }, h("table", {}, h("tbody", {}, facts_.hashes.map((one) => h("tr", {}, h("td", {}, one.what), h("td", { class: "hash" }, one.hash))))))) : null,
    fold("events", "Events of the ledger", ledger.events, facts(Object.entries(ledger.kinds).map(([kind, times]) => [words(kind), times]))));
}

// The reproducibility checklist: every item with its answer.
function showChecklist(record) {
  const items = record.checklist || [];
  $("checklist").hidden = !items.length || record.phase === "empty";
  if ($("checklist").hidden) return;
  fill("checklist-lead", "The items of Eimer et al. (ICML 2023), filled in from the ledger; the sweep's folder has them as checklist.md.");
  const groups = [...new Set(items.map((one) => one.group))];
  fill("checklist-table", h("table", {}, groups.map((group) => [h("thead", {}, h("tr", {}, h("th", { scope: "col" }, group), h("th", { scope: "col" }, ""), h("th", { scope: "col" }, ""))),
    h("tbody", {}, items.filter((one) => one.group === group).map((one) => h("tr", {}, h("td", {}, one.item), h("td", { class: "nowrap" }, one.answer), h("td", { class: "wide" }, one.said))))])));
}
