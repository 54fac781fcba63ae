// Timeline: who waits for whom, summed up and drawn.

arpo.waits = (() => {
  const {duration} = arpo.format;

  // What the last path of the group that ended a wait had spent its time on: where the wait came from.
  function blocker(state, step) {
    const groups = state.trees.filter((row) => row.step === step && row.finished_s !== null);
    return groups.reduce((last, row) => (!last || row.finished_s > last.finished_s ? row : last), null);
  }

  function of(state, step) {
    const row = blocker(state, step);
    if (!row || !row.last) return "";
    const {path, sampling_s: sampling, tool_s: tool, scoring_s: scoring} = row.last;
    return `for ${row.id}, whose path ${path} ended last: sampling ${duration(sampling)}, tools ${duration(tool)}, scoring ${duration(scoring)}`;
  }

  // Seconds the learner waited, by what the paths it waited for were doing.
  function causes(state) {
    const found = {sampling: 0, tool: 0, scoring: 0, unknown: 0};
    for (const [step, what, start, end] of state.learner) {
      if (what !== "waiting") continue;
      const row = blocker(state, step);
      const spent = row && row.last ? row.last.sampling_s + row.last.tool_s + row.last.scoring_s : 0;
      if (!spent) found.unknown += end - start;
      else for (const name of ["sampling", "tool", "scoring"]) found[name] += ((end - start) * row.last[`${name}_s`]) / spent;
    }
    return found;
  }

  return {of, causes, blocker};
})();

arpo.timeline = (() => {
  const {el, replace} = arpo.dom;
  const {duration, percent} = arpo.format;

  function mount(root) {
    const picture = arpo.timelineCanvas.create({open: (id) => (location.hash = `trees/${encodeURIComponent(id)}`)});
    const sentences = el("div", {class: "waits"});
    const legend = el("div", {class: "legend"});
    const all = el("button", {type: "button", title: "From the very beginning, cold start included", onclick: () => picture.surface.zoom(1e-9, 1, 0, 0)}, "Whole run");
    root.append(sentences, el("div", {class: "toolbar"}, legend, all, arpo.surface.controls(picture.surface, false)), picture.surface.box);
    return {
      update(state) {
        replace(sentences, summary(state));
        explain();
        picture.show(state);
      },
      repaint() {
        explain();
        picture.surface.redraw();
      },
    };

    function explain() {
      const entry = (name, colour) => el("span", {class: "entry"}, el("i", {class: "swatch bar", style: {background: arpo.colours.of(colour)}}), name);
      replace(
        legend,
        entry("waiting, buffered", "gold"),
        entry("stepping, training", "blue"),
        entry("publishing, scoring", "green"),
        entry("sampling, growing, busy", "violet"),
        entry("in tools", "rust"),
      );
    }
  }

  function summary(state) {
    const spent = {waiting: 0, stepping: 0, publishing: 0};
    for (const [, what, start, end] of state.learner) spent[what] += end - start;
    const loop = spent.waiting + spent.stepping + spent.publishing;
    const cards = [];
    if (loop) {
      cards.push(card("Learner", `waits ${percent(spent.waiting / loop)} of its loop`, [["waiting for batches", spent.waiting, "gold"], ["stepping", spent.stepping, "blue"], ["publishing", spent.publishing, "green"]]));
      const cause = arpo.waits.causes(state);
      if (spent.waiting) cards.push(card("It waits for groups whose last path was", "split as that path's own time was", [["sampling", cause.sampling, "violet"], ["in tools", cause.tool, "rust"], ["being scored", cause.scoring, "green"], ["not known", cause.unknown, "faint"]]));
    }
    const sum = (name) => state.trees.reduce((total, row) => total + row[name], 0);
    if (state.trees.length) cards.push(card("Paths", "what they spent their time on", [["sampling", sum("sampling_s"), "violet"], ["waiting for tools", sum("tool_s"), "rust"]]));
    const finished = state.trees.filter((row) => row.finished_s !== null);
    if (finished.length) {
      const grown = finished.reduce((total, row) => total + row.finished_s - row.admitted_s, 0);
      const held = state.trees.reduce((total, row) => total + (row.taken_s === null ? 0 : row.taken_s - row.finished_s), 0);
      const trained = state.trees.reduce((total, row) => total + (row.taken_s === null || row.released_s === null ? 0 : row.released_s - row.taken_s), 0);
      cards.push(card("Groups", "how long a slot is held for what", [["growing", grown, "violet"], ["waiting for the learner", held, "gold"], ["training and publishing", trained, "blue"]]));
    }
    return cards.length ? cards : el("p", {class: "empty"}, "Nothing to wait for yet: no prompt was admitted.");
  }

  function card(title, note, parts) {
    const known = parts.filter((part) => part[1] > 0);
    const all = known.reduce((total, part) => total + part[1], 0);
    return el(
      "div",
      {class: "wait"},
      el("h3", null, title),
      el("p", {class: "about"}, note),
      el("div", {class: "strip"}, known.map(([, seconds, colour]) => el("i", {style: {flexGrow: String(seconds / all), background: arpo.colours.of(colour)}}))),
      el("ul", null, known.map(([name, seconds, colour]) => el("li", null, el("i", {class: "swatch bar", style: {background: arpo.colours.of(colour)}}), el("span", null, name), el("b", null, duration(seconds)), el("span", {class: "share"}, percent(seconds / all))))),
    );
  }

  return {mount};
})();
