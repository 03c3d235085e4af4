// Cards of the picked adapters: weight, words to insert, strength over the run. The value is the truth:
// edits write to it at once, so that pressing Generate right after a drag takes the new weight.
const SHAPES = {
  constant: null,
  "fade in": [[0, 0], [0.6, 1]],
  "fade out": [[0.4, 1], [1, 0]],
  "first half": [[0, 1], [0.5, 1], [0.51, 0]],
  "second half": [[0, 0], [0.5, 0], [0.51, 1]],
};
const WIDTH = 240, HEIGHT = 72, PAD = 8;
const SVG = "http://www.w3.org/2000/svg";
const root = element.querySelector(".lc-picks");
const open = new Set();

const make = (tag, attributes = {}, ...children) => {
  const node = tag === "svg" || tag === "polyline" || tag === "circle"
    ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
};
const picks = () => (Array.isArray(props.value) ? props.value : []);
const change = (id, fields) => {
  props.value = picks().map((pick) => (pick.id === id ? { ...pick, ...fields } : pick));
};
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const number = (value) => String(Math.round(value * 100) / 100);

const told = (pick) => `Over the run: ${pick.points || pick.curve ? "shaped" : "constant"}`;

function weight(pick) {
  const shared = { step: 0.05, "aria-label": `Weight of ${pick.name}` };
  const slider = make("input", {
    type: "range", min: Math.min(pick.low, pick.weight), max: Math.max(pick.high, pick.weight),
    value: pick.weight, ...shared,
  });
  const box = make("input", { type: "number", value: pick.weight, ...shared, "aria-label": `Weight of ${pick.name} as a number` });
  slider.value = pick.weight;
  slider.addEventListener("input", () => {
    box.value = slider.value;
    change(pick.id, { weight: Number(slider.value) });
  });
  box.addEventListener("change", () => {
    const value = Number(box.value);
    if (!Number.isFinite(value)) { box.value = slider.value; return; }
    slider.min = Math.min(slider.min, value);
    slider.max = Math.max(slider.max, value);
    slider.value = value;
    change(pick.id, { weight: value });
  });
  return make("div", { class: "lc-weight" }, make("span", { class: "lc-label" }, "Weight"), slider, box);
}

function words(pick) {
  if (!pick.triggers.length) return make("p", { class: "lc-quiet" }, "no trigger words");
  const chips = pick.triggers.map((word) => {
    const chip = make("button", { type: "button", class: "lc-chip", title: "Put into the prompt" }, `+ ${word}`);
    chip.addEventListener("click", () => trigger("select", { act: "word", id: pick.id, word }));
    return chip;
  });
  return make("div", { class: "lc-chips" }, ...chips);
}

function curve(pick) {
  const box = make("div", { class: "lc-curve" });
  const draw = (focus) => {
    const points = (picks().find((one) => one.id === pick.id) || pick).points;
    box.replaceChildren(chooser(points), ...(points ? [plot(points, focus), tools(points)] : []));
  };
  const set = (points, focus) => {
    change(pick.id, { points, curve: null });
    const summary = box.parentElement?.querySelector("summary");
    if (summary) summary.textContent = told({ points });
    draw(focus);
  };
  const chooser = (points) => {
    const same = (shape) => JSON.stringify(SHAPES[shape]) === JSON.stringify(points);
    const current = Object.keys(SHAPES).find(same) || "own points";
    const select = make("select", { "aria-label": `Strength of ${pick.name} over the run` });
    for (const shape of [...Object.keys(SHAPES), "own points"]) {
      select.append(make("option", { value: shape, selected: shape === current }, shape));
    }
    select.addEventListener("change", () => {
      const own = points || [[0, 1], [0.5, 1], [1, 1]];
      set(select.value === "own points" ? own : SHAPES[select.value]);
      box.querySelector("select").focus();
    });
    return select;
  };
  const at = (point) => [PAD + point[0] * (WIDTH - 2 * PAD), HEIGHT - PAD - point[1] * (HEIGHT - 2 * PAD)];
  const plot = (points, focus) => {
    const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": `Points of the strength of ${pick.name}, start of the run on the left` });
    const line = [[0, points[0][1]], ...points, [1, points[points.length - 1][1]]];
    svg.append(make("polyline", { points: line.map((point) => at(point).join(",")).join(" ") }));
    points.forEach((point, index) => svg.append(knob(svg, points, index)));
    if (focus !== undefined) queueMicrotask(() => svg.querySelectorAll("circle")[focus]?.focus());
    return svg;
  };
  const moved = (points, index, x, y) => {
    const low = index ? points[index - 1][0] + 0.01 : 0;
    const high = index + 1 < points.length ? points[index + 1][0] - 0.01 : 1;
    return points.map((point, other) => other === index
      ? [Number(clamp(x, low, high).toFixed(2)), Number(clamp(y, 0, 1).toFixed(2))] : point);
  };
  const knob = (svg, points, index) => {
    const [x, y] = points[index];
    const [cx, cy] = at(points[index]);
    const circle = make("circle", {
      cx, cy, r: 6, tabindex: 0, role: "slider", "aria-valuemin": 0, "aria-valuemax": 100,
      "aria-valuenow": Math.round(y * 100), "aria-valuetext": `${Math.round(y * 100)} % of the weight at ${Math.round(x * 100)} % of the run`,
      "aria-label": `Point ${index + 1} of ${points.length}; arrow keys move it, Delete removes it`,
    });
    circle.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: [-0.05, 0], ArrowRight: [0.05, 0], ArrowUp: [0, 0.05], ArrowDown: [0, -0.05] }[event.key];
      if (by) set(moved(points, index, x + by[0], y + by[1]), index);
      else if (event.key === "Delete" && points.length > 2) set(points.filter((_, other) => other !== index), 0);
      else return;
      event.preventDefault();
    });
    circle.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      const frame = svg.getBoundingClientRect();
      let latest = points;
      const move = (motion) => {
        const px = ((motion.clientX - frame.left) / frame.width * WIDTH - PAD) / (WIDTH - 2 * PAD);
        const py = 1 - ((motion.clientY - frame.top) / frame.height * HEIGHT - PAD) / (HEIGHT - 2 * PAD);
        latest = moved(points, index, px, py);
        const [nx, ny] = at(latest[index]);
        circle.setAttribute("cx", nx);
        circle.setAttribute("cy", ny);
      };
      const end = () => {
        window.removeEventListener("pointermove", move);
        set(latest, index);
      };
      window.addEventListener("pointermove", move);
      window.addEventListener("pointerup", end, { once: true });
    });
    return circle;
  };
  const tools = (points) => {
    const add = make("button", { type: "button", class: "lc-small" }, "Add a point");
    add.addEventListener("click", () => {
      const gaps = points.map((point, index) => (points[index + 1]?.[0] ?? 1) - point[0]);
      const index = gaps.indexOf(Math.max(...gaps));
      const x = Number((points[index][0] + gaps[index] / 2).toFixed(2));
      if (gaps[index] >= 0.04) set([...points.slice(0, index + 1), [x, points[index][1]], ...points.slice(index + 1)], index + 1);
    });
    const text = points.map(([x, y]) => `${number(y)} at ${Math.round(x * 100)} %`).join(", ");
    return make("div", { class: "lc-curve-tools" }, add, make("span", { class: "lc-quiet" }, text));
  };
  draw();
  return box;
}

function card(pick) {
  const remove = make("button", { type: "button", class: "lc-small", "aria-label": `Remove ${pick.name}` }, "Remove");
  remove.addEventListener("click", () => {
    props.value = picks().filter((other) => other.id !== pick.id);
    render();
    trigger("select", { act: "removed", id: pick.id });
  });
  const mask = make("button", { type: "button", class: "lc-small", "aria-label": `Paint where ${pick.name} acts` }, pick.mask ? "Where: painted" : "Where: everywhere");
  mask.addEventListener("click", () => trigger("select", { act: "mask", id: pick.id }));
  const like = make("button", { type: "button", class: "lc-small", "aria-label": `Find adapters like ${pick.name}` }, "Find alike");
  like.addEventListener("click", () => trigger("select", { act: "like", id: pick.id }));
  const more = make("details", { open: open.has(pick.id) }, make("summary", {}, told(pick)), curve(pick));
  more.addEventListener("toggle", () => (more.open ? open.add(pick.id) : open.delete(pick.id)));
  const picture = pick.thumb ? make("img", { src: pick.thumb, alt: "", width: 56, height: 56 }) : make("span", { class: "lc-blank" });
  const head = make("div", { class: "lc-pick-head" }, make("strong", {}, pick.name), remove);
  const body = make("div", { class: "lc-pick-body" }, head, words(pick), weight(pick), make("div", { class: "lc-pick-more" }, more, like, mask));
  return make("li", { class: "lc-pick", "data-id": pick.id }, picture, body);
}

function render() {
  root.replaceChildren(...picks().map(card));
}
watch("value", render);
render();
