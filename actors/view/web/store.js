// The data: a copy of what the server knows, brought up to date by increments; or what the file itself holds.

arpo.store = (() => {
  // How entries of each kind are told apart: a newer one takes the place of the older one.
  const KEYS = {
    steps: (row) => row.step,
    evaluations: (row) => row.step,
    supervised: (row) => `${row.number}/${row.step}`,
    learner: (span) => `${span[0]}/${span[1]}`,
    generators: (level) => `${level.t}/${level.busy_s}`,
    trees: (row) => row.id,
  };
  const RETRY_MS = 1500;
  const MAX_DOCUMENTS = 24;
  const state = {run: null, textsNote: "", settings: null, tools: null, activity: null, cursor: "", mode: "loading"};
  const listeners = new Set();
  const documents = new Map();
  const kept = {};

  function clear() {
    for (const name of Object.keys(KEYS)) {
      kept[name] = new Map();
      state[name] = [];
    }
    state.tools = state.activity = null;
    documents.clear();
  }

  function apply(changes) {
    if (changes.is_whole) {
      clear();
      if (state.mode !== "static") fetchSettings();
    }
    state.run = changes.run;
    state.cursor = changes.cursor;
    for (const [name, key] of Object.entries(KEYS)) {
      if (!changes[name]) continue;
      for (const value of changes[name]) {
        kept[name].set(key(value), value);
        if (name === "trees") documents.delete(value.id);
      }
      state[name] = [...kept[name].values()];
    }
    if (changes.tools) state.tools = changes.tools;
    if (changes.activity) mergeActivity(changes.activity);
    tell();
  }

  function mergeActivity({width_s, start, series}) {
    if (!state.activity || state.activity.width_s !== width_s || start === 0) state.activity = {width_s, series: {}, length: 0};
    const all = state.activity.series;
    for (const [name, values] of Object.entries(series)) {
      if (!all[name]) all[name] = [];
      while (all[name].length < start) all[name].push(0);
      all[name].length = start;
      for (const value of values) all[name].push(value);
      state.activity.length = all[name].length;
    }
  }

  function tell() {
    for (const listener of listeners) listener(state);
  }

  function setMode(mode) {
    if (state.mode !== mode) {
      state.mode = mode;
      tell();
    }
  }

  async function get(path) {
    const response = await fetch(path);
    if (!response.ok) throw new Error((await response.text()).trim() || `status ${response.status}`);
    return response.json();
  }

  function follow() {
    const source = new EventSource(`api/stream?since=${encodeURIComponent(state.cursor)}`);
    source.onmessage = (event) => {
      state.mode = "live";
      apply(JSON.parse(event.data));
    };
    source.onerror = () => {
      setMode("lost");
      if (source.readyState === EventSource.CLOSED) setTimeout(follow, RETRY_MS);
    };
  }

  async function start() {
    clear();
    const held = document.getElementById("state");
    if (held) {
      const {settings, texts_note: note, documents: names, ...changes} = JSON.parse(held.textContent);
      Object.assign(state, {settings, textsNote: note, documents: new Set(names), mode: "static"});
      apply(changes);
      return;
    }
    follow();
  }

  async function fetchSettings() {
    state.settings = await get("api/settings");
    tell();
  }

  // A tree with its texts. Rejects, with a sentence, where it cannot be had.
  function tree(id) {
    if (!documents.has(id)) {
      const asked = load(id);
      asked.catch(() => documents.delete(id));
      documents.set(id, asked);
      if (documents.size > MAX_DOCUMENTS) documents.delete(documents.keys().next().value);
    }
    return documents.get(id);
  }

  async function load(id) {
    if (state.mode === "static") {
      const held = document.getElementById(`tree-${id}`);
      if (!held) throw new Error("The texts of this tree are not in this file. `arpo watch` shows every tree of a run.");
      return JSON.parse(held.textContent);
    }
    const {document: found, texts_note: note} = await get(`api/trees/${encodeURIComponent(id)}`);
    state.textsNote = note;
    return found;
  }

  return {state, start, tree, on: (listener) => listeners.add(listener)};
})();
