// What the picture of a tree says of tokens and nodes: the colour of each value, and the calls behind a result.

arpo.treeValues = (() => {
  const {duration} = arpo.format;

  // `shown` is the picture's own {doc, layout, mode}; what is worked out of them is kept until `clear`.
  function create(shown) {
    const kept = new Map();

    function toolOf(node) {
      const calls = callsAt(node);
      if (!calls.length) return "result";
      return calls.map((call) => `${call.name} ${call.t1 === null ? "…" : duration(call.t1 - call.t0)}`).join(", ");
    }

    // Calls whose results a node shows: those of its path made where it begins.
    function callsAt(node) {
      if (!kept.has("calls")) {
        const found = new Map();
        for (const call of shown.doc.calls) {
          const key = `${call.path}/${call.length}`;
          if (!found.has(key)) found.set(key, []);
          found.get(key).push(call);
        }
        kept.set("calls", found);
      }
      return kept.get("calls").get(`${shown.doc.nodes.path[node]}/${shown.doc.nodes.start[node]}`) || [];
    }

    function tokenLevel(token) {
      const {tokens} = shown.doc;
      return arpo.colours.level(shown.mode, tokens[shown.mode === "logprob" ? "logprob" : shown.mode][token]);
    }

    function meanLevel(node) {
      if (!kept.has(shown.mode)) kept.set(shown.mode, new Int8Array(shown.doc.nodes.size.length).fill(-2));
      const known = kept.get(shown.mode);
      if (known[node] === -2) known[node] = arpo.colours.level(shown.mode, meanOf(node));
      return known[node];
    }

    function meanOf(node) {
      const {doc, layout} = shown;
      if (shown.mode === "advantage") return doc.nodes.advantage[node];
      const values = doc.tokens[shown.mode];
      const [first, size] = [layout.firstToken[node], doc.nodes.size[node]];
      if (shown.mode === "version") return values[first];
      let sum = 0;
      for (let at = first; at < first + size; at++) sum += values[at];
      return size ? sum / size : null;
    }

    return {tokenLevel, meanLevel, toolOf, clear: () => kept.clear()};
  }

  return {create};
})();
