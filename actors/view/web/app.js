// The page as a whole: its views by their addresses, the state of the run above them, the theme.

arpo.app = (() => {
  const {el, replace} = arpo.dom;
  const {counted, duration, percent} = arpo.format;
  const VIEWS = [["overview", "Overview"], ["trees", "Trees"], ["timeline", "Timeline"], ["tools", "Tools"], ["configuration", "Configuration"]];
  const QUIET_S = 20;
  const views = new Map();
  let active = "";
  let isAsked = false;

  function start() {
    const root = document.getElementById("views");
    for (const [name] of VIEWS) {
      const box = el("div", {class: `view ${name}`, id: `view-${name}`, hidden: true});
      root.append(box);
      views.set(name, {box, view: null, isStale: true});
    }
    addEventListener("hashchange", route);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
    arpo.store.on(() => {
      for (const entry of views.values()) entry.isStale = true;
      schedule();
    });
    route();
    arpo.store.start().catch((error) => replace(document.getElementById("bar"), el("p", {class: "note"}, `The run cannot be read: ${error.message}`)));
  }

  function route() {
    const [name, ...rest] = location.hash.slice(1).split("/");
    active = views.has(name) ? name : VIEWS[0][0];
    for (const [other, {box}] of views) box.hidden = other !== active;
    const entry = views.get(active);
    if (!entry.view) entry.view = arpo[active].mount(entry.box);
    if (entry.view.show && rest.length) entry.view.show(decodeURIComponent(rest.join("/")));
    schedule();
  }

  function schedule() {
    if (isAsked) return;
    isAsked = true;
    requestAnimationFrame(() => {
      isAsked = false;
      const {state} = arpo.store;
      bar(state);
      const entry = views.get(active);
      if (!state.run || !entry.isStale) return;
      entry.isStale = false;
      entry.view.update(state);
    });
  }

  function repaint() {
    arpo.colours.forget();
    for (const entry of views.values()) entry.isStale = true;
    const {view} = views.get(active);
    if (view && view.repaint) view.repaint();
    schedule();
  }

  function bar(state) {
    const {run} = state;
    replace(
      document.getElementById("bar"),
      el("div", {class: "name"}, el("span", {class: "brand"}, "arpo"), el("h1", null, run ? run.name : "…")),
      run && status(state),
      el("nav", {"aria-label": "views"}, VIEWS.map(([name, title]) => el("a", {href: `#${name}`, "aria-current": name === active ? "page" : null}, title))),
      el("button", {type: "button", class: "theme", title: "Light or dark", "aria-label": "light or dark", onclick: turn}, arpo.colours.isDark() ? "☀" : "☾"),
      run && run.error && el("p", {class: "note"}, `What follows is not shown: ${run.error}`),
      run && run.is_partial && el("p", {class: "note"}, "The beginning of this journal was deleted; trees and steps from there on are shown."),
    );
    document.title = run ? `${run.name} · arpo` : "arpo";
  }

  function status(state) {
    const {run, mode} = state;
    const isQuiet = run.status === "running" && run.quiet_s > QUIET_S;
    const word = mode === "lost" ? "connection lost" : mode === "static" && run.status === "running" ? "unfinished" : isQuiet ? "quiet" : run.status;
    const parts = [];
    if (run.phase && run.status === "running") parts.push(run.phase.name);
    parts.push(duration(run.t));
    if (run.num_starts > 1) parts.push(counted(run.num_starts, "start"));
    if (isQuiet && mode === "live") parts.push(`nothing for ${duration(run.quiet_s)}`);
    if (run.read_bytes < 0.98 * run.num_bytes && mode === "live") parts.push(`reading ${percent(run.read_bytes / run.num_bytes)}`);
    return el("div", {class: `status ${mode === "lost" ? "lost" : isQuiet ? "quiet" : run.status}`}, el("i", {class: "lamp"}), el("b", null, word), el("span", null, parts.join(" · ")));
  }

  function turn() {
    arpo.colours.setTheme(arpo.colours.isDark() ? "light" : "dark");
    repaint();
  }

  return {start};
})();

arpo.app.start();
