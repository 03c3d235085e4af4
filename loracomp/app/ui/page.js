// Light or dark: as the system has it, unless the person chose.
(() => {
  const KEY = "loracomp-theme";
  const read = () => {
    try { return localStorage.getItem(KEY); } catch { return null; }
  };
  const wanted = () => {
    const chosen = read();
    if (chosen) return chosen === "dark";
    return matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const apply = () => document.body.classList.toggle("dark", wanted());
  const ready = () => {
    apply();
    // Gradio sets the mode itself while it starts.
    setTimeout(apply, 300);
    document.addEventListener("click", (event) => {
      if (!event.target.closest("[data-theme-toggle]")) return;
      const dark = !document.body.classList.contains("dark");
      try { localStorage.setItem(KEY, dark ? "dark" : "light"); } catch { /* private window */ }
      document.body.classList.toggle("dark", dark);
    });
  };
  if (document.body) ready();
  else document.addEventListener("DOMContentLoaded", ready);
})();
// Gradio gives fields that come to light, in a tab or under a heading, their first values once more a frame
// later: what is typed until then would be lost. They cannot be written in before that is over.
(() => {
  const FIELDS = "input, textarea";
  const FRAMES = 3;
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  const hold = async (box, fields) => {
    const free = fields.filter((field) => !field.readOnly);
    free.forEach((field) => { field.readOnly = true; });
    box.inert = true;
    for (let seen = 0; seen < FRAMES; seen++) await frame();
    free.forEach((field) => { field.readOnly = false; });
    box.inert = false;
  };
  new MutationObserver((changes) => {
    for (const change of changes) {
      for (const box of change.addedNodes) {
        if (box.nodeType !== Node.ELEMENT_NODE || box.closest(".lc-panel")) continue;
        const fields = [...box.querySelectorAll(FIELDS)].filter((field) => !field.closest(".lc-panel"));
        if (box.matches(FIELDS)) fields.push(box);
        if (fields.length) hold(box, fields);
      }
    }
  }).observe(document, { childList: true, subtree: true });
})();
