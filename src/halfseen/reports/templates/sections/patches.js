look.lazily(document.querySelector("[data-explorer]"), () => {
  const section = document.querySelector("[data-explorer]");
  const encoders = look.data.explorer;
  const images = section.querySelectorAll("[data-image]").length;
  const slider = section.querySelector("[data-layer]"), readout = section.querySelector("[data-readout]");
  const boards = [...section.querySelectorAll("[data-board]")];
  const steps = Number(slider.max) + 1;
  // The chosen and the compared point in parts of the image, so that encoders with other grids share them.
  let chosen = { x: 0.5, y: 0.5 }, compared = null, whole = false;

  for (const each of encoders) {
    each.values = look.bytes(each.block);
    each.sizes = each.grids.map(([rows, columns]) => rows * columns);
    each.starts = [];
    let start = 0;
    for (const n of each.sizes) { each.starts.push(start); start += images * n * (n + 1) / 2; }
  }
  const layerOf = (each) => {
    const last = each.layers.length - 1;
    return steps === 1 ? last : Math.round(Number(slider.value) * last / (steps - 1));
  };
  const at = (grid, point) => {
    const row = Math.min(grid[0] - 1, Math.floor(point.y * grid[0])), column = Math.min(grid[1] - 1, Math.floor(point.x * grid[1]));
    return { row, column, patch: row * grid[1] + column };
  };
  // Two patches' similarity: upper triangles lie row by row, the diagonal with them.
  const similarity = (each, layer, one, other) => {
    const n = each.sizes[layer], i = Math.min(one, other), j = Math.max(one, other);
    const start = each.starts[layer] + Math.min(look.image, images - 1) * n * (n + 1) / 2;
    const [low, high] = each.ranges[layer];
    return low + (high - low) * each.values[start + i * n - i * (i - 1) / 2 + j - i] / 255;
  };
  const words = (value) =>
    value >= 0.95 ? "practically the same" : value >= 0.7 ? "much alike" : value >= 0.4 ? "alike" : value >= 0.15 ? "slightly alike" : value > -0.15 ? "unrelated" : "opposed";
  // As many digits as tell the ends of the scale apart.
  let digits = 2;
  const number = (value) => value.toFixed(digits).replace(/^-(0\.0+)$/, "$1");
  const shown = () => encoders.filter((each, place) => !section.querySelector(`[data-panel="${place}"]`).hidden);
  const finest = () => shown().map((each) => each.grids[layerOf(each)]).reduce((a, b) => (b[0] * b[1] > a[0] * a[1] ? b : a), [1, 1]);
  const gridOf = (board) => {
    if (board.dataset.board === "picture") return finest();
    const each = encoders[Number(board.dataset.board)];
    return each.grids[layerOf(each)];
  };

  const draw = async () => {
    // Pointing at the chosen patch itself compares nothing.
    const finestGrid = finest(), other = compared && at(finestGrid, compared).patch !== at(finestGrid, chosen).patch ? compared : null;
    const maps = shown().map((each) => {
      const layer = layerOf(each), grid = each.grids[layer], from = at(grid, chosen);
      return { each, layer, grid, from, values: Float32Array.from({ length: each.sizes[layer] }, (_, to) => similarity(each, layer, from.patch, to)) };
    });
    let low = -1, high = 1;
    if (!whole) {
      low = Math.min(...maps.map((map) => Math.min(...map.values)));
      high = Math.max(...maps.map((map) => Math.max(...map.values)));
      if (high - low < 1e-4) low = high - 1e-4;
    }
    digits = Math.max(2, Math.min(4, 1 - Math.floor(Math.log10(high - low))));
    section.querySelector("[data-low]").textContent = number(low);
    section.querySelector("[data-high]").textContent = number(high);
    const sentences = [];
    for (const { each, layer, grid, from, values } of maps) {
      const panel = section.querySelector(`[data-panel="${encoders.indexOf(each)}"]`), canvas = panel.querySelector("canvas");
      look.cells(canvas, grid, (i) => [...look.similarity[Math.round(255 * Math.max(0, Math.min(1, (values[i] - low) / (high - low))))], 255]);
      look.box(canvas, grid, from.row, from.column);
      const others = values.filter((_, i) => i !== from.patch);
      const mean = others.length ? others.reduce((a, b) => a + b, 0) / others.length : 1;
      let sentence = `${each.label}, ${each.layers[layer]}: `;
      if (other) {
        const to = at(grid, other), value = values[to.patch];
        look.box(canvas, grid, to.row, to.column, true);
        sentence += `${number(value)}, ${words(value)}`;
        panel.querySelector("[data-caption]").textContent = `${each.layers[layer]}: ${number(value)}`;
      } else {
        sentence += `all others ${number(mean)} in the mean, ${words(mean)}, between ${number(Math.min(...others, 1))} and ${number(Math.max(...others, -1))}`;
        panel.querySelector("[data-caption]").textContent = `${each.layers[layer]}, ${grid[0]} x ${grid[1]}`;
      }
      sentences.push(sentence);
    }
    const grid = finestGrid, from = at(grid, chosen);
    let where = `Row ${from.row + 1}, column ${from.column + 1} of ${grid[0]} x ${grid[1]} patches`;
    if (other) { const to = at(grid, other); where += ` and row ${to.row + 1}, column ${to.column + 1}`; }
    readout.textContent = [where, ...sentences].map((sentence) => `${sentence}.`).join("\n");
    const first = shown()[0];
    const named = first ? first.layers[layerOf(first)] : "";
    section.querySelector("[data-layer-words]").textContent = named;
    slider.setAttribute("aria-valuetext", named);
    const canvas = section.querySelector('[data-board="picture"] canvas');
    if (!(await look.paint(canvas, `picture-${Math.min(look.image, images - 1)}`))) return;
    look.box(canvas, grid, from.row, from.column);
    if (other) { const to = at(grid, other); look.box(canvas, grid, to.row, to.column, true); }
  };
  let waiting = false;
  const render = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  };

  const point = (board, event) => {
    const area = board.getBoundingClientRect(), inside = (value) => Math.max(0, Math.min(0.9999, value));
    return { x: inside((event.clientX - area.left) / area.width), y: inside((event.clientY - area.top) / area.height) };
  };
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  for (const board of boards) {
    board.addEventListener("click", (event) => { chosen = point(board, event); render(); });
    board.addEventListener("pointermove", (event) => {
      if (event.pointerType !== "mouse") return;
      if (event.buttons === 1) chosen = point(board, event);
      else compared = point(board, event);
      render();
    });
    board.addEventListener("pointerleave", () => { compared = null; render(); });
    board.addEventListener("blur", () => { compared = null; render(); });
    board.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.key === "Escape") { compared = null; return render(); }
      if (!(event.key in moves)) return;
      event.preventDefault();
      const grid = gridOf(board), from = at(grid, event.shiftKey ? compared ?? chosen : chosen), [down, right] = moves[event.key];
      const row = Math.max(0, Math.min(grid[0] - 1, from.row + down)), column = Math.max(0, Math.min(grid[1] - 1, from.column + right));
      const moved = { x: (column + 0.5) / grid[1], y: (row + 0.5) / grid[0] };
      if (event.shiftKey) compared = moved; else chosen = moved;
      render();
    });
  }
  slider.addEventListener("input", render);
  const ranges = section.querySelectorAll("[data-range]");
  for (const button of ranges)
    button.addEventListener("click", () => { whole = button.dataset.range === "whole"; look.press(ranges, button); render(); });
  const ticks = [...section.querySelectorAll("[data-chooser] input")];
  const limit = () => {
    const count = ticks.filter((each) => each.checked).length;
    for (const each of ticks) {
      each.disabled = (each.checked && count === 1) || (!each.checked && count >= 4);
      section.querySelector(`[data-panel="${each.value}"]`).hidden = !each.checked;
    }
    render();
  };
  for (const each of ticks) each.addEventListener("change", limit);
  look.onImage(render);
  if (ticks.length) limit(); else render();
});
