// Tools: how fast each answers, how often nothing had to run, and what went wrong.

arpo.tools = (() => {
  const {el, svg, replace} = arpo.dom;
  const {count, duration, percent} = arpo.format;
  const OUTCOMES = [["executed", "blue"], ["cached", "green"], ["shared", "gold"], ["refused", "rust"], ["malformed", "violet"]];
  const open = (call) => `#trees/${encodeURIComponent(call.prompt_id)}`;

  function mount(root) {
    return {
      update(state) {
        const {tools} = state;
        if (!tools || !tools.tools.length) return replace(root, el("p", {class: "empty"}, "No tool was called yet."));
        return replace(
          root,
          el("div", {class: "sheet"}, table(tools)),
          el("p", {class: "fine legend"}, OUTCOMES.map(([name, colour]) => el("span", {class: "entry"}, el("i", {class: "swatch bar", style: {background: arpo.colours.of(colour)}}), name)), el("span", null, "A hit is a call that a cache or an equal call answered; latencies are those of executed calls, to the width of a bar of the histogram.")),
          el("div", {class: "halves"}, calls("Latest failures", "Whatever was no success: the policy read the text.", tools.failures, "Every call succeeded."), calls("Slowest calls", "Executed ones.", tools.slow, "No call was executed.")),
        );
      },
    };
  }

  function table(tools) {
    const names = ["tool", "calls", "what became of them", "hits", "errors", "timeouts", "median", "95 %", "99 %", "slowest", "latency of executed calls"];
    return el("table", null, el("thead", null, el("tr", null, names.map((name) => el("th", null, name)))), el("tbody", null, tools.tools.map((row) => line(row, tools))));
  }

  function line(row, tools) {
    const answered = row.executed + row.cached + row.shared;
    const quantile = (share) => duration(latency(row, tools, share));
    const failing = (number) => el("td", {class: number ? "bad" : "none"}, count(number));
    return el(
      "tr",
      null,
      el("td", null, el("b", null, row.name)),
      el("td", null, count(row.requested)),
      el("td", {class: "wide"}, outcomes(row)),
      el("td", null, percent(answered ? (row.cached + row.shared) / answered : NaN)),
      failing(row.errors),
      failing(row.timeouts),
      el("td", null, quantile(0.5)),
      el("td", null, quantile(0.95)),
      el("td", null, quantile(0.99)),
      el("td", null, row.executed ? duration(row.slowest_s) : arpo.format.NOTHING),
      el("td", {class: "wide"}, histogram(row, tools)),
    );
  }

  function outcomes(row) {
    const all = OUTCOMES.reduce((sum, [name]) => sum + row[name], 0);
    const title = OUTCOMES.filter(([name]) => row[name]).map(([name]) => `${name} ${count(row[name])}`).join(", ");
    return el("div", {class: "strip", title}, OUTCOMES.filter(([name]) => row[name]).map(([name, colour]) => el("i", {style: {flexGrow: String(row[name] / all), background: arpo.colours.of(colour)}})));
  }

  // The upper end of the bin in which a share of the calls is reached, and no more than the slowest took.
  function latency(row, {first_s: first, bins_a_decade: decade}, share) {
    const all = row.histogram.reduce((sum, number) => sum + number, 0);
    if (!all) return NaN;
    let seen = 0;
    const bin = row.histogram.findIndex((number) => (seen += number) >= share * all);
    return Math.min(first * 10 ** ((bin + 1) / decade), row.slowest_s);
  }

  function histogram(row, tools) {
    const used = row.histogram.map((number, bin) => (number ? bin : -1)).filter((bin) => bin >= 0);
    if (!used.length) return null;
    const most = Math.max(...row.histogram);
    const width = 240;
    const each = width / row.histogram.length;
    const at = (bin) => tools.first_s * 10 ** (bin / tools.bins_a_decade);
    return svg(
      "svg",
      {viewBox: `0 0 ${width} 40`, class: "histogram", role: "img", "aria-label": "histogram of latencies"},
      row.histogram.map((number, bin) => number > 0 && svg("rect", {x: bin * each, width: each - 1, y: 28 - Math.max((number / most) * 26, 1), height: Math.max((number / most) * 26, 1), fill: arpo.colours.of("blue")}, svg("title", null, `${duration(at(bin))} to ${duration(at(bin + 1))}: ${count(number)}`))),
      [1, 2, 3, 4, 5, 6].map((power) => svg("text", {x: power * each * tools.bins_a_decade, y: 38, class: "label", "text-anchor": "middle"}, mark(tools.first_s * 10 ** power))),
    );
  }

  const mark = (s) => (s < 0.05 ? `${Math.round(s * 1000)} ms` : `${s < 0.5 ? s.toFixed(1) : Math.round(s)} s`);

  function calls(title, note, rows, nothing) {
    const body = rows.length
      ? el("table", {class: "calls"}, el("tbody", null, rows.map((call) => el("tr", null, el("td", null, el("b", null, call.tool), el("span", {class: call.status === "ok" ? "none" : "bad"}, call.status)), el("td", null, duration(call.duration_s)), el("td", null, el("a", {href: open(call)}, `${call.prompt_id}, path ${call.path}`)), el("td", {class: "said", title: call.text}, call.text)))))
      : el("p", {class: "empty"}, nothing);
    return el("section", null, el("h3", null, title), el("p", {class: "about"}, note), body);
  }

  return {mount};
})();
