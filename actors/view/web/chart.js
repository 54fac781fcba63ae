// A chart: lines, dots or stacked bars over steps. All charts of a page point at the same step.

arpo.chart = (() => {
  const {el, svg, replace} = arpo.dom;
  const {number, ticks} = arpo.format;
  const HEIGHT = 150;
  const MARGIN = {left: 46, right: 10, top: 8, bottom: 22};
  const pointed = {x: null, charts: new Set()};

  // spec: {title, about, series: [{name, colour, points: [[x, y], ...], kind: "line" | "dots" | "bar" | "told", format}], limit:
  // {value, name}, format, zero: whether the axis holds 0, top: its least upper end, xName}
  function create() {
    const legend = el("div", {class: "legend"});
    const title = el("h3");
    const about = el("p", {class: "about"});
    const plot = svg("svg", {class: "plot", role: "img"});
    const card = el("figure", {class: "card chart"}, el("figcaption", null, title, about), plot, legend);
    const chart = {card, update, point};
    let spec = null;
    let scale = null;
    let cursor = null;
    let width = 0;

    plot.addEventListener("pointermove", (event) => {
      if (!scale) return;
      const xs = spec.xs;
      const wanted = scale.invert(event.clientX - plot.getBoundingClientRect().left);
      pointAt(xs.length ? xs.reduce((best, x) => (Math.abs(x - wanted) < Math.abs(best - wanted) ? x : best), xs[0]) : null);
    });
    plot.addEventListener("pointerleave", () => pointAt(null));
    new ResizeObserver(() => spec && plot.clientWidth !== width && draw()).observe(plot);
    pointed.charts.add(chart);

    function update(next) {
      spec = next;
      const xs = new Set(spec.series.flatMap((series) => series.points.map((point) => point[0])));
      spec.xs = [...xs].sort((a, b) => a - b);
      replace(title, spec.title);
      replace(about, spec.about);
      plot.setAttribute("aria-label", `${spec.title}: ${spec.about}`);
      card.hidden = !spec.xs.length;
      if (spec.xs.length) draw();
    }

    function draw() {
      width = plot.clientWidth;
      if (!width) return;
      scale = scales(spec, width);
      plot.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
      replace(plot, axes(spec, scale), spec.limit && limitLine(spec, scale), marks(spec, scale));
      cursor = svg("line", {class: "cursor", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom});
      plot.append(cursor);
      point(pointed.x);
    }

    function point(x) {
      if (!scale || !cursor) return;
      cursor.style.display = x === null ? "none" : "";
      if (x !== null) {
        cursor.setAttribute("x1", scale.x(x));
        cursor.setAttribute("x2", scale.x(x));
      }
      const entries = spec.series.map((series) => {
        const at = x === null ? series.points[series.points.length - 1] : series.points.find((found) => found[0] === x);
        const value = at ? (series.format || spec.format || number)(at[1]) : arpo.format.NOTHING;
        return el("span", {class: "entry"}, el("i", {class: `swatch ${series.kind || "line"}`, style: {background: colour(series)}}), series.name, el("b", null, value));
      });
      replace(legend, el("span", {class: "at"}, x === null ? "latest" : `${spec.xName || "step"} ${x}`), entries);
    }
    return chart;
  }

  function pointAt(x) {
    if (x === pointed.x) return;
    pointed.x = x;
    for (const chart of pointed.charts) chart.point(x);
  }

  const colour = (series) => arpo.colours.of(series.colour);

  function scales(spec, width) {
    const bars = spec.series.filter((series) => series.kind === "bar");
    const values = spec.series.filter((series) => series.kind !== "bar" && series.kind !== "told").flatMap((series) => series.points.map((point) => point[1]));
    const totals = new Map();
    for (const series of bars) for (const [x, y] of series.points) totals.set(x, (totals.get(x) || 0) + y);
    values.push(...totals.values());
    const known = values.filter(Number.isFinite);
    let low = spec.zero === false ? Math.min(...known) : Math.min(0, ...known);
    let high = Math.max(spec.top || -Infinity, ...known);
    // A limit is drawn where it is near enough to say something.
    if (spec.limit && spec.limit.value <= 3 * high) high = Math.max(high, spec.limit.value);
    if (!(high > low)) [low, high] = [Math.min(low, 0), Math.max(high, low + (Math.abs(low) || 1))];
    const marks = ticks(low, high, 3);
    high = Math.max(high, marks.at[marks.at.length - 1]);
    const room = high + (high - low) * 0.04;
    const [first, last] = [spec.xs[0], spec.xs[spec.xs.length - 1]];
    const pad = bars.length ? 0.5 : 0;
    const span = Math.max(last - first + 2 * pad, 1);
    const inner = width - MARGIN.left - MARGIN.right;
    const x = (value) => MARGIN.left + ((last === first ? 0.5 : value - first + pad) / span) * inner;
    const y = (value) => HEIGHT - MARGIN.bottom - ((value - low) / (room - low)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
    return {x, y, low, high, room, marks, width, unit: inner / span, invert: (at) => first - pad + ((at - MARGIN.left) / inner) * span};
  }

  function axes(spec, scale) {
    const {xs} = spec;
    const format = spec.format || number;
    const across = ticks(xs[0], xs[xs.length - 1], Math.min(scale.width / 80, xs.length)).at.filter(Number.isInteger);
    return [
      scale.marks.at.map((value) => [
        svg("line", {class: value === 0 ? "base" : "grid", x1: MARGIN.left, x2: scale.width - MARGIN.right, y1: scale.y(value), y2: scale.y(value)}),
        svg("text", {class: "label", x: MARGIN.left - 8, y: scale.y(value) + 3.5, "text-anchor": "end"}, format(value)),
      ]),
      across.map((value) => svg("text", {class: "label", x: scale.x(value), y: HEIGHT - 6, "text-anchor": "middle"}, value)),
    ];
  }

  function limitLine(spec, scale) {
    const {value, name} = spec.limit;
    if (value > scale.room) return null;
    const at = scale.y(value);
    return [
      svg("line", {class: "limit", x1: MARGIN.left, x2: scale.width - MARGIN.right, y1: at, y2: at}),
      svg("text", {class: "label limit", x: scale.width - MARGIN.right, y: at - 4, "text-anchor": "end"}, name),
    ];
  }

  function marks(spec, scale) {
    const floors = new Map();
    return spec.series.map((series) => {
      const points = series.points.filter((point) => Number.isFinite(point[1]));
      if (series.kind === "told") return null; // in the legend alone: it would dwarf the others
      if (series.kind === "bar") return bars(series, points, scale, floors);
      if (series.kind === "dots") {
        return points.map(([x, y]) => svg("circle", {cx: scale.x(x), cy: scale.y(y), r: 3.5, fill: colour(series), class: "dot"}));
      }
      const shown = thinned(points, scale);
      const path = shown.map(([x, y], place) => `${place ? "L" : "M"}${scale.x(x).toFixed(1)} ${scale.y(y).toFixed(1)}`).join("");
      const single = points.length === 1 && svg("circle", {cx: scale.x(points[0][0]), cy: scale.y(points[0][1]), r: 2.5, fill: colour(series)});
      return [svg("path", {d: path, class: "line", stroke: colour(series)}), single];
    });
  }

  function bars(series, points, scale, floors) {
    const width = Math.max(Math.min(scale.unit - (scale.unit > 4 ? 2 : 0), 22), 0.75);
    return points.map(([x, y]) => {
      const floor = floors.get(x) || 0;
      floors.set(x, floor + y);
      const [top, bottom] = [scale.y(floor + y), scale.y(floor)];
      return y > 0 && svg("rect", {x: scale.x(x) - width / 2, y: top, width, height: Math.max(bottom - top, 0.5), fill: colour(series)});
    });
  }

  // Where there are more points than pixels: the lowest and the highest of each pixel.
  function thinned(points, scale) {
    if (points.length <= 2 * scale.width) return points;
    const pixels = new Map();
    for (const point of points) {
      const at = Math.round(scale.x(point[0]));
      const known = pixels.get(at);
      if (!known) pixels.set(at, [point, point]);
      else if (point[1] < known[0][1]) known[0] = point;
      else if (point[1] > known[1][1]) known[1] = point;
    }
    return [...pixels.values()].flatMap(([low, high]) => (low[0] <= high[0] ? [low, high] : [high, low]));
  }

  return create;
})();
