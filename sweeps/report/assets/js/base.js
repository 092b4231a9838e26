// Elements, numbers and colours. All text goes through textContent: nothing of a record is ever parsed as HTML.

const $ = (id) => document.getElementById(id);

function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

function fill(id, ...children) {
  const element = typeof id === "string" ? $(id) : id;
  element.replaceChildren(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const plural = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

function plain(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (value === "inf") return "∞";
  if (value === "-inf") return "−∞";
  if (!isNumber(value)) return String(value);
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e6 || size < 1e-4 ? value.toExponential(digits - 1).replace(/\.?0+e/, "e") : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−").replace("e+", "e").replace("e−0", "e−");
}

// The error to two digits, the value to as many: what the command line prints.
function withError(value, se) {
  if (!isNumber(value)) return [plain(value), ""];
  if (!isNumber(se) || se <= 0) return [plain(value), se === 0 ? "± 0" : ""];
  const digits = Math.min(8, Math.max(0, 1 - Math.floor(Math.log10(se))));
  return [value.toFixed(digits).replace("-", "−"), `± ${se.toFixed(digits)}`];
}

function score(measured) {
  if (!measured) return h("span", {}, "–");
  const [value, error] = withError(measured.value, measured.se);
  return h("span", {}, value, error ? h("span", { class: "err" }, ` ${error}`) : "");
}

const scoreText = (measured) => (measured ? withError(measured.value, measured.se).filter(Boolean).join(" ") : "–");

function pText(p) {
  if (!isNumber(p)) return "–";
  return p < 0.001 ? "< 0.001" : p.toFixed(3);
}

function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds < 10) return `${Number(seconds.toFixed(1))} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const [m, s] = [Math.floor(whole / 60) % 60, whole % 60];
  const hours = Math.floor(whole / 3600);
  return hours ? `${hours} h ${String(m).padStart(2, "0")} min` : `${m} min ${String(s).padStart(2, "0")} s`;
}

function bytes(value) {
  if (!isNumber(value)) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let place = 0;
  while (value >= 1000 && place < units.length - 1) { value /= 1000; place += 1; }
  return `${Number(value.toPrecision(3))} ${units[place]}`;
}

const when = (seconds) => (isNumber(seconds) ? new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ") + " UTC" : "–");
const short = (text, limit) => (text.length > limit ? text.slice(0, limit - 1) + "…" : text);
const valueText = (value) => (value === undefined || value === null ? "–" : typeof value === "number" ? plain(value) : typeof value === "string" ? value : JSON.stringify(value));

function costText(name, value) {
  if (name.endsWith("seconds")) return duration(value);
  if (name.endsWith("bytes")) return bytes(value);
  return isNumber(value) && value >= 10000 ? value.toLocaleString("en-US", { maximumFractionDigits: 0 }).replaceAll(",", " ") : plain(value);
}

const labelOf = (path) => { const one = store.record.axes.find((axis) => axis.path === path); return one ? one.label : path; };
const words = (name) => name.replaceAll("_", " ");

// What all parts of the page share: the record, the trials that are selected (null: all), the one that is looked at.
const store = { record: null, selected: null, hot: null, ears: { select: [], hot: [] } };

function select(ids, from) {
  store.selected = ids;
  for (const ear of store.ears.select) ear(from);
}

function look(id, from) {
  if (store.hot === id) return;
  store.hot = id;
  for (const ear of store.ears.hot) ear(from);
}

const isSelected = (trial) => store.selected === null || store.selected.has(trial.id);

// The trials in blue: those that were judged on test, else the front, else the first.
function roles(record) {
  const judged = record.trials.filter((trial) => trial.test);
  const front = record.trials.filter((trial) => trial.front === 1);
  const stars = judged.length ? judged : front.length ? front : record.trials.filter((trial) => trial.rank === 1);
  return { stars: new Set(stars.map((trial) => trial.id)), judged: judged.length };
}

function ink() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(`--${name}`).trim();
  const found = {};
  for (const name of ["paper", "ink", "soft", "faint", "rule", "wash", "accent", "soup", "other", "pruned", "bad", "shade", "sans"]) found[name] = read(name);
  return found;
}

function copyButton(text) {
  const button = h("button", { type: "button" }, "Copy");
  button.addEventListener("click", async () => {
    let done = false;
    try {
      await navigator.clipboard.writeText(text());
      done = true;
    } catch {
      const area = h("textarea", { readonly: true, "aria-hidden": "true" });
      area.value = text();
      document.body.append(area);
      area.select();
      done = document.execCommand("copy");
      area.remove();
    }
    button.textContent = done ? "Copied" : "Select it and copy";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  return button;
}
