// The drawer of a cell, built from the table in #data. Everything is set as text or as a plain attribute, so that
// nothing from a record is ever markup.

const data = JSON.parse(document.getElementById("data").textContent);
const dialog = document.querySelector("dialog");

const value = (column, cell) => column.values[column.codes[cell]];
const at = (name, cell) => value(data[name], cell);
const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const looks = (status) => data.looks[status] ?? { glyph: "?", word: status, tone: "bad", meaning: "" };
const NAMES = { nmse: "NMSE", kl: "KL", top1: "top-1", "GB/s": "GB/s moved" };
const FAULT = { rabbitllm: "RabbitLLM’s fault: ", transformers: "The fault of transformers: ", environment: "The environment’s fault: " };
const spaced = (name) => NAMES[name] ?? name.replaceAll("_", " ");

// Returns an element. Children are nodes or texts; what is null or "" is left out.
function make(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, text] of Object.entries(attributes ?? {})) made.setAttribute(name, text);
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

function badge(status) {
  const seen = looks(status);
  return make("span", { class: `badge ${seen.tone}` },
    make("span", { class: "glyph", "aria-hidden": "true" }, seen.glyph), ` ${seen.word}`);
}

function list(entries) {
  return make("dl", null, entries.map(([name, text]) =>
    make("div", null, make("dt", null, spaced(name)), make("dd", null, `${text}`))));
}

// Returns a heading with a list of names and values below it, or nothing where there are none.
function pairs(title, entries) {
  const shown = entries.filter(([, text]) => text !== undefined && text !== "");
  return shown.length ? [make("h3", null, title), list(shown)] : [];
}

function causes(cell) {
  return (at("causes", cell) ?? []).filter((cause) => cause.why).map((cause) => make("p", { class: "cause" },
    cause.side ? make("strong", null, FAULT[cause.side] ?? `${cause.side}: `) : null,
    cause.why,
    cause.link.startsWith("https://") ? make("span", null, " ", make("a", { href: cause.link, rel: "noreferrer" }, "Source")) : null));
}

function failure(cell) {
  const said = [at("exception", cell), at("message", cell)].filter(Boolean).join(": ");
  const fold = (title, text) => text
    ? make("details", null, make("summary", null, title), make("pre", { tabindex: "0" }, text)) : null;
  return [
    said ? make("pre", { tabindex: "0" }, said) : null,
    fold("Traceback", at("traceback", cell)),
    fold("Standard error", at("stderr", cell)),
  ];
}

// Links to the same architecture and release on the other backends.
function siblings(cell) {
  const same = data.status.codes.map((_, other) => other).filter((other) =>
    ["architecture", "release"].every((name) => data[name].codes[other] === data[name].codes[cell]));
  return make("p", { class: "siblings" }, same.map((other) => {
    const [seen, name] = [looks(at("status", other)), `${at("attention", other)} on ${at("device", other)}`];
    const attributes = { href: anchorOf(other).getAttribute("href"), class: `badge ${seen.tone}` };
    if (other === cell) attributes["aria-current"] = "true";
    return make("a", attributes, `${seen.glyph} ${name}`, make("span", { class: "unseen" }, ` ${seen.word}`));
  }));
}

function checks(cell) {
  const ran = Object.entries(data.checks).map(([name, column]) => [name, column.names, value(column, cell)]).filter(([, , found]) => found);
  if (!ran.length) return [];
  const figures = (names, texts) => names.map((name, n) => texts[n]
    ? make("span", { class: "figure" }, `${spaced(name)} `, make("b", null, texts[n])) : null);
  const fold = (message) => message
    ? make("details", null, make("summary", null, "message"), make("pre", { tabindex: "0" }, message)) : null;
  return [
    make("h3", null, "Checks"),
    make("table", { class: "checks" },
      make("thead", null, make("tr", null, ["check", "status", "figures"].map((title) => make("th", { scope: "col" }, title)))),
      make("tbody", null, ran.map(([name, names, [status, message, ...texts]]) => make("tr", null,
        make("th", { scope: "row" }, spaced(name)), make("td", null, badge(status)),
        make("td", null, figures(names, texts), fold(message)))))),
  ];
}

function age(time) {
  const days = Math.floor((Date.now() - Date.parse(time)) / 86400000);
  return Number.isNaN(days) ? "" : days < 1 ? ", today" : `, ${days} day${days > 1 ? "s" : ""} ago`;
}

function command(cell) {
  const device = at("device", cell) === "cpu" ? "" : ` --device ${at("device", cell)}`;
  const release = at("release", cell);
  // What is ahead of the releases has letters in its version.
  const task = /[a-z]/.test(release) ? `ahead -- ${release.includes("dev") ? "main" : release}` : `matrix -- --force --releases ${release}`;
  return `tox -e ${task} --arch ${at("architecture", cell)} --attn ${at("backend", cell)}${device}`;
}

function measured(cell) {
  const time = at("time", cell);
  const seconds = at("seconds", cell);
  const engine = [at("engine_hash", cell), at("check_hash", cell)].filter(Boolean).join(", checks ");
  return pairs("Measured", [
    ["when", time ? `${time.replace("T", " ").replace("Z", " UTC")}${age(time)}` : ""],
    ["hardware", at("hardware", cell) ?? ""],
    ["model class", `${at("model_class", cell)}, ${at("dtype", cell)}`],
    ["registry class", at("family_class", cell) ?? ""],
    ["took", seconds ? `${seconds} s, ${at("cpu_seconds", cell) ?? 0} s of CPU time` : ""],
    ["engine", engine],
    ["fingerprint", at("fingerprint", cell) ?? ""],
  ]);
}

// Fills and opens the drawer. `steps` are the neighbours in its row: [label, anchor] pairs.
function show(cell, steps) {
  const status = at("status", cell);
  const close = make("button", { type: "button", class: "close" }, "Close");
  close.addEventListener("click", () => dialog.close());
  dialog.replaceChildren(
    make("div", { class: "bar" },
      make("h2", { id: "cell-title", tabindex: "-1" }, at("architecture", cell),
        make("small", null, `transformers ${at("release", cell)}, ${at("attention", cell)} on ${at("device", cell)}`)),
      make("nav", { "aria-label": "Neighbouring releases" }, steps.map(([label, link]) =>
        make("a", { href: link.getAttribute("href"), "aria-label": label }, label))),
      close),
    make("p", null, badge(status), ` ${looks(status).meaning}.`),
    ...(at("old", cell) ? [make("p", { class: "stale" }, `Stale: ${at("old", cell)} than the newest record’s.`)] : []),
    ...causes(cell), ...failure(cell).filter(Boolean), siblings(cell), ...checks(cell), ...speed(cell),
    ...pairs("Probes", Object.entries(at("probes", cell) ?? {})),
    ...pairs("Versions", Object.entries(at("versions", cell) ?? {})),
    ...measured(cell),
    make("h3", null, "Run it again"), make("pre", { tabindex: "0", class: "command" }, command(cell)));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  dialog.querySelector("h2").focus();
}
