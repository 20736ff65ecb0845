look.lazily(document.querySelector("[data-block]") && document.querySelector("[data-attention]"), () => {
  const section = document.querySelector("[data-attention]");
  const images = section.querySelectorAll("[data-image]").length;
  const slider = section.querySelector("[data-block]"), query = section.querySelector("[data-query]");
  const chooser = section.querySelector("[data-attention-encoder]"), readout = section.querySelector("[data-readout]");
  const encoders = look.data.attention;
  const decoded = new Map();
  const valuesOf = (each) => {
    if (!decoded.has(each.block)) decoded.set(each.block, look.bytes(each.block));
    return decoded.get(each.block);
  };
  const current = () => encoders[chooser ? Number(chooser.value) : 0];
  const percent = (share) => `${(100 * share).toPrecision(2)} %`;

  let drawing = 0;
  const draw = async () => {
    const mine = ++drawing;
    const each = current(), values = valuesOf(each), block = Number(slider.value), asked = Number(query.value);
    const image = Math.min(look.image, images - 1), n = each.grid[0] * each.grid[1], queries = each.queries.length;
    section.querySelector("[data-block-words]").textContent = each.layers[block];
    slider.setAttribute("aria-valuetext", each.layers[block]);
    const shown = await look.picture(`picture-${image}`);
    if (mine !== drawing) return;  // Something else has been asked for while this picture was decoded.
    let sharpest = 0, peak = 0;
    for (const figure of section.querySelectorAll("[data-head]")) {
      const head = Number(figure.dataset.head);
      figure.hidden = head >= each.heads;
      if (figure.hidden) continue;
      const map = ((block * images + image) * each.heads + head) * queries + asked, largest = each.peaks[map];
      if (largest > peak) [peak, sharpest] = [largest, head];
      const canvas = figure.querySelector("canvas"), pen = canvas.getContext("2d");
      pen.imageSmoothingEnabled = shown.naturalWidth > canvas.width;
      pen.drawImage(shown, 0, 0, canvas.width, canvas.height);
      look.cells(canvas, each.grid, (i) => {
        const value = values[map * n + i];
        return [...look.weight[value], 70 + value * 0.5];
      });
      if (each.places[asked]) look.box(canvas, each.grid, ...each.places[asked]);
      figure.querySelector("[data-caption]").textContent = `at most ${percent(largest)}`;
      canvas.setAttribute("aria-label", `Head ${head + 1}: largest weight ${percent(largest)}; uniform attention would be ${percent(1 / n)}`);
    }
    readout.textContent = `${each.label}, ${each.layers[block]}, query ${each.queries[asked]}: head ${sharpest + 1} is the most concentrated, up to ${percent(peak)} on one patch; uniform attention would be ${percent(1 / n)}.`;
  };
  const change = () => {
    const each = current(), relative = Number(slider.value) / Math.max(1, Number(slider.max)), asked = Number(query.value);
    slider.max = each.layers.length - 1;
    slider.value = Math.round(relative * (each.layers.length - 1));
    query.replaceChildren(...each.queries.map((name, place) => new Option(name, place)));
    query.value = Math.min(asked, each.queries.length - 1);
    draw();
  };
  slider.addEventListener("input", draw);
  query.addEventListener("change", draw);
  if (chooser) chooser.addEventListener("change", change);
  look.onImage(draw);
  draw();
});
