look.lazily(document.querySelector("[data-near]") && document.querySelector("[data-neighbours]"), () => {
  const section = document.querySelector("[data-neighbours]");
  const images = section.querySelectorAll("[data-image]").length;
  const { classes, names, neighbours } = look.data;
  const hide = async (canvas, image, grid, hidden) => {
    if (await look.paint(canvas, `picture-${image}`)) look.cells(canvas, grid, (i) => [128, 128, 128, hidden[i] === "1" ? 255 : 0]);
  };
  const draw = () => {
    const image = Math.min(look.image, images - 1);
    for (const line of section.querySelectorAll("[data-near]")) {
      const each = neighbours[Number(line.dataset.near)], mask = Number(line.dataset.mask);
      const row = mask < 0 ? each.whole[image] : each.masked[image]?.[mask];
      line.hidden = !row;
      if (!row) continue;
      const query = line.querySelector(".query canvas");
      if (mask < 0) look.paint(query, `picture-${image}`);
      else hide(query, image, each.grid, each.hidden[image][mask]);
      for (const tile of line.querySelectorAll("[data-neighbour]")) {
        const found = row[Number(tile.dataset.neighbour)];
        tile.hidden = !found;
        if (!found) continue;
        const [place, value] = found, same = classes[place] && classes[place] === classes[image];
        const canvas = tile.querySelector("canvas"), caption = tile.querySelector("figcaption");
        const label = classes[place] || names[place];
        look.thumbnail(canvas, place);
        canvas.setAttribute("aria-label", `${names[place]}, ${classes[place] || "no class"}, similarity ${value.toFixed(3)}${same ? ", same class" : ""}`);
        const name = document.createElement("bdi"), mark = document.createElement("span");
        name.textContent = label;
        mark.className = "same";
        mark.textContent = same ? "\u2713 " : "";
        caption.replaceChildren(mark, name, document.createElement("br"), value.toFixed(3));
      }
    }
  };
  look.onImage(draw);
  draw();
});
