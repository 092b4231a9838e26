// A soup's story: each mixture as it was tried, what came of it, and what is in it at the end.

const oneByOne = (soup) => soup.method === "greedy" || soup.method === "pruned";

function soupSteps(soup) {
  return soup.decisions.map((decision, i) => {
    const alone = (step) => step.mixture.length === 1 && step.mixture[0][1] === 1 && step.scale === undefined;
    const single = soup.steps.find((step) => alone(step) && step.mixture[0][0] === decision.run);
    const tried = soup.steps.filter((step) => (oneByOne(soup) && decision.decision !== "start" ? !alone(step) || soup.method === "pruned" : step === single));
    const exact = tried.find((step) => step.score.value === decision.score) || soup.steps.find((step) => step.score.value === decision.score);
    return { ...decision, n: i + 1, taken: decision.decision !== "reject", se: exact ? exact.score.se : null, single: single ? single.score : null, size: exact ? exact.mixture.length : null };
  });
}

function soupOption(soup) {
  return (colours, width) => {
    const steps = soupSteps(soup);
    const done = soup.finished && soup.finished.score;
    const known = steps.filter((step) => isNumber(step.score));
    const values = known.flatMap((step) => [step.score - (step.se || 0), step.score + (step.se || 0), step.single && isNumber(step.single.value) ? step.single.value : step.score]);
    if (done && isNumber(done.value)) values.push(done.value - (done.se || 0), done.value + (done.se || 0));
    const round = rounded(...padded(Math.min(...values), Math.max(...values), 0.06));
    const names = steps.map((step) => `${step.n}. ${step.decision === "start" ? "start with" : step.taken ? "+" : "not"} ${step.run.split("-")[0].replace(/^0+(?=\d)/, "")}`);
    const uniform = !oneByOne(soup);
    const last = uniform && done && isNumber(done.value) ? ["the soup"] : [];
    const room = width < 560;
    return {
      grid: { left: 8, right: 16, top: 26, bottom: room ? 54 : 30, containLabel: true },
      tooltip: tooltip(colours, (item) => { const step = steps[item.dataIndex]; return item.seriesId === "tried" && step ? tip(step.run, [["decision", step.decision], ["score with it", scoreText({ value: step.score, se: step.se })], step.single ? ["alone", scoreText(step.single)] : null, ["why", step.reason]]) : ""; }),
      xAxis: axis(colours, { type: "category", data: [...names, ...last], axisTick: { show: false }, axisLabel: { interval: 0, rotate: room || names.length > 7 ? 38 : 0, hideOverlap: false } }),
      yAxis: axis(colours, { type: "value", ...round, name: soup.metric, nameTextStyle: { align: "left", color: colours.soft, fontSize: 12 }, nameGap: 10, axisLine: { show: false }, axisTick: { show: false }, splitLine: { show: true, lineStyle: { color: colours.rule, opacity: 0.7 } }, axisLabel: { formatter: tickText } }),
      series: [
        uniform ? null : { type: "line", step: "end", id: "best", symbol: "none", silent: true, data: steps.map((step) => step.best), lineStyle: { color: colours.soup, width: 2 }, z: 2 },
        { type: "scatter", id: "alone", silent: true, symbol: "diamond", symbolSize: 8, z: 3, data: steps.map((step) => (step.decision !== "start" && !uniform && step.single ? step.single.value : null)), itemStyle: { color: "transparent", borderColor: colours.faint, borderWidth: 1.2 } },
        { type: "custom", silent: true, z: 3, encode: { x: 0, y: [1, 2] }, data: steps.map((step, i) => [i, step.score - step.se, step.score + step.se]), renderItem: (params, api) => (isNumber(steps[params.dataIndex].se) ? whisker(api, steps[params.dataIndex].taken ? colours.soup : colours.faint, true, 1.6) : null) },
        { type: "scatter", id: "tried", symbolSize: 12, z: 5, data: steps.map((step) => ({ value: isNumber(step.score) ? step.score : null, itemStyle: { color: step.taken ? colours.soup : colours.paper, borderColor: step.taken ? colours.soup : colours.faint, borderWidth: 2, opacity: 1 } })) },
        last.length ? { type: "custom", silent: true, z: 3, encode: { x: 0, y: [1, 2] }, data: [[steps.length, done.value - done.se, done.value + done.se]], renderItem: (_, api) => whisker(api, colours.soup, true, 2) } : null,
        last.length ? { type: "scatter", silent: true, symbol: "rect", symbolSize: 13, z: 6, data: [[steps.length, done.value]], itemStyle: { color: colours.soup } } : null,
      ].filter(Boolean),
    };
  };
}

function showSoups(record) {
  $("soups").hidden = !record.soups.length;
  if (!record.soups.length) return;
  const place = $("soups-list");
  for (const [i, soup] of record.soups.entries()) {
    let block = $(`soup-${i}`);
    if (!block) {
      block = h("div", { id: `soup-${i}` }, h("h3", {}), h("p", { class: "lead" }), h("div", { class: "chart", id: `soup-chart-${i}` }), h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "The soup's steps" }), h("div", {}, h("h4", {}, "On the way from the soup to a run"), h("div", { class: "chart", id: `soup-path-${i}` }), h("p", { class: "fine" })));
      place.append(block);
    }
    const [heading, lead, picture, table, paths] = block.children;
    heading.textContent = record.soups.length > 1 ? `${soup.id} (${soup.method})` : `${soup.method[0].toUpperCase()}${words(soup.method.slice(1))} ${soup.method === "sparse" ? `from ${soup.ingredients[0].run}` : `over ${plural(soup.ingredients.length, "run")}`}`;
    fill(lead, soupWords(soup));
    const drawn = soup.decisions.some((decision) => isNumber(decision.score));
    picture.hidden = !drawn;
    if (drawn) chart(`soup-chart-${i}`, soupOption(soup), `The score of soup ${soup.id} on ${soup.metric} after each step; the table below has the numbers.`);
    fill(table, soupTable(soup));
    const walked = pathNotes(soup);
    paths.hidden = !walked.length;
    if (walked.length) {
      chart(`soup-path-${i}`, pathOption(soup, walked), `${soup.metric} on the straight paths that soup ${soup.id} looked at; a barrier is a rise above the line between a path's ends.`);
      paths.children[2].textContent = pathWords(walked);
    }
  }
}

// Paths whose points were scored: from the soup so far to a run, and from the base to the soup.
const pathNotes = (soup) => (soup.notes || []).filter((note) => (note.what === "path" || note.what === "toward_base") && note.knots.length > 1);

function pathWords(notes) {
  const behind = notes.filter((note) => note.passes === false).length;
  const paths = notes.filter((note) => note.what === "path").length;
  const base = notes.find((note) => note.what === "toward_base");
  const said = [];
  if (paths) said.push(`0 is the soup as it was then, 1 the run alone; every point was scored. ${behind ? `${plural(behind, "run")} lie${behind === 1 ? "s" : ""} behind a barrier (dashed) and stayed out.` : "No path rises above the line between its ends by more than noise."}`);
  if (base) said.push(`The thick line goes from the base (0) to the soup (1): ${base.taken < 1 ? `${plain(base.taken, 3)} of the way was taken` : "no step toward the base was better beyond noise"}.`);
  return said.join(" ");
}

function pathOption(soup, notes) {
  return (colours, width) => {
    const values = notes.flatMap((note) => note.knots.map((knot) => knot[1])).filter(isNumber);
    const round = rounded(...padded(Math.min(...values), Math.max(...values), 0.06));
    return {
      grid: { left: 8, right: 16, top: 26, bottom: 30, containLabel: true },
      tooltip: tooltip(colours, (item) => { const note = notes[item.seriesIndex]; return note ? tip(note.run || "toward the base", [["at", plain(item.value[0], 3)], [soup.metric, plain(item.value[1])], note.barrier !== undefined ? ["rise", note.barrier === null ? "not scored" : plain(note.barrier, 3)] : null, note.allowed !== undefined ? ["allowed", plain(note.allowed, 3)] : null]) : ""; }),
      xAxis: axis(colours, { type: "value", min: 0, max: 1, splitLine: { show: false } }),
      yAxis: axis(colours, { type: "value", ...round, name: soup.metric, nameTextStyle: { align: "left", color: colours.soft, fontSize: 12 }, nameGap: 10, axisLine: { show: false }, axisTick: { show: false }, splitLine: { show: true, lineStyle: { color: colours.rule, opacity: 0.7 } }, axisLabel: { formatter: tickText } }),
      series: notes.map((note) => {
        const base = note.what === "toward_base", failed = note.passes === false;
        const colour = failed ? colours.bad : base ? colours.accent : colours.soup;
        return { type: "line", data: note.knots, symbol: "circle", symbolSize: width < 560 ? 5 : 7, lineStyle: { color: colour, width: base ? 3 : 1.4, type: failed ? "dashed" : "solid", opacity: failed || base ? 1 : 0.65 }, itemStyle: { color: failed ? colours.paper : colour, borderColor: colour, borderWidth: 1.4 }, z: failed || base ? 4 : 3 };
      }),
    };
  };
}

function soupWords(soup) {
  const done = soup.finished;
  if (!done) return "It is not finished yet.";
  if (!done.folder) return `There is no soup: ${done.reason || "none could be made"}.`;
  const inside = soup.ingredients.filter((entry) => entry.weight > 0);
  const said = { greedy: "Ingredients were tried best first, and each was kept if the score did not get worse. Filled points are in the soup, hollow ones are not; diamonds are an ingredient alone.", pruned: "It began with all of them and left out, worst first, each without which the score did not get worse. Points are the score without it; filled ones stayed in.", uniform: "The plain mean of every ingredient that passed; points are the ingredients alone, the square is their mean." }[soup.method] || "Points are the ingredients alone, filled where they are in the soup; the square is the soup.";
  if (soup.method === "sparse") return [`${soup.ingredients[0].run} was pruned, retrained and averaged, phase by phase: ${scoreText(done.score)} on ${soup.metric}, which chose it and so flatters it. `, "Points are the averages of the phases; their masks and shares of zeros stand in the table."];
  if (inside.length === 1) return [`Nothing held its score when mixed in, so the soup is the best single run itself: ${scoreText(done.score)} on ${soup.metric}. `, said];
  return [`${inside.length} of ${soup.ingredients.length} runs are in it: ${scoreText(done.score)} on ${soup.metric}, which chose it and so flatters it. `, said];
}

function soupTable(soup) {
  const alone = new Map(soup.ingredients.map((entry) => [entry.run, entry]));
  const rows = soup.decisions.length ? soupSteps(soup) : soup.ingredients.map((entry, i) => ({ n: i + 1, run: entry.run, single: entry.select, decision: "not tried yet" }));
  const names = ["", "ingredient", "alone", soup.method === "pruned" ? "without it" : "with it", "best so far", "decision", "why", "weight"];
  return h("table", {}, h("thead", {}, h("tr", {}, names.map((name, i) => h("th", { scope: "col", class: [2, 3, 4, 7].includes(i) ? "num" : "" }, name)))),
    h("tbody", {}, rows.map((step) => h("tr", {}, h("td", { class: "num" }, step.n), h("td", { class: "id" }, step.run), h("td", { class: "num" }, score(step.single)),
      h("td", { class: "num" }, step.score === undefined ? "–" : score({ value: step.score, se: step.se })), h("td", { class: "num" }, plain(step.best)),
      h("td", { class: step.taken ? "in" : "out" }, { start: "in: the start", accept: "in", reject: "out" }[step.decision] || step.decision), h("td", { class: "wide" }, step.reason || ""),
      h("td", { class: "num" }, alone.get(step.run) && soup.finished ? plain(alone.get(step.run).weight, 3) : "–")))));
}
