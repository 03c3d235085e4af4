// Presses and edits inside a panel reach Python with the data attributes of the element.
element.addEventListener("click", (event) => {
  const node = event.target.closest("[data-act]");
  if (node && element.contains(node)) trigger("click", { ...node.dataset });
});
element.addEventListener("change", (event) => {
  const node = event.target.closest("[data-edit]");
  if (!node) return;
  const value = node.type === "checkbox" ? node.checked : node.value;
  trigger("input", { ...node.dataset, value });
});
