// The list of trees: as many rows in the page as can be seen, however many there are.

arpo.treeList = (() => {
  const {el, replace} = arpo.dom;
  const {count, number} = arpo.format;
  const ROW = 52;
  const KINDS = [["all", "All"], ["mixed", "Mixed", "Trees whose trajectories were scored differently"], ["forked", "Forked"], ["refused", "Refused"], ["failed", "Failed", "With a path that the infrastructure failed"]];
  const KEEPS = {
    all: () => true,
    mixed: (row) => row.scored > 1 && row.score_min !== row.score_max,
    forked: (row) => row.forks > 0,
    refused: (row) => row.state === "refused",
    failed: (row) => row.failed > 0,
  };

  function create({open}) {
    const search = el("input", {type: "search", placeholder: "Find by name or question", "aria-label": "find a tree", oninput: refresh});
    const kinds = arpo.dom.choice("which trees", KINDS, "all", (kind) => {
      wanted = kind;
      refresh();
    });
    const tail = el("div", {class: "window"});
    const scroller = el("div", {class: "scroller", tabindex: "0"}, tail);
    const foot = el("p", {class: "fine"});
    const root = el("nav", {class: "list", "aria-label": "trees"}, search, kinds, scroller, foot);
    let wanted = "all";
    let state = null;
    let rows = [];
    let chosen = "";

    scroller.addEventListener("scroll", draw, {passive: true});
    new ResizeObserver(draw).observe(scroller);

    function update(next) {
      state = next;
      refresh();
    }

    function refresh() {
      if (!state) return;
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows = state.trees
        .filter((row) => KEEPS[wanted](row) && words.every((word) => row.id.toLowerCase().includes(word) || row.question.toLowerCase().includes(word)))
        .sort((a, b) => hasText(b) - hasText(a) || b.index - a.index);
      const listed = state.trees.length;
      const parts = [`${count(rows.length)} of ${count(listed)}, newest first`];
      if (state.run && state.run.num_trees > listed) parts.push(`of ${count(state.run.num_trees)} trees the last ${count(listed)} are listed`);
      if (state.documents) parts.push(`the texts of ${count(state.documents.size)} are in this file, and those stand above`);
      replace(foot, `${parts.join("; ")}.`);
      draw();
    }

    function draw() {
      tail.style.height = `${rows.length * ROW}px`;
      const first = Math.max(Math.floor(scroller.scrollTop / ROW) - 2, 0);
      const last = Math.min(Math.ceil((scroller.scrollTop + scroller.clientHeight) / ROW) + 2, rows.length);
      replace(tail, rows.slice(first, last).map((row, place) => item(row, first + place)));
    }

    function item(row, place) {
      const outcome = row.scored ? `${row.correct}/${row.scored} right` : row.state;
      const where = row.step === null ? row.state : `step ${row.step}`;
      return el(
        "a",
        {href: `#trees/${encodeURIComponent(row.id)}`, class: `item ${row.id === chosen ? "chosen" : ""} ${hasText(row) ? "" : "bare"}`, style: {top: `${place * ROW}px`}, title: row.question},
        el("span", {class: "line"}, el("b", null, row.id), el("span", {class: "where"}, where)),
        el("span", {class: "line"}, outcomes(row), el("span", null, outcome), row.forks > 0 && el("span", null, arpo.format.counted(row.forks, "fork")), el("span", {class: "where"}, row.scored ? number(row.score_sum / row.scored) : "")),
      );
    }

    const hasText = (row) => !state.documents || state.documents.has(row.id);

    // The share of right ones, of wrong ones, and of those that are not scored.
    function outcomes(row) {
      const all = Math.max(row.paths, row.scored, 1);
      const part = (name, amount) => amount > 0 && el("i", {class: name, style: {flexGrow: String(amount / all)}});
      return el("span", {class: "outcomes"}, part("good", row.correct), part("bad", row.scored - row.correct), part("open", all - row.scored));
    }

    function choose(id) {
      chosen = id;
      draw();
    }

    // What is worth a first look: a tree with forks and different rewards, or what there is.
    function first() {
      const shown = rows.filter(hasText);
      return shown.find((row) => KEEPS.mixed(row) && row.forks && row.finished_s !== null) || shown.find((row) => row.finished_s !== null) || shown[0];
    }

    return {root, update, choose, first};
  }

  return {create};
})();
