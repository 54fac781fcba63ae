// Extras: what a token was drawn from, and one path lit up. The page says everything without them.
(() => {
  const tip = document.getElementById("tip");
  document.addEventListener("mousemove", (event) => {
    const token = event.target.closest("i[data-t]");
    tip.hidden = !token;
    if (!token) return;
    const [entropy, probability, version] = token.dataset.t.split(" ");
    tip.textContent = `entropy ${entropy} nats, probability ${probability}, weights of version ${version}`;
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const above = event.clientY + tip.offsetHeight + 26 > innerHeight;
    tip.style.left = `${Math.max(left, 8)}px`;
    tip.style.top = `${above ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18}px`;
  });

  const marked = [...document.querySelectorAll(".block[data-paths], .row[data-paths]")];
  let lit = null;
  const light = (path) => {
    lit = path === lit ? null : path;
    const blocks = marked.filter((element) => element.matches(".block"));
    const parents = new Set(blocks.filter((b) => b.dataset.paths.split(" ").includes(lit)));
    for (const element of marked) {
      const isOn = element.matches(".block") ? parents.has(element) : element.dataset.paths === lit;
      element.classList.toggle("dim", lit !== null && !isOn);
    }
  };
  for (const element of marked) {
    element.addEventListener("click", () => {
      if (getSelection().isCollapsed) light(element.dataset.paths.split(" ")[0]);
    });
  }
})();
