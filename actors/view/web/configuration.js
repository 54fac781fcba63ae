// Configuration: every key of the run with its value, found by typing.

arpo.configuration = (() => {
  const {el, replace} = arpo.dom;

  function mount(root) {
    const search = el("input", {type: "search", placeholder: "Find a key or a value", "aria-label": "find in the configuration", oninput: draw});
    const sheet = el("div", {class: "settings"});
    let settings = null;
    let note = "";
    let drawn = null;
    root.append(el("div", {class: "toolbar"}, search), sheet);

    function draw() {
      if (!settings) return replace(sheet, el("p", {class: "empty"}, "No configuration lies beside this journal."));
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const keys = flat(settings).filter(([key, value]) => words.every((word) => `${key} ${value}`.toLowerCase().includes(word)));
      const sections = new Map();
      for (const [key, value] of keys) {
        const [section] = key.split(".");
        if (!sections.has(section)) sections.set(section, []);
        sections.get(section).push([key, value]);
      }
      return replace(
        sheet,
        note && el("p", {class: "note"}, note),
        !keys.length && el("p", {class: "empty"}, "No key like that."),
        [...sections].map(([section, rows]) => el("section", {class: "card"}, el("h3", null, section), el("dl", null, rows.map(([key, value]) => [el("dt", null, key.slice(section.length + 1) || section), el("dd", {class: value === "null" ? "none" : ""}, value === "null" ? "unset" : value)])))),
      );
    }

    return {
      update(state) {
        note = (state.run && state.run.config_note) || "";
        if (drawn === state.settings && state.settings) return;
        settings = drawn = state.settings;
        draw();
      },
    };
  }

  // [["learner.lr", "0.0005"], ...]; arrays of sections by their numbers, plain values as JSON.
  function flat(value, path = "") {
    const isSection = value !== null && typeof value === "object" && (!Array.isArray(value) || value.some((item) => item !== null && typeof item === "object"));
    if (!isSection) return [[path, typeof value === "string" ? value : JSON.stringify(value)]];
    return Object.entries(value).flatMap(([key, inner]) => flat(inner, path ? `${path}.${key}` : key));
  }

  return {mount, flat};
})();
