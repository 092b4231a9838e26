// Puts the page together, keeps its colours, prints it, and follows a running sweep.

const SECTIONS = [["verdict", "Verdict"], ["verdicts", "On test"], ["curves", "Learning curves"], ["parameters", "Parameters"], ["importance", "What mattered"], ["front", "Score and cost"], ["leaderboard", "Leaderboard"], ["endings", "Endings"], ["soups", "Soup"], ["time", "Time and cost"], ["data", "Data"], ["checklist", "Checklist"], ["reproduce", "Make it again"]];

function show(record) {
  store.record = record;
  const ids = new Set(record.trials.map((trial) => trial.id));
  if (store.selected) applyBrushQuietly();
  for (const id of [...board.open]) if (!ids.has(id)) board.open.delete(id);
  for (const part of [showHead, showVerdicts, showCurves, showParameters, showImportance, showFront, showBoard, showEndings, showSoups, showTime, showData, showChecklist, showReproduction]) part(record);
  fill("rail-list", SECTIONS.filter(([id]) => !$(id).hidden).map(([id, title]) => h("li", {}, h("a", { href: `#${id}` }, title))));
  fill("footer", `Made by Stockpot ${record.reproduction.versions ? record.reproduction.versions.stockpot || "" : ""} from the sweep's ledger${record.totals.updated_at ? ` as of ${when(record.totals.updated_at)}` : ""}. This page holds everything it shows and asks for nothing from anywhere. Charts: Apache ECharts.`);
  markSection();
}

function applyBrushQuietly() {
  const ears = store.ears.select;
  store.ears.select = [];
  applyBrush();
  store.ears.select = ears;
}

function markSection() {
  const links = [...document.querySelectorAll("#rail-list a")];
  const passed = links.filter((link) => { const section = $(link.getAttribute("href").slice(1)); return section && section.getBoundingClientRect().top < innerHeight * 0.35; });
  const here = passed.length ? passed[passed.length - 1] : links[0];
  for (const link of links) { if (link === here) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current"); }
}

// Colours: as the system has them, or as the reader chose.
const THEMES = ["system", "light", "dark"];
const darkSystem = matchMedia("(prefers-color-scheme: dark)");
let theme = "system";
try { theme = localStorage.getItem("stockpot-colours") || "system"; } catch { /* a file without storage: the system's */ }

function applyTheme() {
  const dark = !printing && (theme === "dark" || (theme === "system" && darkSystem.matches));
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = `Colours: ${theme}`;
  $("theme").setAttribute("aria-label", `Colours: ${theme}. Change`);
  redraw();
}

$("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  try { localStorage.setItem("stockpot-colours", theme); } catch { /* chosen for this view only */ }
  applyTheme();
});
darkSystem.addEventListener("change", applyTheme);
addEventListener("scroll", () => requestAnimationFrame(markSection), { passive: true });

// Print: everything open, light, and drawn for the width of a sheet.
let before = null;
addEventListener("beforeprint", () => {
  if (printing) return;
  before = [...document.querySelectorAll("details")].map((one) => [one, one.open]);
  printing = true;
  for (const [one] of before) one.open = true;
  applyTheme();
  if (!$("leaderboard").hidden) boardTable();
});
addEventListener("afterprint", () => {
  if (!printing) return;
  printing = false;
  for (const [one, open] of before || []) one.open = open;
  applyTheme();
  if (!$("leaderboard").hidden) boardTable();
});

// Following a running sweep: the server's word for "nothing new" costs nothing.
const live = document.documentElement.dataset.live === "true";
let etag = null;
let misses = 0;

async function follow() {
  let wait = 1000;
  try {
    const answer = await fetch("record.json", { cache: "no-store", headers: etag ? { "If-None-Match": etag } : {} });
    misses = 0;
    if (answer.status === 200) {
      etag = answer.headers.get("ETag");
      const record = await answer.json();
      if (record.etag !== store.record.etag) show(record);
    } else if (answer.status !== 304) throw new Error(String(answer.status));
    const over = store.record.phase !== "running" && store.record.phase !== "empty";
    $("live").textContent = over ? `The sweep has ended: ${PHASES[store.record.phase]}. Nothing more will change.` : "Live";
    if (over) wait = 10000;
  } catch {
    misses += 1;
    wait = Math.min(15000, 1000 * 2 ** misses);
    if (misses > 1) $("live").textContent = "The connection is lost; this is the last that was seen.";
  }
  setTimeout(follow, wait);
}

store.record = JSON.parse($("record").textContent);
applyTheme();
show(store.record);
if (live) { etag = null; follow(); }
