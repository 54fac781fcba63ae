// The timeline drawn: the learner, the generators, what paths and tools were at, and every group in its slot.

arpo.timelineCanvas = (() => {
  const {clock, count, counted, duration, number, percent, timeTicks} = arpo.format;
  const AXIS = 24;
  const NAMES = 142;
  const SLOT = 9;
  const LEARNER = {waiting: "gold", stepping: "blue", publishing: "green"};
  const GROUP = {growing: "violet", buffered: "gold", training: "blue"};
  const PATHS = [["sampling", "violet"], ["tool", "rust"], ["scoring", "green"]];
  const TOOL_COLOURS = ["rust", "gold", "green", "violet", "blue"];

  function create({open}) {
    const shown = {state: null, slots: [], lanes: [], height: 1, end: 1, start: 0};
    const surface = arpo.surface.create({label: "the run over time: learner, generators, paths, tools, groups", zoomsY: false, draw, hover, press, fitted, limits});

    function show(state) {
      const isFirst = !shown.state || !shown.state.run;
      shown.state = state;
      shown.end = Math.max((state.run && state.run.t) || 1, 0.001);
      shown.start = beginning(state);
      shown.slots = slots(state.trees, shown.end);
      shown.lanes = lanes(state);
      shown.height = shown.lanes.reduce((sum, lane) => sum + lane.height, 0);
      surface.box.style.maxHeight = `${shown.height + AXIS + 12}px`;
      if (isFirst || surface.isFitted) surface.fit();
      else surface.redraw();
    }

    // Where training begins: a cold start would hide it.
    function beginning(state) {
      const first = Math.min(...state.trees.map((row) => row.admitted_s), ...state.learner.map((span) => span[2]));
      return Number.isFinite(first) ? Math.max(first - 0.01 * (shown.end - first), 0) : 0;
    }

    function fitted(size) {
      const width = Math.max(size.width - NAMES - 12, 10);
      const scaleX = width / Math.max(shown.end - shown.start, 1e-3);
      return {scaleX, scaleY: 1, left: NAMES - shown.start * scaleX, top: AXIS};
    }

    function limits(size) {
      const minX = (size.width - NAMES - 12) / shown.end;
      return {width: shown.end, height: shown.height, minX, maxX: 1e6, minY: 1, maxY: 1, padLeft: NAMES, padRight: 12, padTop: AXIS, padBottom: 8};
    }

    // Groups one behind another in as few slots as there were at once.
    function slots(trees, end) {
      const free = [];
      const found = [];
      for (const row of [...trees].sort((a, b) => a.admitted_s - b.admitted_s)) {
        const until = row.released_s === null ? end : row.released_s;
        let slot = free.findIndex((since) => since <= row.admitted_s);
        if (slot < 0) slot = free.push(0) - 1;
        free[slot] = until;
        found.push({row, slot, until});
      }
      return found;
    }

    function lanes(state) {
      const activity = state.activity ? state.activity.series : {};
      const tools = Object.keys(activity).filter((name) => name.startsWith("tool:"));
      const found = [
        {name: "Learner", note: "what it does", height: 42, draw: drawLearner, at: learnerAt},
        {name: "Generators", note: "busy share", height: 42, draw: drawGenerators, at: generatorsAt},
        {name: "Paths", note: "how many do what", height: 92, draw: (look, top, height) => drawStack(look, top, height, PATHS.map(([name, colour]) => [name, name, colour])), at: (t) => levelsAt(t, PATHS.map(([name]) => [name, name]))},
      ];
      if (tools.length) {
        const named = tools.map((name, place) => [name, name.slice(5), TOOL_COLOURS[place % TOOL_COLOURS.length]]);
        found.push({name: "Tools", note: "calls under way", height: 64, draw: (look, top, height) => drawStack(look, top, height, named), at: (t) => levelsAt(t, named)});
      }
      const num = shown.slots.reduce((most, one) => Math.max(most, one.slot + 1), 0);
      if (num) found.push({name: "Groups", note: `${counted(num, "slot")} in use`, height: num * SLOT + 16, draw: drawGroups, at: groupAt});
      return found;
    }

    // -- drawing --------------------------------------------------------------------------------------------------

    function draw(context, size, view) {
      if (!shown.state || !shown.state.run) return;
      const look = {context, size, view, x: (t) => view.left + t * view.scaleX, from: (NAMES - view.left) / view.scaleX, to: (size.width - view.left) / view.scaleX};
      let top = view.top;
      for (const lane of shown.lanes) {
        if (top < size.height && top + lane.height > AXIS) {
          look.most = 0;
          context.save();
          context.beginPath();
          context.rect(NAMES, AXIS, size.width - NAMES, size.height);
          context.clip();
          lane.draw(look, top + 6, lane.height - 12, lane);
          context.restore();
          drawName(look, lane, top);
        }
        top += lane.height;
      }
      drawAxis(look);
    }

    function drawName(look, lane, top) {
      const {context, size} = look;
      context.fillStyle = arpo.colours.of("rule");
      context.fillRect(0, top + lane.height, size.width, 1);
      context.fillStyle = arpo.colours.of("ink");
      context.font = "600 12px system-ui, sans-serif";
      context.textBaseline = "alphabetic";
      context.fillText(lane.name, 12, top + 18);
      context.fillStyle = arpo.colours.of("muted");
      context.font = "11px system-ui, sans-serif";
      if (look.most) {
        context.textAlign = "right";
        context.fillText(number(look.most), NAMES - 8, top + 18);
        context.textAlign = "left";
      }
      if (lane.height >= 34) context.fillText(lane.note, 12, top + 33, NAMES - 20);
    }

    function drawLearner(look, top, height) {
      for (const [step, what, start, end] of shown.state.learner) {
        const [left, right] = [look.x(start), look.x(end)];
        if (right < NAMES || left > look.size.width) continue;
        look.context.fillStyle = arpo.colours.of(LEARNER[what]);
        look.context.fillRect(left, top, Math.max(right - left, 0.5), height);
        if (what === "stepping" && right - left > 26) {
          look.context.fillStyle = arpo.colours.of("panel");
          look.context.font = "11px system-ui, sans-serif";
          look.context.textBaseline = "middle";
          look.context.fillText(step, left + 5, top + height / 2, right - left - 8);
        }
      }
    }

    function busy() {
      const {generators, run} = shown.state;
      const number_ = (run.limits && run.limits.num_generators) || 1;
      return generators.slice(1).map((level, place) => {
        const before = generators[place];
        const seconds = level.t - before.t;
        return {start: before.t, end: level.t, share: seconds > 0 ? Math.min(Math.max(level.busy_s - before.busy_s, 0) / seconds / number_, 1) : 0, tokens: level.num_sampled_tokens - before.num_sampled_tokens};
      });
    }

    function drawGenerators(look, top, height) {
      look.context.fillStyle = arpo.colours.of("wash");
      look.context.fillRect(NAMES, top, look.size.width, height);
      look.context.fillStyle = arpo.colours.of("violet");
      for (const {start, end, share} of busy()) look.context.fillRect(look.x(start), top + height * (1 - share), Math.max(look.x(end) - look.x(start) - 0.5, 0.5), height * share);
    }

    // Levels one upon another, as high as the highest sum in sight.
    function drawStack(look, top, height, series) {
      const {activity} = shown.state;
      if (!activity) return;
      const {columns, most} = stacked(activity, series, look);
      look.context.fillStyle = arpo.colours.of("faint");
      look.context.font = "10px system-ui, sans-serif";
      for (const {left, width, values} of columns) {
        let floor = top + height;
        values.forEach((value, place) => {
          if (!value) return;
          const tall = (value / most) * height;
          look.context.fillStyle = arpo.colours.of(series[place][2]);
          look.context.fillRect(left, floor - tall, width, tall);
          floor -= tall;
        });
      }
      look.most = most;
    }

    // The bins in sight; where several lie on a pixel, their mean.
    function stacked(activity, series, look) {
      const {width_s: width, length} = activity;
      const each = width * look.view.scaleX;
      const group = Math.max(Math.ceil(1 / each), 1);
      const first = Math.max(Math.floor(look.from / width / group) * group, 0);
      const last = Math.min(Math.ceil(look.to / width), length);
      const columns = [];
      let most = 1;
      for (let bin = first; bin < last; bin += group) {
        const values = series.map(([name]) => {
          const all = activity.series[name] || [];
          let sum = 0;
          for (let at = bin; at < Math.min(bin + group, length); at++) sum += all[at] || 0;
          return sum / group;
        });
        most = Math.max(most, values.reduce((a, b) => a + b, 0));
        columns.push({left: look.x(bin * width), width: Math.max(each * group, 1) + 0.4, values});
      }
      return {columns, most};
    }

    function drawGroups(look, top) {
      for (const {row, slot, until} of shown.slots) {
        const y = top + slot * SLOT;
        if (y > look.size.height || y + SLOT < AXIS || look.x(until) < NAMES || look.x(row.admitted_s) > look.size.width) continue;
        for (const [what, start, end] of parts(row, until)) {
          look.context.fillStyle = arpo.colours.of(GROUP[what]);
          look.context.fillRect(look.x(start), y, Math.max(look.x(end) - look.x(start) - 0.5, 0.75), SLOT - 2);
        }
        if (row.state === "refused") {
          look.context.fillStyle = arpo.colours.of("faint");
          look.context.fillRect(look.x(until) - 2, y, 2, SLOT - 2);
        }
      }
    }

    const parts = (row, until) => [
      ["growing", row.admitted_s, row.finished_s === null ? until : row.finished_s],
      row.finished_s !== null && ["buffered", row.finished_s, row.taken_s === null ? until : row.taken_s],
      row.taken_s !== null && ["training", row.taken_s, until],
    ].filter(Boolean);

    function drawAxis(look) {
      const {context, size} = look;
      context.fillStyle = arpo.colours.of("panel");
      context.fillRect(0, 0, size.width, AXIS);
      context.fillStyle = arpo.colours.of("rule");
      context.fillRect(0, AXIS - 1, size.width, 1);
      context.fillRect(NAMES - 1, 0, 1, size.height);
      const marks = timeTicks(Math.max(look.from, 0), look.to, (size.width - NAMES) / 100);
      context.font = "11px system-ui, sans-serif";
      context.textBaseline = "middle";
      for (const t of marks.at) {
        if (look.x(t) < NAMES) continue;
        context.fillStyle = arpo.colours.of("faint");
        context.fillRect(look.x(t), AXIS - 5, 1, 4);
        context.fillStyle = arpo.colours.of("muted");
        context.fillText(clock(t, marks.step), look.x(t) + 4, AXIS / 2);
      }
    }

    // -- pointing -------------------------------------------------------------------------------------------------

    function laneAt(y) {
      let top = surface.view.top;
      for (const lane of shown.lanes) {
        if (y >= top && y < top + lane.height) return {lane, into: y - top - 6};
        top += lane.height;
      }
      return null;
    }

    function hover(x, y, event) {
      const found = x > NAMES && y > AXIS ? laneAt(y) : null;
      const t = (x - surface.view.left) / surface.view.scaleX;
      const lines = found && found.lane.at(t, found.into);
      surface.canvas.style.cursor = found && found.lane.name === "Groups" && lines ? "pointer" : "default";
      arpo.dom.tip(event, lines && [...lines, `at ${duration(t)}`]);
    }

    function press(x, y) {
      const found = laneAt(y);
      const t = (x - surface.view.left) / surface.view.scaleX;
      const group = found && found.lane.name === "Groups" && slotAt(t, found.into);
      if (group) open(group.row.id);
    }

    function learnerAt(t) {
      const span = shown.state.learner.find(([, , start, end]) => start <= t && t < end);
      return span ? [`Learner ${span[1]}, step ${span[0]}`, duration(span[3] - span[2]), ...(span[1] === "waiting" ? [arpo.waits.of(shown.state, span[0])] : [])] : null;
    }

    function generatorsAt(t) {
      const span = busy().find(({start, end}) => start <= t && t < end);
      return span ? [`Generators busy ${percent(span.share)}`, `${count(span.tokens)} tokens sampled in ${duration(span.end - span.start)}`] : null;
    }

    function levelsAt(t, series) {
      const {activity} = shown.state;
      const bin = activity ? Math.floor(t / activity.width_s) : -1;
      if (bin < 0 || bin >= activity.length) return null;
      return ["On average at once", ...series.map(([name, title]) => `${title}: ${number((activity.series[name] || [])[bin] || 0)}`)];
    }

    const slotAt = (t, into) => shown.slots.find((one) => one.slot === Math.floor(into / SLOT) && one.row.admitted_s <= t && t < one.until);

    function groupAt(t, into) {
      const found = slotAt(t, into);
      if (!found) return null;
      const {row, until} = found;
      return [row.id, row.question, parts(row, until).map(([what, start, end]) => `${what} ${duration(end - start)}`).join(", "), row.state === "refused" ? `refused: ${row.reason}` : row.step === null ? "" : `step ${row.step}`];
    }

    return {surface, show};
  }

  return {create, LEARNER, GROUP, PATHS};
})();
