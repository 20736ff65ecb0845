// What the sections that look into the encoders share: the chosen image, decoded bytes, pictures, colours.
const look = (() => {
  const data = JSON.parse(document.getElementById("inside").textContent);
  const text = (id) => document.getElementById(id).textContent.trim();
  const bytes = (id) => Uint8Array.from(atob(text(id)), (character) => character.charCodeAt(0));
  const pictures = new Map();
  const picture = (id) => {
    if (!pictures.has(id)) {
      const image = new Image();
      image.src = text(id);
      pictures.set(id, image.decode().then(() => image));
    }
    return pictures.get(id);
  };

  // Starts a section when it comes near the window, gets the focus, or is printed; never twice.
  const lazily = (section, start) => {
    if (!section) return;
    let started = false;
    const begin = () => {
      if (started) return;
      started = true;
      watch.disconnect();
      start();
    };
    const watch = new IntersectionObserver((seen) => seen.some((each) => each.isIntersecting) && begin(), { rootMargin: "400px" });
    watch.observe(section);
    section.addEventListener("focusin", begin, { once: true });
    window.addEventListener("beforeprint", begin, { once: true });
  };

  const listeners = [];
  let image = 0;
  const choose = (place) => {
    image = place;
    // A section with fewer images shows its last one, and says so.
    for (const section of document.querySelectorAll("section")) {
      const buttons = section.querySelectorAll("[data-image]"), line = section.querySelector("[data-chosen-image] bdi");
      if (!line) continue;
      const own = Math.min(place, buttons.length - 1), { name, label } = data.shown[own];
      press(buttons, buttons[own]);
      line.textContent = label ? `${name}, ${label}` : name;
    }
    for (const listener of listeners) listener();
  };
  for (const button of document.querySelectorAll("[data-image]"))
    button.addEventListener("click", () => choose(Number(button.dataset.image)));
  for (const section of document.querySelectorAll("section"))
    if (section.querySelector("[data-picture]"))
      lazily(section, () => {
        for (const thumb of section.querySelectorAll("[data-picture]")) thumb.src = text(`picture-${thumb.dataset.picture}`);
      });

  const ramp = (stops) => {
    const table = [];
    for (let i = 0; i < 256; i++) {
      const at = (i / 255) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
      table.push([0, 1, 2].map((c) => {
        const [a, b] = [stops[low], stops[low + 1]].map((stop) => parseInt(stop.slice(1 + 2 * c, 3 + 2 * c), 16));
        return Math.round(a + (b - a) * (at - low));
      }));
    }
    return table;
  };
  // viridis and plasma: brightness rises evenly, so that they are read without seeing hues.
  const similarity = ramp(["#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6dcd59", "#b4de2c", "#fde725"]);
  const weight = ramp(["#0d0887", "#5302a3", "#8b0aa5", "#b83289", "#db5c68", "#f48849", "#febc2a", "#f0f921"]);

  // A grid of colours over the whole canvas; `colour` gives [red, green, blue, alpha] of a cell, each 0 to 255.
  const cells = (canvas, [rows, columns], colour) => {
    const small = document.createElement("canvas");
    small.width = columns;
    small.height = rows;
    const pen = small.getContext("2d"), pixels = pen.createImageData(columns, rows);
    for (let i = 0; i < rows * columns; i++) pixels.data.set(colour(i), 4 * i);
    pen.putImageData(pixels, 0, 0);
    const wide = canvas.getContext("2d");
    wide.imageSmoothingEnabled = false;
    wide.drawImage(small, 0, 0, canvas.width, canvas.height);
  };
  // A box around a cell, light on dark, seen on any colour.
  const box = (canvas, [rows, columns], row, column, dashed) => {
    const pen = canvas.getContext("2d"), w = canvas.width / columns, h = canvas.height / rows;
    for (const [width, stroke] of [[canvas.width / 56, "#000"], [canvas.width / 112, "#fff"]]) {
      pen.lineWidth = Math.max(1.5, width);
      pen.strokeStyle = stroke;
      pen.setLineDash(dashed ? [w / 5, w / 5] : []);
      pen.strokeRect(column * w + 1, row * h + 1, w - 2, h - 2);
    }
    pen.setLineDash([]);
  };
  // False where another picture has been asked for meanwhile: the one that is decoded last isn't always the last wanted.
  const wanted = new WeakMap();
  const paint = async (canvas, id) => {
    wanted.set(canvas, id);
    const shown = await picture(id), pen = canvas.getContext("2d");
    if (wanted.get(canvas) !== id) return false;
    pen.imageSmoothingEnabled = shown.naturalWidth > canvas.width;
    pen.drawImage(shown, 0, 0, canvas.width, canvas.height);
    return true;
  };
  // An image among all, from the sheet of thumbnails.
  const thumbnail = async (canvas, place) => {
    const sheet = await picture("thumbnails"), { columns, side } = data.sheet, pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.drawImage(sheet, (place % columns) * side, Math.floor(place / columns) * side, side, side, 0, 0, canvas.width, canvas.height);
  };
  const press = (buttons, chosen) => {
    for (const each of buttons) each.setAttribute("aria-pressed", String(each === chosen));
  };
  return {
    data, bytes, text, picture, lazily, choose, similarity, weight, cells, box, paint, thumbnail, press,
    get image() { return image; },
    onImage: (listener) => listeners.push(listener),
  };
})();
