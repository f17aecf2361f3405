// The matrix: which backend is shown, which rows, moving by keys, and the address of the open cell.

const controls = document.querySelector(".controls");
const sections = [...document.querySelectorAll(".run-on")];
const links = [...document.querySelectorAll("a[data-cell]")];
const place = (link) => Number(link.dataset.cell);
const byCell = new Map(links.map((link) => [place(link), link]));
const anchorOf = (cell) => byCell.get(cell);

// What is searched in a row: its name and words, and the repositories that are like it.
const textOf = (row) => `${row.querySelector("th").textContent} ${row.dataset.text} ${row.dataset.checkpoints}`.toLowerCase();

// The part of a repository's name before its size, which models of one kind share; those of which a part is active apart.
function stem(name) {
  const base = name.toLowerCase().split("/").pop();
  const size = /(^|[-_])e?\d+(x\d+)?([._]\d+)?[bm](?![a-z])/.exec(base);
  return size ? base.slice(0, size.index) + (/\db-a\d/.test(base) ? " moe" : "") : base;
}

// Whether a row is meant by all words: they occur in it or, where they occur in no row, its repositories begin as they do.
function finder(words) {
  const rows = [...document.querySelectorAll("tr[data-text]")];
  const literal = words.filter((word) => rows.some((row) => textOf(row).includes(word)));
  return (row) => {
    const stems = row.dataset.checkpoints.split(" ").filter(Boolean).map(stem);
    return words.every((word) => (literal.includes(word) ? textOf(row).includes(word) : stems.includes(stem(word))));
  };
}

// The model type of the sweep whose name a word has, or begins with: "falcon" for tiiuae/falcon-7b.
function sweptType(word) {
  const plain = (name) => name.replaceAll(/[^a-z0-9]/g, "");
  const types = new Map(Object.keys(data.swept.types ?? {}).map((type) => [plain(type), type]));
  const parts = word.toLowerCase().split("/").pop().split(/[-_ ]/);
  const starts = [stem(word), ...parts.map((_, n) => parts.slice(0, parts.length - n).join(""))];
  return starts.map((start) => types.get(plain(start))).find(Boolean);
}

// Says below the search what is known of the model that was asked for.
function answer(typed, rows) {
  const place = document.querySelector(".answer");
  place.replaceChildren();
  if (!typed) return;
  const runOn = controls.querySelector("[name=run-on]:checked + span").textContent;
  const lines = rows.slice(0, 6).map((row) => {
    const link = row.querySelector("a[data-cell]");
    const name = row.querySelector("th").firstChild.textContent.trim();
    return make("li", null, link ? make("a", { href: link.getAttribute("href") }, name) : name,
      ` ${row.querySelector(".summary").textContent} (${runOn})`);
  });
  if (rows.length > lines.length) lines.push(make("li", null, `and ${rows.length - lines.length} more rows of the matrix below`));
  const type = rows.length ? undefined : sweptType(typed);
  if (type) {
    const [outcome, why] = data.swept.types[type];
    lines.push(make("li", null, `No row of the matrix, but the sweep tried the model type ${type}, built small, on a CPU with transformers ${data.swept.release}: `,
      make("strong", null, outcome), `, ${why || data.swept.meanings[outcome]}. The model_type in config.json says whether it is yours.`));
  } else if (!rows.length) lines.push(make("li", null, "Neither the matrix nor the sweep has a model of that name."));
  if (!rows.length) {
    const repository = /^[\w.-]+\/[\w.-]+$/.test(typed) ? typed : "REPO";
    lines.push(make("li", null, "Ask for any repository, before its weights are downloaded: ", make("code", null, `rabbitllm plan ${repository}`)));
  }
  place.append(make("ul", null, lines));
}

function apply() {
  const { text, family, status } = controls.elements;
  const means = finder(text.value.toLowerCase().split(/\s+/).filter(Boolean));
  const chosen = controls.querySelector("[name=run-on]:checked").value;
  for (const section of sections) {
    const shown = section.id === `run-on-${chosen}`;
    section.classList.toggle("chosen", shown);
    if (!shown) continue;
    let [seen, all] = [0, 0];
    for (const body of section.querySelectorAll("tbody")) {
      const before = seen;
      for (const row of body.querySelectorAll("tr[data-text]")) {
        const cells = [...row.querySelectorAll("a")];
        const fits = (link) => !status.value || at("status", place(link)) === status.value;
        row.hidden = !(means(row)
          && (!family.value || body.dataset.family === family.value)
          && (!status.value || cells.some(fits)));
        for (const link of cells) link.parentElement.classList.toggle("faded", !fits(link));
        all += 1;
        seen += row.hidden ? 0 : 1;
      }
      body.hidden = seen === before;
    }
    controls.querySelector("output").textContent = `${seen} of ${all} architectures shown`;
    rove(section);
    answer(text.value.trim(), [...section.querySelectorAll("tr[data-text]")].filter(means));
  }
  mark();
}

// Marks the boxes that go on at their right edge.
function mark() {
  for (const box of document.querySelectorAll(".box")) {
    const [wide] = box.children;
    box.classList.toggle("more", wide.scrollLeft + wide.clientWidth < wide.scrollWidth - 1);
  }
}

// Lifts the filters. The backend is none: it stays.
function clear() {
  for (const name of ["text", "family", "status"]) controls.elements[name].value = "";
}

// One cell of a matrix takes part in the tab order; arrow keys move from it.
function rove(section, link) {
  const own = links.filter((other) => section.contains(other));
  const current = link ?? own.find((other) => other.tabIndex === 0 && other.offsetParent) ?? own.find((other) => other.offsetParent);
  for (const other of own) other.tabIndex = other === current ? 0 : -1;
}

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -Infinity], End: [0, Infinity] };

function step(event) {
  const link = event.target.closest("a[data-cell]");
  const move = STEPS[event.key];
  if (!link || !move || event.altKey || event.ctrlKey || event.metaKey) return;
  const section = link.closest(".run-on");
  const rows = [...section.querySelectorAll("tr[data-text]")].filter((row) => row.offsetParent);
  const row = rows[rows.indexOf(link.closest("tr")) + move[0]];
  if (!row) return;
  const cells = [...row.cells];
  const column = [...link.closest("tr").cells].indexOf(link.parentElement);
  // Places without a record are passed over.
  const ahead = move[1] === 0 ? [cells[column]]
    : Number.isFinite(move[1]) ? (move[1] > 0 ? cells.slice(column + 1) : cells.slice(0, column).reverse())
      : move[1] > 0 ? [...cells].reverse() : cells;
  const next = ahead.map((cell) => cell.querySelector("a[data-cell]")).find(Boolean);
  event.preventDefault();
  if (next) next.focus();
}

// The links to the releases beside a cell that have a record: [label, link] pairs.
function neighbours(link) {
  const cells = [...link.closest("tr").querySelectorAll("a[data-cell]")];
  const n = cells.indexOf(link);
  const label = (other) => at("release", place(other));
  // The newest release is the first column.
  return [[cells[n + 1], (l) => `← ${l}`], [cells[n - 1], (l) => `${l} →`]]
    .filter(([other]) => other).map(([other, words]) => [words(label(other)), other]);
}

const named = () => document.getElementById(location.hash.slice(1))?.closest("a[data-cell]");

// Shows the cell that the address names, or none.
function follow() {
  const link = named();
  if (!link) {
    if (dialog.open) dialog.close();
    return;
  }
  const section = link.closest(".run-on");
  const radio = controls.querySelector(`[name=run-on][value="${section.id.slice("run-on-".length)}"]`);
  if (!radio.checked || link.closest("tr").hidden) {
    if (link.closest("tr").hidden) clear();
    radio.checked = true;
    apply();
  }
  rove(section, link);
  link.scrollIntoView({ block: "nearest", inline: "nearest" });
  show(place(link), neighbours(link));
}

controls.addEventListener("input", apply);
controls.elements.text.addEventListener("input", apply);
addEventListener("resize", mark);
document.addEventListener("scroll", mark, { capture: true, passive: true });
controls.addEventListener("submit", (event) => event.preventDefault());
controls.querySelector("button").addEventListener("click", () => {
  clear();
  apply();
});
document.addEventListener("keydown", step);
document.addEventListener("focusin", (event) => {
  const link = event.target.closest("a[data-cell]");
  if (link) rove(link.closest(".run-on"), link);
});
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (!document.getElementById(link.getAttribute("href").slice(1))?.matches("a[data-cell]")) return;
  event.preventDefault();
  history.pushState(null, "", link.getAttribute("href"));
  follow();
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});
dialog.addEventListener("close", () => {
  const link = named();
  if (!link) return;
  history.pushState(null, "", location.pathname + location.search);
  link.focus();
});
addEventListener("popstate", follow);
apply();
follow();
