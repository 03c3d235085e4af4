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
