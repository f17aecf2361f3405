// Tokens per second by release, for one architecture and backend: a chart, and the same as a table.

const SERIES = ["streamed", "stock", "accelerate"];
const SIZE = { width: 660, height: 200, left: 44, right: 12, top: 10, bottom: 44 };

function draw(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, text] of Object.entries(attributes)) made.setAttribute(name, text);
  made.append(...children);
  return made;
}

// The cells of a row that were timed, oldest release first, each with its place among all releases of the backend.
function timed(cell) {
  const same = (names) => data.status.codes.map((_, other) => other).filter((other) =>
    names.every((name) => data[name].codes[other] === data[name].codes[cell]));
  const axis = [...new Set(same(["backend", "device"]).map((other) => at("release", other)))];
  axis.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const points = same(["backend", "device", "architecture"]).filter((other) => at("rates", other)?.streamed)
    .map((other) => ({ cell: other, place: axis.indexOf(at("release", other)), hardware: at("hardware", other), ...at("rates", other) }));
  points.sort((a, b) => a.place - b.place);
  return { axis, points };
}

// A round number that is not below `most`, in thirds of which a scale can be marked.
function ceiling(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return [1.2, 1.5, 3, 6, 9, 12].map((step) => step * power).find((top) => top >= most);
}

function plot({ axis, points }, current) {
  const { width, height, left, right, top, bottom } = SIZE;
  const most = ceiling(Math.max(...points.flatMap((point) => SERIES.map((name) => point[name]?.[2] ?? 0))) || 1);
  const x = (place) => left + ((width - left - right) * (place + 0.5)) / axis.length;
  const y = (rate) => height - bottom - ((height - top - bottom) * rate) / most;
  const parts = [0, 1, 2, 3].flatMap((third) => {
    const level = y((most * third) / 3);
    return [
      draw("line", { class: "rule", x1: left, x2: width - right, y1: level, y2: level }),
      draw("text", { x: left - 6, y: level + 4, "text-anchor": "end" }, number.format((most * third) / 3)),
    ];
  });
  axis.forEach((release, place) => parts.push(draw("text",
    { transform: `translate(${x(place) + 4} ${height - bottom + 12}) rotate(-45)`, "text-anchor": "end" }, release)));
  for (const name of SERIES) {
    const own = points.filter((point) => point[name]);
    // Only neighbours measured on the same hardware are joined.
    const path = own.map((point, n) => {
      const before = own[n - 1];
      const joined = before && before.place === point.place - 1 && before.hardware === point.hardware;
      return `${joined ? "L" : "M"}${x(point.place)} ${y(point[name][0])}`;
    }).join("");
    parts.push(draw("path", { class: `line ${name}`, d: path }));
    for (const point of own) {
      const [middle, low, high] = point[name];
      parts.push(draw("line", { class: `spread ${name}`, x1: x(point.place), x2: x(point.place), y1: y(low), y2: y(high) }));
      parts.push(draw("circle", { class: name, cx: x(point.place), cy: y(middle), r: point.cell === current ? 5 : 3 },
        draw("title", {}, `${name}, ${axis[point.place]}: ${middle} tokens/s (${low} to ${high}), ${point.hardware}`)));
    }
  }
  return draw("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img",
    "aria-label": "Tokens per second by release; the same figures are in the table below." }, ...parts);
}

function speed(cell) {
  const found = timed(cell);
  if (!found.points.length) return [];
  const here = at("rates", cell);
  const text = (rate) => rate ? `${rate[0]} (${rate[1]} to ${rate[2]})` : "";
  const entries = SERIES.filter((name) => here?.[name]).map((name) => [name, `${text(here[name])} tokens/s`]);
  if (here?.streamed && here.stock) entries.push(["of stock", `${Math.round((100 * here.streamed[0]) / here.stock[0])} %`]);
  const moved = Object.entries(at("wire", cell) ?? {}).map(([name, rate]) => [name, number.format(rate)]);
  return [
    make("h3", null, "Speed"),
    list([...entries, ...moved]),
    make("p", { class: "keys" }, SERIES.map((name) => make("span", { class: name }, make("i", { "aria-hidden": "true" }), ` ${name} `)),
      "(median and range, tokens/s by release)"),
    plot(found, cell),
    make("details", null, make("summary", null, "As a table"), make("table", { class: "checks" },
      make("thead", null, make("tr", null, ["release", ...SERIES, "hardware"].map((title) => make("th", { scope: "col" }, title)))),
      make("tbody", null, found.points.map((point) => make("tr", null, make("th", { scope: "row" }, found.axis[point.place]),
        SERIES.map((name) => make("td", null, text(point[name]))), make("td", null, point.hardware ?? "")))))),
  ];
}
