// A surface: a canvas of the size of its box that is drawn once a frame at most, panned, and zoomed about a point.
//
// `view` maps content to pixels: x * scaleX + left. Content is `bounds` wide and high, in units of its own.

arpo.surface = (() => {
  const {el} = arpo.dom;
  const surfaces = [];

  // options: {draw(context, size, view), hover(x, y, event), press(x, y, event), limits() -> {width, height, minX, maxX,
  // minY, maxY}, zoomsY}; x and y are pixels of the surface.
  function create(options) {
    const canvas = el("canvas", {tabindex: "0", role: "img", "aria-label": options.label});
    const box = el("div", {class: "surface"}, canvas);
    const context = canvas.getContext("2d");
    const size = {width: 0, height: 0};
    const view = {scaleX: 1, scaleY: 1, left: 0, top: 0};
    const surface = {box, canvas, view, size, redraw, fit, zoom, pan, isFitted: true, numFrames: 0, drawMs: 0};
    let isAsked = false;
    let drag = null;

    function redraw() {
      if (isAsked) return;
      isAsked = true;
      requestAnimationFrame(draw);
    }

    function draw() {
      isAsked = false;
      if (!size.width || !size.height) return;
      const began = performance.now();
      const ratio = devicePixelRatio || 1;
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, size.width, size.height);
      options.draw(context, size, view);
      surface.numFrames++;
      surface.drawMs += performance.now() - began;
    }

    new ResizeObserver(() => {
      const ratio = devicePixelRatio || 1;
      const [width, height] = [box.clientWidth, box.clientHeight];
      if (width === size.width && height === size.height) return;
      Object.assign(size, {width, height});
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      if (surface.isFitted) fit();
      else clamp();
      redraw();
    }).observe(box);

    function fit() {
      surface.isFitted = true;
      if (size.width) Object.assign(view, options.fitted(size));
      redraw();
    }

    // About a point in pixels.
    function zoom(factorX, factorY, x, y) {
      const limits = options.limits(size);
      const scaleX = within(view.scaleX * factorX, limits.minX, limits.maxX);
      const scaleY = within(view.scaleY * factorY, limits.minY, limits.maxY);
      const origin = options.originX || 0;
      view.left = x - ((x - view.left) * scaleX) / view.scaleX;
      view.top = y - ((y - view.top) * scaleY) / view.scaleY;
      Object.assign(view, {scaleX, scaleY});
      surface.isFitted = false;
      clamp(origin);
      redraw();
    }

    function pan(dx, dy) {
      view.left += dx;
      view.top += dy;
      surface.isFitted = false;
      clamp();
      redraw();
    }

    // Content stays in sight: at its margins where it is larger than the surface, at its beginning where it is not.
    function clamp() {
      const limits = options.limits(size);
      const [right, bottom] = [limits.padRight || 0, limits.padBottom || 0];
      const [left, top] = [limits.padLeft || 0, limits.padTop || 0];
      view.left = within(view.left, Math.min(size.width - right - limits.width * view.scaleX, left), left);
      view.top = within(view.top, Math.min(size.height - bottom - limits.height * view.scaleY, top), top);
    }

    const place = (event) => {
      const rect = canvas.getBoundingClientRect();
      return [event.clientX - rect.left, event.clientY - rect.top];
    };

    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const [x, y] = place(event);
      const unit = event.deltaMode === 1 ? 16 : 1;
      if (event.ctrlKey || event.metaKey || event.altKey) {
        const factor = Math.exp(-event.deltaY * unit * 0.0022);
        zoom(factor, event.altKey ? 1 : options.zoomsY ? factor : 1, x, y);
      } else if (event.shiftKey && !event.deltaX) pan(-event.deltaY * unit, 0);
      else pan(-event.deltaX * unit, -event.deltaY * unit);
    }, {passive: false});
    canvas.addEventListener("pointerdown", (event) => {
      drag = {x: event.clientX, y: event.clientY, hasMoved: false};
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!drag) return options.hover(...place(event), event);
      const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
      if (!drag.hasMoved && Math.hypot(dx, dy) < 4) return undefined;
      arpo.dom.tip(event, null);
      Object.assign(drag, {x: event.clientX, y: event.clientY, hasMoved: true});
      return pan(dx, dy);
    });
    canvas.addEventListener("pointerup", (event) => {
      if (drag && !drag.hasMoved) options.press(...place(event), event);
      drag = null;
    });
    canvas.addEventListener("pointercancel", () => (drag = null));
    canvas.addEventListener("pointerleave", (event) => arpo.dom.tip(event, null));
    canvas.addEventListener("dblclick", (event) => zoom(2, options.zoomsY ? 1.6 : 1, ...place(event)));
    canvas.addEventListener("keydown", (event) => {
      const [x, y] = [size.width / 2, size.height / 2];
      const moves = {ArrowLeft: [80, 0], ArrowRight: [-80, 0], ArrowUp: [0, 60], ArrowDown: [0, -60], PageUp: [0, size.height * 0.9], PageDown: [0, -size.height * 0.9]};
      const zooms = {"+": [1.5, 1.5], "=": [1.5, 1.5], "-": [1 / 1.5, 1 / 1.5]};
      if (options.key && options.key(event)) return event.preventDefault();
      if (moves[event.key]) pan(...moves[event.key]);
      else if (zooms[event.key]) zoom(zooms[event.key][0], options.zoomsY ? zooms[event.key][1] : 1, x, y);
      else if (event.key === "0") fit();
      else return undefined;
      return event.preventDefault();
    });
    surfaces.push(surface);
    return surface;
  }

  const within = (value, low, high) => Math.min(Math.max(value, low), high);

  function controls(surface, zoomsY) {
    const act = (factor) => () => surface.zoom(factor, zoomsY ? factor : 1, surface.size.width / 2, surface.size.height / 2);
    return el(
      "div",
      {class: "zoom"},
      el("button", {type: "button", title: "Zoom out (−, or Ctrl and the wheel)", "aria-label": "zoom out", onclick: act(1 / 1.5)}, "−"),
      el("button", {type: "button", title: "All of it (0)", onclick: surface.fit}, "Fit"),
      el("button", {type: "button", title: "Zoom in (+, or Ctrl and the wheel)", "aria-label": "zoom in", onclick: act(1.5)}, "+"),
    );
  }

  return {create, controls, surfaces};
})();
