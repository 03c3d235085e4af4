// Presses and edits inside a panel reach Python with the data attributes of the element.
// A pick is sent when the cards show the one before: each carries the whole list as the page has it then.
const PATIENCE_MS = 8000;
const waiting = [];
let busy = false;
const next = () => {
  if (busy || !waiting.length) return;
  busy = true;
  const cards = document.querySelector("#picks .lc-picks");
  const done = () => {
    seen.disconnect();
    clearTimeout(late);
    busy = false;
    next();
  };
  const seen = new MutationObserver(() => setTimeout(done, 0));
  if (cards) seen.observe(cards, { childList: true });
  const late = setTimeout(done, cards ? PATIENCE_MS : 0);
  trigger("click", waiting.shift());
};
element.addEventListener("click", (event) => {
  const node = event.target.closest("[data-act]");
  if (!node || !element.contains(node)) return;
  if (node.dataset.act !== "pick") return trigger("click", { ...node.dataset });
  waiting.push({ ...node.dataset });
  next();
});
element.addEventListener("change", (event) => {
  const node = event.target.closest("[data-edit]");
  if (!node) return;
  const value = node.type === "checkbox" ? node.checked : node.value;
  trigger("input", { ...node.dataset, value });
});
