// Trees: the list, the tree as a picture, and the texts of one path.

arpo.trees = (() => {
  const {el, replace} = arpo.dom;
  const {count, counted, duration, number} = arpo.format;
  const MODES = [["entropy", "Entropy", "How unsure the policy was of each token"], ["logprob", "Log-prob", "Log-probability of each token when it was sampled"], ["advantage", "Advantage", "What training was told of each token"], ["version", "Version", "Weights that sampled each token"]];
  const AXES = [["tokens", "Tokens"], ["time", "Time", "When things happened: calls of tools are as long as they took"]];

  function mount(root) {
    const picture = arpo.treeCanvas.create({choose});
    const reader = arpo.treeText.create({choose});
    const list = arpo.treeList.create({});
    const title = el("div", {class: "about"});
    const legend = el("div", {class: "legend"});
    const message = el("p", {class: "empty"});
    const tools = el(
      "div",
      {class: "toolbar"},
      arpo.dom.choice("colour by", MODES, "entropy", (mode) => {
        picture.set({mode});
        explain();
        read();
      }),
      arpo.dom.choice("axis", AXES, "tokens", (axis) => picture.set({axis})),
      arpo.surface.controls(picture.surface, true),
    );
    const stage = el("section", {class: "stage"}, title, tools, legend, picture.surface.box, message);
    root.append(list.root, stage, reader.root);
    let state = null;
    let id = "";
    let loadedId = "";
    let shownRow = null;

    function update(next) {
      state = next;
      picture.shown.limits = (state.run && state.run.limits) || {};
      list.update(state);
      if (!id && list.first()) id = list.first().id;
      const row = state.trees.find((one) => one.id === id) || null;
      list.choose(id);
      // A tree that grew since it was drawn is read again.
      // One that is not listed may be an old one, or one whose events are not read yet.
      if (!row && state.mode === "live" && state.run.read_bytes < state.run.num_bytes) return;
      if (id && (id !== loadedId || JSON.stringify(row) !== JSON.stringify(shownRow))) load(row, id === loadedId);
    }

    function open(wanted) {
      id = wanted;
      if (state) update(state);
    }

    async function load(row, isAgain) {
      const asked = id;
      [loadedId, shownRow] = [id, row];
      if (!isAgain) say("Reading the tree …", row);
      try {
        const doc = await arpo.store.tree(asked);
        if (asked !== id) return;
        message.hidden = true;
        picture.show(doc, {keepsView: isAgain});
        if (!isAgain) picture.set({path: -1});
        describe(doc, row);
        read();
      } catch (error) {
        if (asked !== id) return;
        say(error.message, row);
      }
      explain();
    }

    // In place of the picture.
    function say(text, row) {
      picture.show(null, {});
      reader.show({doc: null});
      describe(null, row);
      message.hidden = false;
      replace(message, text);
    }

    function describe(doc, row) {
      const facts = [];
      if (row) {
        facts.push(row.state === "refused" ? `refused: ${row.reason}` : row.step === null ? row.state : `${row.state} in step ${row.step}`);
        facts.push(`begun with version ${row.version}`);
        facts.push(`${counted(row.paths, "path")}, ${counted(row.forks, "fork")} of ${counted(row.wanted, "wanted", "wanted")}`);
        facts.push(`${counted(row.tokens, "token")} sampled, ${counted(row.calls, "call")} (${count(row.executed)} executed)`);
        if (row.finished_s !== null) facts.push(`grown in ${duration(row.finished_s - row.admitted_s)}`);
      }
      if (doc) facts.push(`${counted(doc.nodes.size.length, "node")}`);
      const note = [doc && doc.note, state.textsNote].filter(Boolean).join("; ");
      replace(
        title,
        el("h2", null, id),
        doc && el("p", {class: "question"}, doc.question, doc.ground_truth && el("span", null, " → ", el("b", null, doc.ground_truth))),
        el("p", {class: "fine"}, facts.join(" · ")),
        note && el("p", {class: "fine"}, note),
      );
    }

    function explain() {
      const {mode} = picture.shown;
      const names = {entropy: "nats", logprob: "log-probability", advantage: "advantage", version: "weights by version, seven colours in turn"};
      const parts = arpo.colours.legend(mode);
      const bound = (part) => (part.from === null ? `< ${number(part.to)}` : part.to === null ? `${number(part.from)} …` : number(part.from));
      replace(
        legend,
        el("span", null, names[mode]),
        parts && el("span", {class: "ramp"}, parts.map((part) => el("i", {style: {background: part.colour, color: arpo.colours.inkOn(part.colour)}}, bound(part)))),
        el("span", {class: "entry"}, el("i", {class: "swatch observed"}), "tool result"),
        el("span", {class: "entry"}, el("i", {class: "spot granted"}), "fork granted"),
        el("span", {class: "entry"}, el("i", {class: "spot"}), "wanted, not granted"),
      );
    }

    function choose(path, node) {
      picture.set({path});
      read(node);
    }

    function read(node) {
      const {doc, layout, path, mode, limits} = picture.shown;
      reader.show({doc, layout, path, mode, limits}, node);
    }

    return {update, show: open, repaint: () => {
      explain();
      read();
      picture.surface.redraw();
    }};
  }

  return {mount};
})();
