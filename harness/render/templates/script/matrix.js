// The matrix: which backend is shown, which rows, moving by keys, and the address of the open cell.

const controls = document.querySelector(".controls");
const sections = [...document.querySelectorAll(".run-on")];
const links = [...document.querySelectorAll("a[data-cell]")];
const place = (link) => Number(link.dataset.cell);
const byCell = new Map(links.map((link) => [place(link), link]));
const anchorOf = (cell) => byCell.get(cell);

function apply() {
  const { text, family, status } = controls.elements;
  const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = controls.querySelector("[name=run-on]:checked").value;
  for (const section of sections) {
    const shown = section.id === `run-on-${chosen}`;
    section.classList.toggle("chosen", shown);
    if (!shown) continue;
    let [seen, all] = [0, 0];
    for (const body of section.querySelectorAll("tbody")) {
      const before = seen;
      for (const row of body.querySelectorAll("tr[data-text]")) {
        const said = `${row.cells[0].textContent} ${row.dataset.text}`.toLowerCase();
        const cells = [...row.querySelectorAll("a")];
        const fits = (link) => !status.value || at("status", place(link)) === status.value;
        row.hidden = !(words.every((word) => said.includes(word))
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
