// What the page shows and when.  `events` sends the present state and what is new of history and log; where a table is
// filtered, sorted otherwise or turned over, its rows are asked for by `rows`.  Nothing is fetched from anywhere else.
import { Plots } from "./plots.js";
import { Table } from "./tables.js";
import * as text from "./text.js";

const SIZE = matchMedia("(max-width: 720px)").matches ? 8 : 25; // rows of a page; the server sends 25 with each state
const LINES = 200; // of the log
const STALE = 20000; // ms without news until the page says so
const byId = (id) => document.getElementById(id);
let state = null;
let heard = 0;

// --- tables -------------------------------------------------------------------------------------------------

const tables = {
  sessions: table("sessions", "session", {
    caption: "sessions",
    keyOf: (row) => row.id,
    isBad: (row) => row.state !== "connected",
    sort: "rate",
    columns: [
      { label: "Client", sort: "name", text: (row) => row.name, press: (row) => choose(row) },
      { label: "State", sort: "since", text: sessionState },
      { label: "Over", sort: "transport", text: way },
      { label: "From", wide: true, text: (row) => [row.address, row.agent].filter(Boolean).join(", ") },
      { label: "Round trip", sort: "round_trip", number: true, text: (row) => text.seconds(row.round_trip_s) },
      { label: "Streams", sort: "streams", number: true, text: (row) => text.count(row.streams) },
      { label: "In", sort: "rate", number: true, text: (row) => text.rate(row.rate_received) },
      { label: "Out", number: true, text: (row) => text.rate(row.rate_sent) },
      { label: "Bytes in / out", sort: "bytes", number: true, text: (row) => `${text.bytes(row.bytes_received)} / ${text.bytes(row.bytes_sent)}` },
      { label: "Queued", sort: "queued", number: true, text: (row) => text.bytes(row.queued_bytes) },
      { label: "Outbox", sort: "outbox", number: true, text: (row) => `${text.bytes(row.outbox_bytes)} (${text.part(row.outbox_bytes, row.outbox_limit)})` },
      { label: "Recoveries", sort: "recoveries", text: recoveries },
      { label: "Last failure", wide: true, text: (row) => failure(row.last_failure) },
    ],
  }),
  streams: table("streams", "stream", {
    caption: "streams",
    keyOf: (row) => row.id,
    sort: "rate",
    columns: [
      { label: "Stream", sort: "name", text: (row) => row.id },
      { label: "Kind", sort: "kind", text: (row) => row.kind },
      { label: "From → to", wide: true, text: (row) => `${row.from} → ${row.to}` },
      { label: "Forward", text: (row) => row.forward },
      { label: "Age", sort: "age", number: true, text: (row) => text.seconds(row.age_s) },
      { label: "In", sort: "rate", number: true, text: (row) => text.rate(row.rate_received) },
      { label: "Out", number: true, text: (row) => text.rate(row.rate_sent) },
      { label: "Bytes in / out", sort: "bytes", number: true, text: (row) => `${text.bytes(row.bytes_received)} / ${text.bytes(row.bytes_sent)}` },
      { label: "Queued", sort: "queued", number: true, text: (row) => text.bytes(row.queued_bytes) },
    ],
  }),
};
const servers = new Table(byId("server-table"), null, {
  caption: "servers",
  keyOf: (row) => row.url,
  isBad: (row) => row.state !== "connected",
  columns: [
    { label: "Server", text: (row) => row.url },
    { label: "State", text: (row) => row.state },
    { label: "Since", number: true, text: (row) => text.since(row.since, state.now) },
    { label: "Over", text: (row) => [row.transport, row.proxy && `through ${row.proxy}`].filter(Boolean).join(" ") },
    { label: "Last failure", wide: true, text: (row) => failure(row.last_failure) },
    { label: "Tries again", text: (row) => (row.next_try_at === null ? "" : `in ${text.seconds(Math.max(0, row.next_try_at - state.now))}`) },
  ],
});
const forwards = new Table(byId("forward-table"), null, {
  caption: "forwards",
  keyOf: (row) => row.key,
  isBad: (row) => row.bad,
  columns: [
    { label: "Client", text: (row) => row.name },
    { label: "Kind", text: (row) => row.kind },
    { label: "Listens on", text: (row) => row.listen },
    { label: "Leads to", wide: true, text: (row) => row.target },
    { label: "State", wide: true, text: (row) => row.state },
  ],
});

function table(name, id, options) {
  const made = new Table(byId(`${id}-table`), byId(`${id}-pages`), {
    ...options,
    size: SIZE,
    asked: () => void ask(name),
  });
  made.filter = byId(`${id}-filter`);
  made.asks = 0;
  let pending = null;
  made.filter.addEventListener("input", () => {
    clearTimeout(pending);
    pending = setTimeout(() => {
      made.offset = 0;
      void ask(name);
    }, 250);
  });
  return made;
}

function isAsIt(made) {
  return !made.filter.value && made.sort === "rate" && made.descending && !made.offset;
}

async function ask(name) {
  const made = tables[name];
  if (isAsIt(made) && state) return show(name, state[name]);
  const asked = ++made.asks;
  const query = new URLSearchParams({
    of: name, filter: made.filter.value, sort: made.sort, descending: made.descending ? "1" : "0", offset: made.offset,
    limit: SIZE,
  });
  try {
    const answer = await fetch(`rows?${query}`, { cache: "no-store" });
    if (!answer.ok) return;
    const found = await answer.json();
    if (asked === made.asks && state) show(name, found);
  } catch {
    // The next state asks again, and the page says by itself when nothing comes any more.
  }
}

function show(name, found) {
  tables[name].offset = found.offset;
  tables[name].show({ ...found, rows: found.rows.slice(0, SIZE) });
}

function sessionState(row) {
  const left = row.waits_until === null ? "" : `, ${text.seconds(Math.max(0, row.waits_until - state.now))} left`;
  return row.state === "connected" ? `connected, ${text.since(row.since, state.now)}` : `${row.state}${left}`;
}

function way(row) {
  const connected = row.lanes.filter((lane) => lane.connected).length;
  const lanes = row.lanes.length > 1 ? `${connected} of ${row.lanes.length} lanes` : "";
  return [row.transport, row.via && `via ${row.via}`, lanes].filter(Boolean).join(", ");
}

function recoveries(row) {
  return row.recoveries ? `${text.count(row.recoveries)}, last took ${text.seconds(row.last_recovery_s)}` : "0";
}

function failure(found) {
  return found ? `${text.since(found.at, state.now)} ago: ${found.text}` : "";
}

// --- what is wrong, now, and the log --------------------------------------------------------------------------

const SHOWN = 12; // findings
let told = "";

function showFindings(findings) {
  const key = JSON.stringify(findings.map(({ title, text: words, next, severity }) => [severity, title, words, next]));
  if (key === told) return;
  told = key;
  const items = findings.slice(0, SHOWN).map((finding) => item(finding.severity, finding.title, finding.text, finding.next));
  if (findings.length > SHOWN) items.push(item("note", `${findings.length - SHOWN} more`, "The first ones are the worst.", ""));
  if (!findings.length) items.push(item("good", "Nothing that this page knows of", "Sessions are connected, and what they send is taken.", ""));
  byId("finding-list").replaceChildren(...items);
}

function item(severity, title, words, next) {
  const element = document.createElement("li");
  element.className = `finding ${severity}`;
  element.appendChild(document.createElement("strong")).textContent = title;
  element.appendChild(document.createElement("span")).textContent = words;
  if (next) {
    const line = element.appendChild(document.createElement("div"));
    line.className = "next";
    line.textContent = next;
  }
  return element;
}

const tiles = new Map();

function showTile(name, value) {
  if (!tiles.has(name)) {
    const box = byId("tiles").appendChild(document.createElement("div"));
    box.appendChild(document.createElement("dt")).textContent = name;
    tiles.set(name, box.appendChild(document.createElement("dd")));
  }
  if (tiles.get(name).textContent !== value) tiles.get(name).textContent = value;
}

function showTiles(now) {
  const waiting = now.sessions_total - now.sessions_connected;
  showTile("Sessions", waiting ? `${text.count(now.sessions_connected)} + ${waiting} waiting` : text.count(now.sessions_connected));
  showTile("Streams", text.count(now.streams_total));
  showTile("Received", text.rate(now.rate_received));
  showTile("Sent", text.rate(now.rate_sent));
  showTile("Round trip", text.seconds(now.round_trip));
  showTile("Slowest", text.seconds(now.round_trip_most));
  showTile("Queued", text.bytes(now.queued_bytes));
  showTile("Outboxes", text.bytes(now.outbox_bytes));
  showTile("Recoveries, last hour", text.count(now.recoveries_hour));
  for (const [name, value] of Object.entries(now.more)) showTile(name, value);
  showTile("Threads", text.count(now.threads));
  showTile("Memory", text.bytes(now.memory_bytes));
}

function addLines(lines) {
  const list = byId("log");
  const atEnd = list.scrollTop + list.clientHeight >= list.scrollHeight - 8;
  for (const [level, line] of lines) {
    const entry = list.appendChild(document.createElement("li"));
    entry.className = level;
    entry.textContent = line;
  }
  while (list.childElementCount > LINES) list.firstChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

byId("log-level").addEventListener("change", () => {
  byId("log").dataset.least = byId("log-level").value;
});
byId("log").dataset.least = byId("log-level").value;

// --- plots ----------------------------------------------------------------------------------------------------

const plots = new Plots();
let plotted = "";

async function plot(name) {
  plotted = name;
  tables.sessions.chosen = null;
  const answer = await fetch(`history?${new URLSearchParams({ of: name })}`, { cache: "no-store" });
  if (answer.ok && plotted === name) plots.fill(await answer.json());
}

function choose(row) {
  byId("stream-filter").value = `${row.name}/`;
  byId("stream-filter").dispatchEvent(new Event("input"));
  if ([...byId("plot-of").options].some((option) => option.value === row.name)) {
    byId("plot-of").value = row.name;
    void plot(row.name);
  }
}

byId("plot-of").addEventListener("change", () => void plot(byId("plot-of").value));

function showNames(names) {
  const list = byId("plot-of");
  const shown = [...list.options].slice(1).map((option) => option.value);
  if (shown.join("\n") === names.join("\n")) return;
  const chosen = list.value;
  list.replaceChildren(list.options[0], ...names.map((name) => new Option(name, name)));
  list.value = names.includes(chosen) ? chosen : "";
  if (list.value !== chosen) void plot("");
}

// --- the stream of events ----------------------------------------------------------------------------------------

function receive(message) {
  heard = performance.now();
  state = message;
  byId("title").textContent = message.title;
  document.title = `${message.findings.some((found) => found.severity !== "note") ? "⚠ " : ""}${message.title}`;
  byId("about").textContent = `${message.about}, up ${text.since(message.started_at, message.now)}`;
  showFindings(message.findings);
  showTiles(message.totals);
  for (const name of ["sessions", "streams"]) {
    if (isAsIt(tables[name])) show(name, message[name]);
    else void ask(name);
  }
  byId("servers").hidden = !message.servers.length;
  servers.show({ total: message.servers.length, matched: message.servers.length, offset: 0, rows: message.servers });
  byId("forwards").hidden = !message.forwards.total;
  forwards.show(message.forwards);
  showNames(message.plotted);
  for (const sample of message.samples) {
    if (plotted in sample.by) plots.add(sample.by[plotted]);
  }
  addLines(message.log);
}

let first = true;
const source = new EventSource("events");
source.addEventListener("state", (event) => {
  const message = JSON.parse(event.data);
  if (first || message.first) {
    byId("log").replaceChildren();
    void plot(plotted);
    first = false;
  }
  receive(message);
});

function showLive() {
  const silent = performance.now() - heard;
  const element = byId("live");
  const live = heard > 0 && silent < STALE && source.readyState === EventSource.OPEN;
  const words = live ? "live" : notLive(silent);
  element.className = live ? "live" : "stale";
  if (element.textContent !== words) element.textContent = words;
}

function notLive(silent) {
  if (source.readyState === EventSource.CLOSED) return "refused: too many pages are open, or no access; reload this one later";
  return heard ? `nothing new for ${text.seconds(silent / 1000)}, trying again` : "connecting…";
}
setInterval(showLive, 500);
