// The layout of a tree: a row for each path, from the tokens (or the time) at which it left another one.

arpo.treeLayout = (() => {
  // Gives nodes an x-interval and a row, and forks a line from row to row. `axis` is "tokens" or "time".
  function layOut(doc, axis) {
    const {parent, kind, start, size, path, t0, t1} = doc.nodes;
    const count = parent.length;
    const children = Array.from({length: count}, () => []);
    for (let node = 1; node < count; node++) children[parent[node]].push(node);
    const rowOf = rows(doc, children);
    const origin = axis === "time" ? Math.min(...doc.paths.map((one) => one.t0)) : size[0] || 0;
    const left = new Float64Array(count);
    const right = new Float64Array(count);
    const row = new Int32Array(count);
    const firstToken = new Int32Array(count);
    let tokens = 0;
    let width = 0;
    for (let node = 1; node < count; node++) {
      left[node] = (axis === "time" ? t0[node] : start[node]) - origin;
      right[node] = axis === "time" ? t1[node] - origin : left[node] + size[node];
      row[node] = rowOf[path[node]];
      firstToken[node] = tokens;
      if (kind[node] === "s") tokens += size[node];
      width = Math.max(width, right[node]);
    }
    const numRows = doc.paths.length;
    const byRow = Array.from({length: numRows}, () => []);
    for (let node = 1; node < count; node++) byRow[row[node]].push(node);
    const ends = new Float64Array(numRows);
    for (let at = 0; at < numRows; at++) for (const node of byRow[at]) ends[at] = Math.max(ends[at], right[node]);
    const pathOfRow = new Array(numRows);
    doc.paths.forEach((one) => (pathOfRow[rowOf[one.number]] = one));
    return {axis, origin, children, left, right, row, firstToken, byRow, ends, pathOfRow, rowOf, numRows, width: Math.max(width, axis === "time" ? 1e-6 : 1), drops: drops(doc, {left, row}), looks: looks(doc, {byRow, left, right, rowOf}, axis)};
  }

  // Paths from top to bottom: depth first, the path that wrote a node before those that left it.
  function rows(doc, children) {
    const rowOf = new Array(doc.paths.length).fill(-1);
    const ending = new Map();
    for (const one of doc.paths) {
      if (!ending.has(one.leaf)) ending.set(one.leaf, []);
      ending.get(one.leaf).push(one.number);
    }
    let next = 0;
    const stack = [0];
    while (stack.length) {
      const node = stack.pop();
      if (node) for (const number of ending.get(node) || []) rowOf[number] = next++;
      for (let place = children[node].length - 1; place >= 0; place--) stack.push(children[node][place]);
    }
    // Those that have not said anything yet.
    for (const number of ending.get(0) || []) rowOf[number] = next++;
    return rowOf;
  }

  // Lines down from where a branch left: by their upper ends, so that those in sight are found.
  function drops(doc, {left, row}) {
    const {parent} = doc.nodes;
    const found = [];
    for (let node = 1; node < parent.length; node++) {
      const above = parent[node];
      if (above > 0 && row[above] !== row[node]) found.push({x: left[node], top: Math.min(row[above], row[node]), bottom: Math.max(row[above], row[node])});
    }
    return found.sort((a, b) => a.top - b.top);
  }

  // Where the monitor spoke, at the row of whoever wrote the tokens there.
  function looks(doc, {byRow, left, right, rowOf}, axis) {
    const {start, size} = doc.nodes;
    const found = [];
    for (const look of doc.looks) {
      const nodes = chain(doc, doc.paths[look.path].leaf);
      const node = nodes.find((one) => start[one] < look.length && look.length <= start[one] + size[one]);
      if (node === undefined) continue;
      const share = (look.length - start[node]) / Math.max(size[node], 1);
      const x = axis === "time" ? left[node] + share * (right[node] - left[node]) : left[node] + look.length - start[node];
      found.push({look, node, x, row: rowOf[doc.nodes.path[node]]});
    }
    return found.sort((a, b) => a.row - b.row);
  }

  // The nodes from the first one behind the prompt to `leaf`.
  function chain(doc, leaf) {
    const found = [];
    for (let node = leaf; node > 0; node = doc.nodes.parent[node]) found.push(node);
    return found.reverse();
  }

  // Why a branch was granted, or was not, in one sentence or two.
  function reason(look, limits) {
    const {number, signed} = arpo.format;
    const kind = (limits.branching || {}).kind || "the policy";
    const seen = `Behind result ${look.observation} the next tokens had ${number(look.entropy)} nats, ${signed(look.entropy - look.baseline)} against the start of the path.`;
    const tau = (limits.branching || {}).tau;
    const against = tau !== undefined ? ` against a threshold of ${number(tau)}` : ` and a coin of ${number(look.coin)}`;
    const said = ` ${kind} scored ${number(look.score)}${against}`;
    const ranked = look.place === null ? "" : ` It was proposal ${look.place} of its cohort.`;
    const fates = {
      granted: `${said}, wanted a branch, and got it: ${look.children.map((child) => `path ${child}`).join(", ")}.`,
      lapsed: `${said} and wanted a branch; when its turn came there was no place left.`,
      waiting: `${said} and wanted a branch; none was granted: all ${limits.size || ""} places were taken, or others came first.`,
      declined: `${said}: no branch wanted.`,
    };
    return seen + fates[look.fate] + ranked;
  }

  return {layOut, chain, reason};
})();
