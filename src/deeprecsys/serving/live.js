// Asks the server for /live.json every second and shows it. What the server says is text and
// numbers only: it reaches the page through textContent and through Plotly's numbers.
"use strict";

const EVERY_MS = 1000, PATIENCE_MS = 4000;
const MANY_WORKERS = 16; // more than so many are columns without names
const SHOWN = [50, 95, 99]; // the percentiles that /live.json has
const SLOWER = { 50: "1 query in 2 is slower", 95: "1 in 20 is slower", 99: "1 in 100 is slower" };
const STATES = {
  ready: "",
  starting: "Starting: it takes queries once its model is loaded and tried.",
  draining: "Draining: it answers the queries it has and takes no new ones.",
};
const STAGES = {
  receive: "read and checked",
  queue: "waits for a worker",
  compute: "on the workers",
  send: "answer written",
};
const narrow = matchMedia("(max-width: 40rem)"), dark = matchMedia("(prefers-color-scheme: dark)");
const $ = (id) => document.getElementById(id);

let last = null; // what the server said last, and when: stays on the page while it is silent
let since = null;
let logarithmic = false;

async function poll() {
  const begun = performance.now();
  try {
    const answer = await fetch(`/live.json${location.search}`, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!answer.ok) throw new Error(`it answers ${answer.status}`);
    last = await answer.json();
    since = new Date();
    connected();
  } catch (error) {
    lost(error);
  }
  setTimeout(poll, Math.max(EVERY_MS / 4, EVERY_MS - (performance.now() - begun)));
}

function connected() {
  document.body.classList.remove("waiting", "lost");
  say("updated", `${last?.totals?.queries ? "the last 10 s · " : ""}updated ${clock(since)}`);
  try {
    show(last);
    $("banner").hidden = true;
    say("banner", "");
  } catch (error) { // an answer that is no /live.json of this version: the connection is not lost
    warn("the server answers something that this page cannot show");
    console.info(error);
  }
}

function lost(error) {
  const why = error.message?.startsWith("it answers") ? ` (${error.message})` : "";
  const when = since ? `since ${clock(since)}` : "yet";
  document.body.classList.toggle("lost", since !== null);
  warn(`no connection ${when}${why}; trying every second`);
  if (since) say("updated", `the 10 s before ${clock(since)}`);
  document.title = `no connection · ${last?.model ?? "deeprecsys"}`;
  console.info(`live.json: ${error}`);
}

function warn(words) {
  $("banner").hidden = false;
  say("banner", words);
}

function show(live) {
  const now = live.now ?? {}, totals = live.totals ?? {};
  const empty = !totals.queries;
  head(live, now, empty);
  nothingYet(live, empty);
  figures(live, now);
  further(live, now);
  for (const id of ["hero", "more", "charts"]) $(id).hidden = empty;
  if (!empty) {
    sizes(live);
    stages(live.stages ?? {});
    workers(live.workers_busy ?? []);
    draw();
  }
  server(live, totals);
}

// ---- words ----------------------------------------------------------------------------------

function head(live, now, empty) {
  const state = live.state ?? "unknown", verdict = judged(live, now);
  say("model", live.model ?? "–");
  say("state", state);
  $("state").className = `state ${state in STATES ? state : ""}`;
  const facts = [
    live.version != null && `version ${live.version}`,
    live.uptime_s != null && `up ${span(live.uptime_s)}`,
    target(live.sla),
    live.policy_text,
    live.workers != null && counted(live.workers, "worker"),
  ];
  say("about", facts.filter(Boolean).join(" · "));
  models(live);
  say("versions", versions(live));
  say("verdict", [STATES[state], empty ? "" : verdict.words].filter(Boolean).join(" "));
  $("verdict").className = `verdict ${STATES[state] || empty ? "" : verdict.level}`;
  const p = live.sla?.percentile ?? 95, at = now[`p${p}_s`];
  document.title = [live.model, state, at != null && `p${p} ${ms(at)} ms`].filter(Boolean).join(" · ");
}

// The others that this server has, each a page of its own.
function models({ models: names = [], model }) {
  const links = names.length < 2 ? [] : names.map((name) => {
    const link = document.createElement(name === model ? "b" : "a");
    link.textContent = name;
    if (name !== model) link.href = `?model=${encodeURIComponent(name)}`;
    return link;
  });
  $("models").replaceChildren(...links);
  $("models").hidden = !links.length;
}

// What is in memory beside what serves, and what happened last.
function versions({ versions: rows = [], version, events = [] }) {
  const others = rows.filter((row) => row.version !== version);
  const beside = others.map((row) => `version ${row.version} ${row.state.toLowerCase()}`);
  const last = events.at(-1);
  if (last) {
    const why = last.why ? `: ${last.why}` : "";
    beside.push(`${clock(new Date(last.at_s * 1000))} version ${last.version} ${last.what}${why}`);
  }
  return beside.join(" · ");
}

// Does the target hold? What was shed, has expired or has failed counts as slower than any target.
function judged({ sla }, now) {
  const p = sla?.percentile, limit = sla?.latency_s;
  const known = SHOWN.filter((q) => now[`p${q}_s`] != null);
  const unanswered = lostPerS(now) / (now.rate_qps || Infinity);
  const also = unanswered > 0 ? `; ${percent(unanswered)} of the queries not answered` : "";
  if (p == null || limit == null) return { level: "", short: "", words: `No target is set${also}.` };
  const at = now[`p${p}_s`], said = at == null ? `p${p}` : `p${p} ${ms(at)} ms of ${ms(limit)} ms`;
  if (unanswered > 1 - p / 100)
    return { level: "bad", short: "misses the target", words: `${said}: misses the target${also}.` };
  if (!known.length) return { level: "", short: "no query", words: "No query in the last 10 s." };
  if (known.some((q) => q <= p && now[`p${q}_s`] > limit))
    return { level: "bad", short: "misses the target", words: `${said}: misses the target${also}.` };
  if (!known.some((q) => q >= p && now[`p${q}_s`] <= limit))
    return { level: "", short: "undecided", words: `${said}, ${target(sla)}: undecided${also}.` };
  const near = at > 0.9 * limit, meets = near ? "meets the target, narrowly" : "meets the target";
  return { level: near ? "near" : "good", short: meets, words: `${said}: ${meets}${also}.` };
}

function nothingYet(live, empty) {
  $("empty").hidden = !empty || live.state === "draining";
  const name = /^[\w.\/:-]+$/.test(live.model) ? live.model : `'${String(live.model).replaceAll("'", "'\\''")}'`;
  const when = live.state === "starting" ? "Once it is ready, send it some" : "Send it some";
  say("empty-words", `${when}, and this page fills within a second:`);
  say("command", `deeprecsys load ${location.origin} --model ${name} --qps 50`);
}

function figures(live, now) {
  big($("rate"), rate(now.rate_qps), "queries/s");
  say("rate-note", `${rate(now.answered_qps)} answered`);
  const verdict = judged(live, now), limit = live.sla?.latency_s;
  for (const q of SHOWN) {
    const card = $(`card-${q}`), seconds = now[`p${q}_s`];
    const judge = limit != null && q === live.sla.percentile;
    big(card.querySelector(".figure-of"), ms(seconds), "ms");
    const note = seconds == null ? `of ${ms(limit)} ms` : `of ${ms(limit)} ms: ${verdict.short}`;
    write(card.querySelector("small"), judge ? note : SLOWER[q]);
    card.className = judge ? `card target ${verdict.level}` : "card";
    card.querySelector(".meter i").style.width = judge ? share((seconds ?? 0) / limit) : "0";
  }
}

function further(live, now) {
  const turned = lostPerS(now);
  const why = ["shed", "expired", "failed"].filter((name) => now[`${name}_per_s`] > 0);
  const cards = [
    ["items", rate(now.items_per_s), "a second"],
    ["busy", percent(now.busy_share), live.workers == null ? "" : `of ${counted(live.workers, "worker")}`],
    ["queued", counted(now.queued_items, "item"), now.queued_queries ? `of ${counted(now.queued_queries, "query", "queries")}` : "waiting"],
    ["in flight", whole(now.in_flight), "queries"],
    ["not answered", now.shed_per_s == null ? "–" : `${rate(turned)}/s`,
      why.map((name) => `${rate(now[`${name}_per_s`])} ${name}`).join(", ") || "shed, expired, failed"],
  ];
  put("more", cards.map(([name, value, note]) => {
    const dd = make("dd", "", value);
    dd.append(make("small", "", note));
    const card = make("div", name === "not answered" && turned > 0 ? "card warn" : "card");
    card.append(make("dt", "", name), dd);
    return card;
  }));
}

function sizes(live) {
  const classes = live.sizes ?? [], limit = live.sla?.latency_s;
  const end = Math.max(limit ?? 0, ...classes.map((c) => c.p95_s ?? 0));
  const mark = limit == null ? "" : "; line: the target";
  say("sizes-words", classes.length ? `The last 60 s; solid to p50, pale to p95${mark}.` : "No query in the last 60 s.");
  put("sizes", classes.map((c) => {
    const row = make("tr"), name = make("th", "", sizeClass(c)), cell = make("td");
    name.scope = "row";
    cell.append(bar(c.p50_s / end, c.p95_s / end, limit == null ? null : limit / end));
    const slow = limit != null && c.p95_s > limit;
    row.append(name, make("td", "", whole(c.queries)), make("td", "", ms(c.p50_s)),
      make("td", slow ? "bad" : "", ms(c.p95_s)), cell);
    return row;
  }));
}

function stages(parts) {
  const end = Math.max(...Object.values(parts).map((part) => part?.p95_s ?? 0));
  put("stages", Object.entries(parts).map(([name, part]) => {
    const row = make("tr"), head = make("th", "", name), cell = make("td");
    head.scope = "row";
    if (STAGES[name]) head.append(make("small", "", STAGES[name]));
    cell.append(bar(part?.p50_s / end, part?.p95_s / end));
    row.append(head, make("td", "", ms(part?.p50_s)), make("td", "", ms(part?.p95_s)), cell);
    return row;
  }));
}

function workers(busy) {
  const known = busy.filter((b) => b != null), n = busy.length;
  const mean = known.reduce((sum, b) => sum + b, 0) / known.length;
  const range = known.length > 1 ? `, from ${percent(Math.min(...known))} to ${percent(Math.max(...known))}` : "";
  say("workers-words", known.length ? `Share of the last 10 s at work: ${percent(mean)} in the mean${range}.` : "");
  $("workers").className = n > MANY_WORKERS ? "many" : "";
  put("workers", busy.map((b, i) => {
    const row = make("li"), filled = bar(b);
    row.title = `worker ${i}: ${percent(b)}`;
    filled.style.setProperty("--share", share(b));
    row.append(make("span", "name", `worker ${i}`), filled, make("span", "value", percent(b)));
    return row;
  }));
}

function server(live, totals) {
  say("policy-words", [live.policy_text && `${sentence(live.policy_text)}:`, meaning(live.policy)].filter(Boolean).join(" "));
  const counts = ["queries", "answered", "shed", "expired", "failed", "cancelled", "invalid"];
  list("totals", counts.map((name) => [name, whole(totals[name])]));
  list("setup", [["runtime", live.runtime], ["execution", live.execution], ["workers", live.workers], ["target", target(live.sla)],
    ["started", started(live.started)]]);
  list("machine", [["processor", live.machine?.cpu], ["cores", live.machine?.cores]]);
}

// What a policy does, in one line.
function meaning(policy) {
  if (policy?.batch_size == null) return "";
  const size = whole(policy.batch_size), items = counted(policy.batch_size, "item");
  let said = policy.adaptive
    ? `a free worker takes its share of what waits, at least ${items} and at most ${whole(policy.most_items ?? 1024)}, of several queries if need be`
    : policy.batch_size === 1
      ? "every item of a query is a request of its own, which any free worker takes"
      : `a query of more than ${items} is split into requests of at most ${size}, which any free worker takes`;
  if (policy.offload_threshold != null) {
    const busy = policy.offload_backlog == null ? "" : ` unless it has more than ${counted(policy.offload_backlog, "item")} to do already`;
    said += `; a query of at least ${counted(policy.offload_threshold, "item")} goes whole to the accelerator${busy}`;
  }
  if (policy.workers != null) said += `; only ${counted(policy.workers, "worker")} take requests`;
  return `${said}.`;
}

// ---- charts ---------------------------------------------------------------------------------

function draw() {
  if (!last?.totals?.queries || document.hidden) return;
  if (!window.Plotly) return document.readyState === "complete" ? undrawn() : undefined;
  const past = last.history ?? {}, t = (past.time_s ?? []).map((s) => s - past.time_s.at(-1));
  const x = timeAxis(t);
  plot("latency", ...latencyChart(past, t, x));
  plot("rates", ...ratesChart(past, t, x));
  plot("queue", ...queueChart(past, t, x));
}

function latencyChart(past, t, xaxis) {
  const limit = last.sla?.latency_s, at = 1e3 * limit;
  const lines = [["p50", "--mark"], ["p95", "--blue"], ["p99", "--orange"]].map(([name, hue]) =>
    line(t, (past[`${name}_s`] ?? []).map((s) => (s == null ? null : 1e3 * s)), name, hue, "%{y:.3~g} ms"));
  const seen = lines.flatMap((l) => l.y).filter((y) => y > 0);
  const all = limit == null ? seen : [...seen, at];
  const low = Math.min(...all), high = Math.max(...all);
  // Two thresholds: a spread around one of them does not make the axis jump every second.
  logarithmic = high / low > (logarithmic ? 15 : 30);
  const yaxis = { title: { text: "latency (ms)" } };
  if (logarithmic) {
    const ticks = [-3, -2, -1, 0, 1, 2, 3, 4, 5].flatMap((e) => [1, 2, 5].map((k) => k * 10 ** e));
    Object.assign(yaxis, { type: "log", range: [Math.log10(low / 1.25), Math.log10(high * 1.5)],
      tickvals: ticks, ticktext: ticks.map((v) => Number(v.toPrecision(1)).toLocaleString("en")) });
  } else Object.assign(yaxis, { type: "linear", range: [0, 1.15 * (seen.length || limit ? high : 1)] });
  const layout = { xaxis, yaxis };
  if (limit != null) {
    const red = colour("--bad");
    layout.shapes = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: at, y1: at,
      line: { color: colour("--red"), width: 1.5, dash: "dash" } }];
    layout.annotations = [{ xref: "paper", x: 0, xanchor: "left", y: logarithmic ? Math.log10(at) : at,
      yanchor: "bottom", text: `target ${ms(limit)} ms`, showarrow: false, font: { color: red, size: 12 } }];
  }
  return [lines, layout];
}

function ratesChart(past, t, xaxis) {
  const offered = line(t, past.rate_qps, "offered", "--grey", "%{y:.3~g}/s", { width: 5 });
  const answered = line(t, past.answered_qps, "answered", "--blue", "%{y:.3~g}/s");
  const shed = line(t, past.shed_per_s, "shed", "--red", "%{y:.3~g}/s", { width: 1.5 });
  offered.opacity = 0.55; // the answered lie on it as long as all is well
  shed.fill = "tozeroy";
  const yaxis = { title: { text: "queries/s" }, rangemode: "tozero" };
  return [[offered, answered, shed], { xaxis, yaxis: atLeast(yaxis, [past.rate_qps, past.answered_qps], 1) }];
}

function queueChart(past, t, xaxis) {
  const queued = line(t, past.queued_items, "queued items", "--blue", "%{y:,.0f}", { width: 1.5 });
  queued.fill = "tozeroy";
  const percents = (past.busy_share ?? []).map((b) => (b == null ? null : 100 * b));
  const busy = line(t, percents, "busy", "--orange", "%{y:.0f} %");
  busy.yaxis = "y2";
  const yaxis = atLeast({ title: { text: "queued items" }, rangemode: "tozero" }, [past.queued_items], 10);
  const yaxis2 = { title: { text: "busy (%)" }, overlaying: "y", side: "right", range: [0, 105],
    tickvals: [0, 25, 50, 75, 100], showgrid: false };
  return [[queued, busy], { xaxis, yaxis, yaxis2 }];
}

// Noise around nothing must not fill the chart.
function atLeast(axis, series, least) {
  const high = Math.max(0, ...series.flatMap((y) => y ?? []).filter((v) => v != null));
  return { ...axis, range: [0, 1.1 * Math.max(high, least)] };
}

function timeAxis(t) {
  const [spanned, step] = [[60, 15], [150, 30]].find(([most]) => -(t[0] ?? 0) <= most) ?? [300, 60];
  const tickvals = Array.from({ length: Math.floor(spanned / step) + 1 }, (_, i) => -(i * step));
  const ticktext = tickvals.map((v) => (v === 0 ? "now" : v % 60 ? `−${-v} s` : `−${-v / 60} min`));
  return { range: [-spanned, 0], tickvals, ticktext, showgrid: false, ticklabeloverflow: "allow" };
}

function line(x, y, name, hue, hover, more) {
  return { type: "scatter", mode: "lines", name, x, y: y ?? [], connectgaps: false,
    line: { color: colour(hue), width: 2, ...more }, hovertemplate: `${hover}<extra>${name}</extra>` };
}

function plot(id, data, given) {
  const grid = colour("--line"), small = narrow.matches;
  const axis = { gridcolor: grid, linecolor: grid, zerolinecolor: grid, tickcolor: grid, fixedrange: true, automargin: true };
  const layout = {
    ...given,
    xaxis: { ...axis, hoverformat: ".0f", ...given.xaxis },
    yaxis: titled({ ...axis, tickformat: ",~g", ...given.yaxis }),
    ...(given.yaxis2 && { yaxis2: titled({ ...axis, ...given.yaxis2 }) }),
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--ink"), family: "system-ui, sans-serif", size: small ? 11 : 13 },
    margin: { l: small ? 40 : 55, r: 18, t: 8, b: 28 },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    hovermode: "closest",
    dragmode: false, // a finger on a chart scrolls the page
    autosize: true,
  };
  $(id).classList.remove("missing");
  Plotly.react(id, data, layout, { displayModeBar: false, responsive: true });
}

const titled = (axis) => ({ ...axis, title: { ...axis.title, standoff: 10 } });
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// ---- numbers as a person reads them -----------------------------------------------------------

// Three digits, whole from 100 on; a dash where there is none. As the report, but 12.0 keeps its
// nought: a figure that changes every second must not change its width.
function rate(value) {
  if (value == null || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  if (Math.abs(value) >= 99.95) return whole(value);
  if (Math.abs(value) < 0.001) return "<0.001";
  return value.toPrecision(Math.abs(value) >= 1 ? 3 : 2);
}
const ms = (seconds) => rate(seconds == null ? null : 1e3 * seconds);
const whole = (value) => (value == null ? "–" : Math.round(value).toLocaleString("en"));
const counted = (n, one, more = `${one}s`) => (n == null ? "–" : `${whole(n)} ${n === 1 ? one : more}`);
const target = (sla) => (sla?.latency_s == null ? "no target" : `p${sla.percentile} ≤ ${Number((1e3 * sla.latency_s).toPrecision(6))} ms`);
const share = (x) => `${100 * Math.min(1, Math.max(0, x || 0))}%`;
const clock = (date) => date.toLocaleTimeString("en-GB");
const lostPerS = (now) => (now.shed_per_s ?? 0) + (now.expired_per_s ?? 0) + (now.failed_per_s ?? 0);
const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const sizeClass = ({ lo, hi }) => (hi == null ? `≥ ${whole(lo)}` : lo === hi ? whole(lo) : `${whole(lo)}–${whole(hi)}`);

function percent(x) {
  if (x == null || !Number.isFinite(x)) return "–";
  return x > 0 && x < 0.0995 ? `${Number((100 * x).toPrecision(2))} %` : `${Math.round(100 * x)} %`;
}

function span(seconds) {
  const s = Math.floor(seconds), m = Math.floor(s / 60), h = Math.floor(m / 60), d = Math.floor(h / 24);
  if (d) return `${d} d ${h % 24} h`;
  if (h) return `${h} h ${m % 60} min`;
  return m ? `${m} min ${s % 60} s` : `${s} s`;
}

// "2026-11-21T16:00:00+0000": the server's date, in the reader's time. Not every browser reads an
// offset without a colon.
function started(text) {
  const date = new Date(String(text).replace(/([+-]\d\d)(\d\d)$/, "$1:$2"));
  return Number.isNaN(date.getTime()) ? text : date.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
}

// ---- the document -----------------------------------------------------------------------------

// Only what changed is written: the rest stays selected, and is not announced again.
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
const say = (id, text) => write($(id), text);

function put(id, fresh) {
  const old = [...$(id).children];
  fresh.forEach((node, i) => {
    if (!old[i]) $(id).append(node);
    else if (!old[i].isEqualNode(node)) old[i].replaceWith(node);
  });
  old.slice(fresh.length).forEach((node) => node.remove());
}

function make(tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.textContent = text;
  return node;
}

function big(node, value, unit) {
  node.replaceChildren(value, make("span", "unit", value === "–" ? "" : ` ${unit}`));
}

// Solid to the first share, pale to the second, a line at the third; shares of the whole width.
function bar(solid, pale, mark) {
  const whole = make("span", "bar");
  whole.ariaHidden = "true";
  const add = (className, property, x) => {
    if (x == null || !Number.isFinite(x)) return;
    const part = make("i", className);
    part.style[property] = className === "line" ? `calc(${share(x)} - ${x >= 1 ? 2 : 1}px)` : share(x);
    whole.append(part);
  };
  add("pale", "width", pale);
  add("", "width", solid);
  add("line", "left", mark);
  return whole;
}

function list(id, facts) {
  put(id, facts.filter(([, value]) => value != null && value !== "").flatMap(([name, value]) =>
    [make("dt", "", name), make("dd", "", String(value))]));
}

function undrawn() {
  for (const id of ["latency", "rates", "queue"]) {
    $(id).classList.add("missing");
    say(id, "No charts: /plotly.min.js did not load.");
  }
}

for (const query of [narrow, dark]) query.addEventListener("change", draw);
document.addEventListener("visibilitychange", draw);
$("plotly").addEventListener("load", draw);
poll();
