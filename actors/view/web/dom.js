"use strict";
// Elements. Whatever a model, a tool or a person wrote enters the page through `text` alone, and so as text.

const arpo = {};

arpo.dom = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  // el("p", {class: "fine", title: "why"}, "text", [more, children]): a child is an element, a text, or nothing.
  function el(name, attributes, ...children) {
    return fill(document.createElement(name), attributes, children);
  }

  function svg(name, attributes, ...children) {
    return fill(document.createElementNS(SVG, name), attributes, children);
  }

  function fill(node, attributes, children) {
    for (const [key, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (key === "style") Object.assign(node.style, value);
      else node.setAttribute(key, value === true ? "" : String(value));
    }
    append(node, children);
    return node;
  }

  function append(node, children) {
    for (const child of children.flat(Infinity)) {
      if (child === null || child === undefined || child === false) continue;
      node.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
  }

  function replace(node, ...children) {
    node.replaceChildren();
    append(node, children);
    return node;
  }

  // One tooltip for the whole page: `lines` are texts, the first one in bold.
  function tip(event, lines) {
    const box = document.getElementById("tip");
    if (!lines) {
      box.hidden = true;
      return;
    }
    replace(box, lines.filter(Boolean).map((line, place) => el("div", {class: place ? "" : "first"}, line)));
    box.hidden = false;
    const {width, height} = box.getBoundingClientRect();
    const left = event.clientX + 14 + width > innerWidth ? event.clientX - width - 14 : event.clientX + 14;
    const top = event.clientY + 18 + height > innerHeight ? event.clientY - height - 12 : event.clientY + 18;
    box.style.left = `${Math.max(left, 4)}px`;
    box.style.top = `${Math.max(top, 4)}px`;
  }

  // A row of buttons of which one is chosen.
  function choice(label, options, chosen, onchange) {
    const group = el("div", {class: "choice", role: "radiogroup", "aria-label": label});
    const buttons = options.map(([value, text, title]) =>
      el("button", {type: "button", role: "radio", "aria-checked": String(value === chosen), title, onclick: () => choose(value)}, text));
    function choose(value) {
      buttons.forEach((button, place) => button.setAttribute("aria-checked", String(options[place][0] === value)));
      onchange(value);
    }
    append(group, buttons);
    return group;
  }

  return {el, svg, replace, tip, choice};
})();
