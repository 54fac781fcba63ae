// Numbers the way a person reads them; the same forms as in the program's own reports.

arpo.format = (() => {
  const NOTHING = "–";
  const isNumber = (x) => typeof x === "number" && Number.isFinite(x);

  function duration(s) {
    if (!isNumber(s)) return NOTHING;
    if (s < 0) return `−${duration(-s)}`;
    if (s === 0) return "0 s";
    if (s < 0.001) return `${(s * 1e6).toFixed(0)} µs`;
    if (s < 0.0995) return `${(s * 1e3).toFixed(s < 0.00995 ? 1 : 0)} ms`;
    if (s < 0.995) return `${s.toFixed(2)} s`;
    if (s < 9.95) return `${s.toFixed(1)} s`;
    const whole = Math.round(s);
    if (whole < 60) return `${whole} s`;
    if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
    return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
  }

  // Seconds on the clock of the run, as fine as the distance between two marks.
  function clock(s, step) {
    if (step < 1) return `${s.toFixed(step < 0.01 ? 3 : step < 0.1 ? 2 : 1)} s`;
    const whole = Math.round(s);
    if (step < 60 && whole < 60) return `${whole} s`;
    const minutes = Math.floor(whole / 60);
    if (whole < 3600) return `${minutes}:${String(whole % 60).padStart(2, "0")}`;
    return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${String(whole % 60).padStart(2, "0")}`;
  }

  const count = (x) => (isNumber(x) ? Math.round(x).toLocaleString("en-US") : NOTHING);
  const percent = (x) => (isNumber(x) ? `${(100 * x).toFixed(1)} %` : NOTHING);

  // Three digits that matter.
  function number(x) {
    if (!isNumber(x)) return NOTHING;
    const size = Math.abs(x);
    if (size === 0) return "0";
    if (size >= 1e6) return `${(x / 1e6).toFixed(size >= 1e7 ? 1 : 2)} M`;
    if (size >= 1000) return count(x);
    if (size >= 100) return x.toFixed(0);
    if (size >= 0.01) return String(Number(x.toPrecision(3)));
    const [digits, power] = x.toExponential(1).split("e");
    return `${digits}e${Number(power)}`;
  }

  const signed = (x) => (isNumber(x) ? `${x < 0 ? "−" : "+"}${number(Math.abs(x))}` : NOTHING);
  const counted = (n, one, many) => `${count(n)} ${n === 1 ? one : many || `${one}s`}`;

  // Round marks over an interval, about `wanted` of them.
  function ticks(low, high, wanted) {
    const rough = (high - low) / Math.max(wanted, 1);
    if (!(rough > 0)) return {step: 1, at: [low]};
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
    const first = Math.ceil(low / step - 1e-9);
    const at = [];
    for (let i = first; i * step <= high + step * 1e-9; i++) at.push(Number((i * step).toPrecision(12)));
    return {step, at};
  }

  // The same over seconds: marks at whole minutes and hours where there are any.
  function timeTicks(low, high, wanted) {
    const rough = (high - low) / Math.max(wanted, 1);
    const step = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600].find((size) => size >= rough);
    if (!(rough > 0.5) || !step) return ticks(low, high, wanted);
    const at = [];
    for (let t = Math.ceil(low / step - 1e-9) * step; t <= high; t += step) at.push(t);
    return {step, at};
  }

  return {NOTHING, timeTicks, duration, clock, count, percent, number, signed, counted, ticks};
})();
