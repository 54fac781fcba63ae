// Colours: named ones from the style sheet, so that they follow the theme, and ramps for values.

arpo.colours = (() => {
  const RAMPS = {
    light: {
      entropy: ["#eceef0", "#f6ead6", "#f7d9ae", "#f2bd80", "#e69a5a", "#d4713c", "#ad4a24"],
      logprob: ["#eceef0", "#dfe7ef", "#c3d5e6", "#9dbbd6", "#719bc0", "#4879a6", "#285682"],
      advantage: ["#b0492a", "#d07f5e", "#e8bba4", "#e6e8ea", "#aecfbd", "#6ba487", "#35765a"],
      version: ["#3f6d98", "#5f9a8b", "#98a65c", "#c69f4d", "#c27a58", "#9a6689", "#6a6fa5"],
    },
    dark: {
      entropy: ["#2a2f35", "#46402f", "#67502f", "#8e632f", "#b87936", "#de9145", "#ffb866"],
      logprob: ["#2a2f35", "#2b3c4c", "#2f4e68", "#376488", "#4780ab", "#639fce", "#92c8f2"],
      advantage: ["#f09068", "#b9694b", "#714a3e", "#343a40", "#3a5c4d", "#509377", "#7fd0a8"],
      version: ["#6fa3d6", "#7fc3b0", "#bac878", "#e5bd68", "#e49a76", "#c08db0", "#9297d6"],
    },
  };
  // Where one colour ends and the next begins.
  const BOUNDS = {
    entropy: [0.02, 0.1, 0.3, 0.6, 1.0, 2.0],
    logprob: [0.02, 0.1, 0.3, 0.7, 1.5, 3.0],
    advantage: [-1, -0.3, -0.02, 0.02, 0.3, 1],
  };
  let named = null;

  function isDark() {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  // The value of a custom property, read once a theme.
  function named_(name) {
    if (!named) named = new Map();
    if (!named.has(name)) named.set(name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
    return named.get(name);
  }

  const ramp = (mode) => RAMPS[isDark() ? "dark" : "light"][mode];

  // Which colour of a ramp a value has.
  function level(mode, value) {
    if (value === null || value === undefined) return -1;
    if (mode === "version") return ((value % 7) + 7) % 7;
    const bounds = BOUNDS[mode];
    const size = mode === "logprob" ? -value : value;
    let place = 0;
    while (place < bounds.length && size >= bounds[place]) place++;
    return place;
  }

  function legend(mode) {
    const bounds = BOUNDS[mode];
    if (!bounds) return null;
    const shown = mode === "logprob" ? bounds.map((bound) => -bound) : bounds;
    return ramp(mode).map((colour, place) => ({colour, from: place ? shown[place - 1] : null, to: place < shown.length ? shown[place] : null}));
  }

  function setTheme(theme) {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    named = null;
  }

  // Black or white, whichever is read on a colour.
  function inkOn(colour) {
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    return 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#1c2127" : "#f4f5f6";
  }

  return {of: named_, ramp, level, legend, setTheme, isDark, inkOn, forget: () => (named = null)};
})();
