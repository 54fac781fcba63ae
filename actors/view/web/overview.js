// Overview: whether it learns, how fast it goes, how far it runs ahead, and what it spends.

arpo.overview = (() => {
  const {el, replace} = arpo.dom;
  const {count, counted, duration, number, percent} = arpo.format;

  function mount(root) {
    const figures = el("div", {class: "figures"});
    const charts = SPECS.map((make) => ({make, chart: arpo.chart()}));
    const empty = el("p", {class: "empty"});
    root.append(figures, empty, el("div", {class: "grid"}, charts.map(({chart}) => chart.card)));
    return {
      update(state) {
        replace(figures, tiles(state));
        const nothing = !state.steps.length && !state.supervised.length && !state.evaluations.length;
        empty.hidden = !nothing;
        replace(empty, "No step yet. Curves appear with the first one; trees and the timeline are there as soon as prompts are.");
        for (const {make, chart} of charts) chart.update(make(state));
      },
    };
  }

  function tiles(state) {
    const {run, steps, evaluations} = state;
    if (!run) return [];
    const last = steps[steps.length - 1];
    const limits = run.limits || {};
    const found = [tile("step", last ? count(last.step) : "0", limits.steps ? `of ${count(limits.steps)}` : "")];
    const greedy = evaluations.map((event) => event.metrics.success).filter(Number.isFinite);
    if (greedy.length > 1) found.push(tile("greedy success", `${percent(greedy[0])} → ${percent(greedy[greedy.length - 1])}`, `${counted(greedy.length, "evaluation")}`));
    else if (greedy.length) found.push(tile("greedy success", percent(greedy[0]), "before training"));
    if (last) {
      const recent = steps.slice(-5);
      const mean = (name) => recent.reduce((sum, row) => sum + row[name], 0) / recent.length;
      found.push(tile("success in training", percent(mean("success")), `mean of ${counted(recent.length, "step")}`));
      found.push(tile("staleness", count(Math.max(...steps.map((row) => row.staleness))), limits.max_staleness === undefined ? "at most so far" : `at most; ${limits.max_staleness} allowed`));
      const kl = Math.max(...steps.map((row) => row.kl_rollout));
      const warned = steps.filter((row) => row.mismatch !== "none").length;
      found.push(tile("KL(train ‖ rollout)", number(kl), warned ? `at most; above the gate in ${counted(warned, "step")}` : "nats a token, at most"));
      const [wait, all] = steps.reduce(([w, a], row) => [w + row.wait_s, a + row.wait_s + row.step_s], [0, 0]);
      found.push(tile("learner waits", percent(all ? wait / all : NaN), "for batches, of its loop"));
    }
    const budget = (limits.budget || {}).calls_per_run;
    if (run.requested) found.push(tile("tool calls", count(run.executed), budget ? `executed of a budget of ${count(budget)}` : `executed of ${count(run.requested)} requested`));
    found.push(tile("trees", count(run.num_trees), `${count(run.levels.growing)} growing, ${count(run.levels.buffered)} waiting`));
    return found;
  }

  const tile = (name, value, note) => el("div", {class: "tile"}, el("span", {class: "name"}, name), el("span", {class: "value"}, value), el("span", {class: "note"}, note));

  const line = (state, name, colour, label, kind) => ({
    name: label || name,
    colour,
    kind,
    points: state.steps.map((row) => [row.step, typeof name === "function" ? name(row) : row[name]]),
  });

  function withRate(state, name) {
    return state.steps.slice(1).map((row, place) => {
      const seconds = row.t - state.steps[place].t;
      return [row.step, seconds > 0 ? row[name] / seconds : NaN];
    });
  }

  const SPECS = [
    (state) => ({
      title: "Success",
      about: "Share of correct trajectories: sampled ones that a step trained on, and greedy ones on the evaluation set.",
      series: [
        {...line(state, "success", "blue", "in training"), format: percent},
        {name: "greedy", colour: "green", kind: "dots", format: percent, points: state.evaluations.filter((e) => e.metrics.success !== undefined).map((e) => [e.step, e.metrics.success])},
      ].filter((series) => series.points.length),
      format: (value) => `${Math.round(100 * value)} %`,
      top: 1,
    }),
    (state) => ({title: "Reward", about: "Mean score of the trajectories that a step trained on.", series: [line(state, "reward", "blue", "mean score")]}),
    (state) => ({
      title: "Throughput",
      about: "Tokens a second from one step to the next: sampled by the generators, trained by the learner.",
      series: [
        {name: "sampled", colour: "blue", points: withRate(state, "num_sampled_tokens")},
        {name: "trained", colour: "rust", points: withRate(state, "num_trained_tokens")},
      ],
    }),
    (state) => ({
      title: "Staleness",
      about: "Steps between the weights that sampled the oldest token of a batch and those it trains.",
      series: [line(state, "staleness", "violet", "oldest token")],
      limit: atMost(state, "max_staleness", "allowed"),
    }),
    (state) => ({
      title: "KL(train ‖ rollout)",
      about: "How far the weights that train are from those that sampled, in nats a token.",
      series: [line(state, "kl_rollout", "rust", "nats")],
      limit: atMost(state, "kl_limit", "gate"),
    }),
    (state) => ({
      title: "Tool calls",
      about: "What became of the calls since the step before; only executed ones cost the budget.",
      series: [
        line(state, "num_tool_calls_executed", "blue", "executed", "bar"),
        line(state, "num_tool_calls_cached", "green", "cached", "bar"),
        line(state, "num_tool_calls_shared", "gold", "shared", "bar"),
        line(state, "num_tool_calls_refused", "rust", "refused", "bar"),
      ],
    }),
    (state) => {
      let spent = 0;
      const limit = ((state.run && state.run.limits.budget) || {}).calls_per_run;
      return {
        title: "Tool budget",
        about: "Executed calls since the run began, against the budget of the run where it has one.",
        series: [{name: "spent", colour: "blue", points: state.steps.map((row) => [row.step, (spent += row.num_tool_calls_executed)])}],
        limit: limit ? {value: limit, name: `budget ${count(limit)}`} : null,
      };
    },
    (state) => ({
      title: "Forks",
      about: "Places behind tool results at which the monitor looked, wanted a branch, and got one.",
      series: [line(state, "num_forks_wanted", "gold", "wanted"), line(state, "num_forks", "blue", "granted"), line(state, "num_forks_considered", "faint", "of looks", "told")],
    }),
    (state) => ({
      title: "Time of a step",
      about: "The learner's loop: waiting for a batch, and the optimiser step.",
      series: [line(state, "wait_s", "gold", "waiting", "bar"), line(state, "step_s", "blue", "stepping", "bar")],
      format: duration,
    }),
    (state) => ({
      title: "Entropy",
      about: "Mean over trained tokens, in nats, under the weights before the step.",
      series: [line(state, "entropy", "green", "nats")],
    }),
    (state) => ({
      title: "Loss and gradient",
      about: "The objective that a step minimised, and the norm of its gradient.",
      series: [line(state, "loss", "blue", "loss"), line(state, "grad_norm", "rust", "gradient norm")],
    }),
    (state) => ({
      title: "Trajectories",
      about: "That ended since the step before: in order, out of tokens, failed by the infrastructure.",
      series: [
        line(state, (row) => row.num_trajectories - row.num_truncated - row.num_failed, "blue", "completed", "bar"),
        line(state, "num_truncated", "gold", "truncated", "bar"),
        line(state, "num_failed", "rust", "failed", "bar"),
      ],
    }),
    (state) => ({
      title: "Supervised loss",
      about: "Of the cold start and of the control, over their own steps.",
      series: supervised(state),
    }),
  ];

  const atMost = (state, name, label) => {
    const value = state.run && state.run.limits[name];
    return value === undefined || value === null ? null : {value, name: `${label} ${number(value)}`};
  };

  function supervised(state) {
    const stages = new Map();
    for (const point of state.supervised) {
      const name = `${point.phase}${point.number > 1 ? ` (part ${point.number})` : ""}`;
      if (!stages.has(name)) stages.set(name, []);
      stages.get(name).push([point.step, point.loss]);
    }
    const colours = ["blue", "rust", "green", "gold", "violet"];
    return [...stages].map(([name, points], place) => ({name, points, colour: colours[place % colours.length]}));
  }

  return {mount};
})();
