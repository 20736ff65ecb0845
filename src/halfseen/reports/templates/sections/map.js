look.lazily(document.querySelector("[data-map]"), () => {
  const section = document.querySelector("[data-map]");
  const { points, names, classes } = look.data;
  const readout = section.querySelector("[data-readout]"), preview = section.querySelector("[data-callout] canvas");
  const highlight = section.querySelector("[data-highlight]"), ways = section.querySelectorAll("[data-way]");
  let way = ways.length ? ways[0].dataset.way : Object.keys(points.encoders[0].places)[0], chosen = null;
  const counts = points.labels.reduce((seen, label) => seen.set(label, (seen.get(label) ?? 0) + 1), new Map());

  const draw = (board) => {
    const canvas = board.querySelector("canvas"), pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    const side = canvas.width, edge = side * 0.04, size = points.labels.length > 300 ? 6 : 9;
    const spots = points.encoders[Number(board.dataset.cloudBoard)].places[way];
    const wanted = highlight && highlight.value !== "" ? Number(highlight.value) : null;
    const colour = (name) => style.getPropertyValue(name).trim();
    pen.fillStyle = colour("--bg");
    pen.fillRect(0, 0, side, side);
    const spot = (place) => [edge + spots[place][0] * (side - 2 * edge), side - edge - spots[place][1] * (side - 2 * edge)];
    const order = points.labels.map((_, place) => place).sort((a, b) => (points.labels[a] === wanted) - (points.labels[b] === wanted));
    for (const place of order) {
      const label = points.labels[place], [x, y] = spot(place);
      const plain = label < 0 || (wanted !== null ? label !== wanted : points.many);
      pen.globalAlpha = plain && wanted !== null ? 0.35 : 0.85;
      pen.fillStyle = plain ? colour("--soft") : points.many ? colour("--accent") : colour(`--class${label % 6}`);
      pen.beginPath();
      if (label >= 6 && !points.many) pen.rect(x - size * 0.9, y - size * 0.9, size * 1.8, size * 1.8);
      else pen.arc(x, y, size, 0, 7);
      pen.fill();
    }
    pen.globalAlpha = 1;
    if (chosen !== null) {
      const [x, y] = spot(chosen);
      pen.lineWidth = 4;
      pen.strokeStyle = colour("--ink");
      pen.beginPath();
      pen.arc(x, y, size + 7, 0, 7);
      pen.stroke();
    }
    board.spot = spot;
  };
  const boards = [...section.querySelectorAll("[data-cloud-board]")];
  const idle = () => `Point at an image, or focus a map and press the arrow keys. ${names.length} images.`;
  const render = () => {
    boards.forEach(draw);
    if (chosen === null) {
      readout.textContent = idle();
      preview.getContext("2d").clearRect(0, 0, preview.width, preview.height);
      return;
    }
    const label = classes[chosen] ? `${classes[chosen]} (${counts.get(points.labels[chosen])} images)` : "no class";
    readout.textContent = `${names[chosen]}: ${label}. Image ${chosen + 1} of ${names.length}.`;
    preview.setAttribute("aria-label", `${names[chosen]}, ${classes[chosen] || "no class"}`);
    look.thumbnail(preview, chosen);
  };
  const choose = (place) => { if (place !== chosen) { chosen = place; render(); } };

  for (const board of boards) {
    const nearest = (event) => {
      const area = board.getBoundingClientRect(), canvas = board.querySelector("canvas");
      const x = ((event.clientX - area.left) / area.width) * canvas.width, y = ((event.clientY - area.top) / area.height) * canvas.height;
      let best = null, least = (canvas.width * 0.06) ** 2;
      points.labels.forEach((_, place) => {
        const [px, py] = board.spot(place), far = (px - x) ** 2 + (py - y) ** 2;
        if (far < least) [best, least] = [place, far];
      });
      return best;
    };
    board.addEventListener("pointermove", (event) => choose(nearest(event) ?? chosen));
    board.addEventListener("click", (event) => choose(nearest(event) ?? chosen));
    board.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const last = points.labels.length - 1;
      if (event.key === "Escape") return choose(null);
      if (event.key === "Home" || event.key === "End") { event.preventDefault(); return choose(event.key === "Home" ? 0 : last); }
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!way) return;
      event.preventDefault();
      if (chosen === null) return choose(0);
      const [x, y] = board.spot(chosen);
      let best = null, least = Infinity;
      points.labels.forEach((_, place) => {
        const [px, py] = board.spot(place), along = (px - x) * way[0] + (py - y) * way[1], aside = Math.abs((px - x) * way[1]) + Math.abs((py - y) * way[0]);
        if (place !== chosen && along > 0.01 && aside <= along && along + 2 * aside < least) [best, least] = [place, along + 2 * aside];
      });
      if (best !== null) choose(best);
    });
  }
  for (const button of ways)
    button.addEventListener("click", () => { way = button.dataset.way; look.press(ways, button); render(); });
  if (highlight) highlight.addEventListener("change", render);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
  render();
});
