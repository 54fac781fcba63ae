// The tree drawn: only rows and tokens in sight, and no finer than pixels are.

arpo.treeCanvas = (() => {
  const {count, duration, number, signed, clock, ticks, timeTicks} = arpo.format;
  const MODES = ["entropy", "logprob", "advantage", "version"];
  const AXIS = 22;
  const GUTTER = 162;
  const MAX_ROW = 26;
  const WORDS = 11.5;
  const THIN = 1.5; // pixels of a row in which single tokens are no longer told apart

  // `choose(path, node)` is called when somebody points at one and presses.
  function create({choose}) {
    const shown = {doc: null, layout: null, mode: "entropy", axis: "tokens", path: -1, limits: {}};
    const values = arpo.treeValues.create(shown);
    const surface = arpo.surface.create({label: "the tree: a row for each path, tokens from left to right", zoomsY: true, draw, hover, press, fitted, limits, key});

    function show(doc, {keepsView}) {
      shown.doc = doc;
      shown.layout = doc && arpo.treeLayout.layOut(doc, shown.axis);
      values.clear();
      if (keepsView && !surface.isFitted) surface.redraw();
      else surface.fit();
    }

    function set(changes) {
      const isNewAxis = changes.axis && changes.axis !== shown.axis;
      Object.assign(shown, changes);
      if (isNewAxis && shown.doc) {
        shown.layout = arpo.treeLayout.layOut(shown.doc, shown.axis);
        surface.fit();
      }
      surface.redraw();
    }

    function fitted(size) {
      const {layout} = shown;
      if (!layout) return {};
      const scaleX = (size.width - GUTTER - 20) / layout.width;
      const scaleY = Math.min(Math.max((size.height - AXIS - 12) / layout.numRows, 0.02), MAX_ROW);
      return {scaleX, scaleY, left: 10, top: AXIS + 4};
    }

    function limits(size) {
      const {layout} = shown;
      const {scaleX, scaleY} = fitted(size);
      return {width: layout ? layout.width : 1, height: layout ? layout.numRows : 1, minX: scaleX / 1.5, maxX: shown.axis === "time" ? 1e6 : 90, minY: Math.min(scaleY, MAX_ROW), maxY: MAX_ROW, padLeft: 10, padRight: GUTTER, padTop: AXIS + 4, padBottom: 8};
    }

    // -- drawing --------------------------------------------------------------------------------------------------

    function draw(context, size, view) {
      const {doc, layout} = shown;
      if (!doc || !layout) return;
      const palette = arpo.colours.ramp(shown.mode);
      const look = {
        context, size, view, palette,
        rule: arpo.colours.of("rule"), faint: arpo.colours.of("faint"), muted: arpo.colours.of("muted"), ink: arpo.colours.of("ink"),
        observed: arpo.colours.of("observed"), accent: arpo.colours.of("blue"), panel: arpo.colours.of("panel"),
        x: (value) => view.left + value * view.scaleX,
        first: Math.max(Math.floor((AXIS - view.top) / view.scaleY), 0),
        last: Math.min(Math.ceil((size.height - view.top) / view.scaleY), layout.numRows - 1),
        bar: Math.max(Math.min(view.scaleY - (view.scaleY > 5 ? 3 : view.scaleY > 2.5 ? 1 : 0), 18), 1),
      };
      context.save();
      context.beginPath();
      context.rect(0, AXIS, size.width - (view.scaleY >= WORDS ? GUTTER - 8 : 0), size.height);
      context.clip();
      drawChosen(look);
      drawDrops(look);
      // Rows thinner than a pixel: as many as there are pixels.
      const stride = Math.max(1, Math.floor(1 / view.scaleY));
      for (let row = look.first - (look.first % stride); row <= look.last; row += stride) drawRow(look, row);
      drawLooks(look);
      context.restore();
      if (view.scaleY >= WORDS) for (let row = look.first; row <= look.last; row++) drawOutcome(look, row);
      else drawOutcomeStrip(look, stride);
      drawAxis(look);
    }

    const middle = (look, row) => look.view.top + (row + 0.5) * look.view.scaleY;

    function drawRow(look, row) {
      const {doc, layout} = shown;
      const y = middle(look, row) - look.bar / 2;
      for (const node of layout.byRow[row]) {
        const [left, right] = [look.x(layout.left[node]), look.x(layout.right[node])];
        if (right < 0 || left > look.size.width) continue;
        if (doc.nodes.kind[node] === "o") drawObserved(look, node, left, right, y);
        else if (shown.mode === "advantage" || look.view.scaleY < THIN || right - left < 1.5 * doc.nodes.size[node]) {
          look.context.fillStyle = colourOf(look, values.meanLevel(node));
          look.context.fillRect(left, y, Math.max(right - left, 0.75), look.bar);
          if (shown.mode === "advantage") drawTokens(look, node, left, right, y, true);
        } else drawTokens(look, node, left, right, y, false);
      }
    }

    function drawObserved(look, node, left, right, y) {
      const {context} = look;
      context.fillStyle = look.observed;
      const thin = Math.min(look.bar, 4);
      if (look.bar < 12 || right - left < 40) {
        context.fillRect(left, y + (look.bar - thin) / 2, Math.max(right - left, 0.75), thin);
        return;
      }
      const inset = look.bar >= 15 ? 2 : 0;
      context.fillRect(left, y + inset, right - left, look.bar - 2 * inset);
      label(look, values.toolOf(node), left + 5, right - 4, y, look.muted);
    }

    function drawTokens(look, node, left, right, y, isInked) {
      const {context} = look;
      const {doc, layout} = shown;
      const each = (right - left) / doc.nodes.size[node];
      const from = Math.max(Math.floor(-left / each), 0);
      const to = Math.min(Math.ceil((look.size.width - left) / each), doc.nodes.size[node]);
      const first = layout.firstToken[node];
      const gap = each > 8 ? 1 : 0;
      let run = from;
      for (let at = from; at < to && !isInked; at++) {
        const level = values.tokenLevel(first + at);
        if (at + 1 < to && !gap && values.tokenLevel(first + at + 1) === level) continue;
        context.fillStyle = colourOf(look, level);
        context.fillRect(left + run * each, y, Math.max((at + 1 - run) * each - gap, 0.75), look.bar);
        run = at + 1;
      }
      if (each < 24 || look.bar < 12) return;
      const flat = isInked ? arpo.colours.inkOn(colourOf(look, values.meanLevel(node))) : null;
      for (let at = from; at < to; at++) {
        const ink = flat || arpo.colours.inkOn(colourOf(look, values.tokenLevel(first + at)));
        label(look, doc.tokens.text[first + at].trim(), left + at * each + 3, left + (at + 1) * each - 2, y, ink);
      }
    }

    // As much of a text as there is room for.
    function label(look, text, left, right, y, ink) {
      if (right - left < 8 || !text) return;
      const {context} = look;
      context.font = "11px system-ui, sans-serif";
      const room = Math.floor((Math.min(right, look.size.width) - left) / 5.9);
      context.fillStyle = ink;
      context.textBaseline = "middle";
      context.fillText(text.length <= room ? text : `${text.slice(0, Math.max(room - 1, 1))}…`, left, y + look.bar / 2 + 0.5, right - left);
    }

    function drawDrops(look) {
      const {context, size} = look;
      context.strokeStyle = look.faint;
      context.lineWidth = look.view.scaleY > 4 ? 1.25 : 0.5;
      context.beginPath();
      for (const drop of shown.layout.drops) {
        if (drop.top > look.last) break;
        const x = look.x(drop.x);
        if (drop.bottom < look.first || x < 0 || x > size.width) continue;
        context.moveTo(x, Math.max(middle(look, drop.top), 0));
        context.lineTo(x, Math.min(middle(look, drop.bottom), size.height));
      }
      context.stroke();
    }

    function drawLooks(look) {
      if (look.view.scaleY < 5) return;
      const {context} = look;
      const radius = Math.min(look.view.scaleY / 5, 4);
      for (const {look: what, x, row} of shown.layout.looks) {
        if (row < look.first || row > look.last || (what.fate === "declined" && look.view.scaleY < 12)) continue;
        context.beginPath();
        context.arc(look.x(x), middle(look, row), radius, 0, 2 * Math.PI);
        context.fillStyle = what.fate === "granted" ? look.accent : look.panel;
        context.strokeStyle = what.fate === "declined" ? look.faint : look.accent;
        context.lineWidth = 1.5;
        context.fill();
        context.stroke();
      }
    }

    function drawChosen(look) {
      const {doc, layout} = shown;
      if (shown.path < 0 || !doc.paths[shown.path]) return;
      look.context.fillStyle = arpo.colours.of("chosen");
      for (const node of arpo.treeLayout.chain(doc, doc.paths[shown.path].leaf)) {
        const y = look.view.top + layout.row[node] * look.view.scaleY;
        look.context.fillRect(look.x(layout.left[node]), y, look.x(layout.right[node]) - look.x(layout.left[node]), Math.max(look.view.scaleY, 2));
      }
      const row = layout.rowOf[shown.path];
      look.context.fillRect(look.x(layout.ends[row]), look.view.top + row * look.view.scaleY, look.size.width, Math.max(look.view.scaleY, 2));
    }

    const outcomeColour = (path) => arpo.colours.of(path.reward === null ? "faint" : path.is_correct ? "green" : "rust");

    function drawOutcome(look, row) {
      const path = shown.layout.pathOfRow[row];
      const {context, size} = look;
      const y = middle(look, row);
      if (y < AXIS) return;
      const x = size.width - GUTTER + 18;
      context.font = "11px system-ui, sans-serif";
      context.textBaseline = "middle";
      context.fillStyle = look.faint;
      context.textAlign = "right";
      context.fillText(path.number, x + 22, y);
      context.textAlign = "left";
      context.fillStyle = outcomeColour(path);
      context.beginPath();
      context.arc(x + 33, y, 3.5, 0, 2 * Math.PI);
      context.fill();
      context.fillStyle = path.number === shown.path ? look.ink : look.muted;
      const worth = path.reward === null ? path.status : `${number(path.reward)}${path.advantage === null ? "" : `  ${signed(path.advantage)}`}`;
      context.fillText(worth, x + 43, y);
    }

    // Where rows are too thin for words: a strip of colours.
    function drawOutcomeStrip(look, stride) {
      const x = look.size.width - 18;
      for (let row = look.first - (look.first % stride); row <= look.last; row += stride) {
        look.context.fillStyle = outcomeColour(shown.layout.pathOfRow[row]);
        look.context.fillRect(x, look.view.top + row * look.view.scaleY, 8, Math.max(look.view.scaleY * stride - (look.view.scaleY > 3 ? 1 : 0), 1));
      }
    }

    function drawAxis(look) {
      const {context, size, view} = look;
      context.fillStyle = look.panel;
      context.fillRect(0, 0, size.width, AXIS);
      context.fillStyle = look.rule;
      context.fillRect(0, AXIS - 1, size.width, 1);
      const [low, high] = [Math.max(-view.left / view.scaleX, 0), (size.width - GUTTER - view.left) / view.scaleX];
      const marks = (shown.axis === "time" ? timeTicks : ticks)(low, high, (size.width - GUTTER) / 90);
      context.font = "11px system-ui, sans-serif";
      context.textBaseline = "middle";
      context.textAlign = "left";
      for (const value of marks.at) {
        const x = look.x(value);
        if (x > size.width - GUTTER - 40) break;
        context.fillStyle = look.faint;
        context.fillRect(x, AXIS - 5, 1, 4);
        context.fillStyle = look.muted;
        context.fillText(shown.axis === "time" ? clock(value, marks.step) : count(value), x + 4, AXIS / 2);
      }
      if (view.scaleY >= WORDS) context.fillText("path  reward  advantage", size.width - GUTTER + 20, AXIS / 2);
    }

    const colourOf = (look, level) => (level < 0 ? look.observed : look.palette[level]);

    // -- pointing -------------------------------------------------------------------------------------------------

    function at(x, y) {
      const {layout} = shown;
      if (!layout || y < AXIS) return null;
      const row = Math.floor((y - surface.view.top) / surface.view.scaleY);
      if (row < 0 || row >= layout.numRows) return null;
      const value = (x - surface.view.left) / surface.view.scaleX;
      const near = 6 / surface.view.scaleX;
      const seen = surface.view.scaleY >= 5 && layout.looks.find((one) => one.row === row && Math.abs(one.x - value) <= near);
      const node = layout.byRow[row].find((one) => layout.left[one] <= value && value < layout.right[one]);
      return {row, value, node, look: seen ? seen.look : null, path: layout.pathOfRow[row]};
    }

    function hover(x, y, event) {
      const found = at(x, y);
      surface.canvas.style.cursor = found && (found.node !== undefined || found.look) ? "pointer" : "default";
      arpo.dom.tip(event, found && lines(found));
    }

    function lines({row, value, node, look, path}) {
      if (look) return [`Fork ${look.fate}`, arpo.treeLayout.reason(look, shown.limits)];
      const {doc, layout} = shown;
      if (node === undefined) return value > layout.ends[row] ? [`Path ${path.number}: ${path.status}`, path.reward === null ? "" : `reward ${number(path.reward)}, advantage ${signed(path.advantage)}`, path.reason] : null;
      const about = `tokens ${count(doc.nodes.start[node])} to ${count(doc.nodes.start[node] + doc.nodes.size[node])} of path ${doc.nodes.path[node]}`;
      if (doc.nodes.kind[node] === "o") return [values.toolOf(node), about, doc.nodes.text[node].trim().slice(0, 200)];
      const share = (value - layout.left[node]) / Math.max(layout.right[node] - layout.left[node], 1e-12);
      const token = layout.firstToken[node] + Math.min(Math.floor(share * doc.nodes.size[node]), doc.nodes.size[node] - 1);
      const {text, entropy, logprob, version} = doc.tokens;
      const advantage = doc.nodes.advantage[node];
      return [JSON.stringify(text[token]), `entropy ${number(entropy[token])} nats, log-probability ${number(logprob[token])}`, `version ${version[token]}${advantage === null ? "" : `, advantage ${signed(advantage)}`}`, about];
    }

    function press(x, y) {
      const found = at(x, y);
      if (found) choose(found.path.number, found.node);
    }

    // The next path up or down.
    function key(event) {
      if (!shown.layout || shown.path < 0 || !["j", "k"].includes(event.key)) return false;
      const row = shown.layout.rowOf[shown.path] + (event.key === "j" ? 1 : -1);
      const path = shown.layout.pathOfRow[row];
      if (path) choose(path.number, undefined);
      return true;
    }

    return {surface, show, set, shown, MODES};
  }

  return {create};
})();
