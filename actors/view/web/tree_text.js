// One path read from its beginning: tokens coloured by what the canvas shows, tool results, and why it was forked.

arpo.treeText = (() => {
  const {el, replace} = arpo.dom;
  const {counted, duration, number, signed} = arpo.format;

  function create({choose}) {
    const root = el("aside", {class: "reader", "aria-label": "texts of a path"});
    let shown = {doc: null, path: -1};

    root.addEventListener("pointermove", (event) => {
      const token = event.target.dataset && event.target.dataset.token;
      if (token === undefined) return arpo.dom.tip(event, null);
      const {text, entropy, logprob, version} = shown.doc.tokens;
      return arpo.dom.tip(event, [
        JSON.stringify(text[token]),
        `entropy ${number(entropy[token])} nats`,
        `log-probability ${number(logprob[token])} (${arpo.format.percent(Math.exp(logprob[token]))})`,
        `sampled by version ${version[token]}`,
      ]);
    });
    root.addEventListener("pointerleave", (event) => arpo.dom.tip(event, null));

    // `about` says {doc, layout, path, mode, limits}; `node` is brought into sight.
    function show(about, node) {
      shown = about;
      const {doc, path} = about;
      if (!doc || !doc.paths[path]) return replace(root, el("p", {class: "empty"}, doc ? "Choose a path to read it." : ""));
      replace(root, head(about), el("div", {class: "blocks"}, promptBlock(doc), blocks(about)));
      const wanted = node === undefined ? null : root.querySelector(`[data-node="${node}"]`);
      if (wanted) wanted.scrollIntoView({block: "center"});
      else root.scrollTop = 0;
      return undefined;
    }

    function head({doc, path}) {
      const one = doc.paths[path];
      const worth = one.reward === null ? one.status : `reward ${number(one.reward)}`;
      const from = one.from < 0 ? (one.is_supplement ? "begun to fill up the tree" : "begun at the prompt") : ["branched off ", link(one.from, doc)];
      const parts = Object.entries(one.components).map(([name, value]) => `${name} ${number(value)}`).join(", ");
      return el(
        "header",
        null,
        el("h3", null, `Path ${path}`, el("span", {class: `badge ${one.is_correct === null ? "" : one.is_correct ? "good" : "bad"}`}, worth)),
        el("p", {class: "fine"}, from, one.t1 === null ? ", still growing" : `, ${one.status} after ${duration(one.t1 - one.t0)}`, one.advantage === null ? "" : `, advantage ${signed(one.advantage)}`),
        (one.reason || parts || one.detail) && el("p", {class: "fine"}, [one.detail, one.reason, parts].filter(Boolean).join(" · ")),
      );
    }

    const link = (path, doc) => el("button", {type: "button", class: "link", onclick: () => choose(path, doc.paths[path].leaf)}, `path ${path}`);

    const promptBlock = (doc) => el("details", {class: "block prompt"}, el("summary", null, `Prompt, ${counted(doc.nodes.size[0], "token")}`), el("div", {class: "text"}, doc.prompt));

    function blocks({doc, layout, path, mode, limits}) {
      const looks = new Map();
      for (const {look, node} of layout.looks) {
        if (!looks.has(node)) looks.set(node, []);
        looks.get(node).push(look);
      }
      return arpo.treeLayout.chain(doc, doc.paths[path].leaf).map((node) => {
        const isObserved = doc.nodes.kind[node] === "o";
        const body = isObserved ? doc.nodes.text[node] : tokens(doc, layout, node, mode, looks.get(node) || [], limits);
        return el("div", {class: `block ${isObserved ? "observed" : "sampled"}`, "data-node": node}, caption(doc, node, isObserved), el("div", {class: "text"}, body), isObserved && (looks.get(node) || []).map((look) => chip(look, limits, doc)));
      });
    }

    function caption(doc, node, isObserved) {
      const {path, size, t0, t1, advantage} = doc.nodes;
      const took = duration(t1[node] - t0[node]);
      if (isObserved) {
        const calls = doc.calls.filter((call) => call.path === path[node] && call.length === doc.nodes.start[node]);
        return el("div", {class: "caption"}, calls.length ? calls.map((call) => el("span", {title: call.arguments}, el("b", null, call.name), ` ${call.t1 === null ? "running" : duration(call.t1 - call.t0)}`, call.outcome && call.outcome !== "executed" ? `, ${call.outcome}` : "", call.status !== "ok" && call.t1 !== null ? `, ${call.status}` : "")) : el("b", null, "tool result"), el("span", null, counted(size[node], "token")));
      }
      const first = doc.tokens.version[tokenOf(doc, node)];
      return el("div", {class: "caption"}, el("b", null, `path ${path[node]}`), el("span", null, `${counted(size[node], "token")} in ${took}`), el("span", null, `version ${first}`), advantage[node] !== null && el("span", null, `advantage ${signed(advantage[node])}`));
    }

    const tokenOf = (doc, node) => shown.layout.firstToken[node];

    // Neighbouring tokens are elements of their own: each has its colour and its numbers.
    function tokens(doc, layout, node, mode, looks, limits) {
      const first = layout.firstToken[node];
      const size = doc.nodes.size[node];
      const column = mode === "advantage" ? null : doc.tokens[mode];
      const flat = mode === "advantage" ? arpo.colours.level(mode, doc.nodes.advantage[node]) : 0;
      const ramp = arpo.colours.ramp(mode);
      const found = [];
      const chips = new Map();
      for (const look of looks) {
        const at = look.length - doc.nodes.start[node];
        chips.set(at, [...(chips.get(at) || []), look]);
      }
      for (let place = 0; place < size; place++) {
        const level = column ? arpo.colours.level(mode, column[first + place]) : flat;
        const colour = level < 1 && mode !== "advantage" && mode !== "version" ? null : ramp[level];
        const style = colour ? {background: colour, color: arpo.colours.inkOn(colour)} : {};
        found.push(el("i", {style, "data-token": first + place}, doc.tokens.text[first + place]));
        for (const look of chips.get(place + 1) || []) found.push(chip(look, limits, doc));
      }
      return found;
    }

    function chip(look, limits, doc) {
      const words = {granted: "forked", lapsed: "fork lapsed", waiting: "fork wanted", declined: "no fork"}[look.fate];
      return el(
        "details",
        {class: `fork ${look.fate}`},
        el("summary", null, `${words} · ${number(look.entropy)} nats`),
        el("div", null, arpo.treeLayout.reason(look, limits), look.children.length > 0 && [" Read ", look.children.map((child, place) => [place ? ", " : "", link(child, doc)]), "."]),
      );
    }

    return {root, show};
  }

  return {create};
})();
