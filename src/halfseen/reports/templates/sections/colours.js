look.lazily(document.querySelector("[data-colour-encoder]") && document.querySelector("[data-colours]"), () => {
  const section = document.querySelector("[data-colours]");
  const images = section.querySelectorAll("[data-image]").length;
  const encoders = look.data.colours.map((each) => ({ ...each, values: look.bytes(each.block) }));
  const draw = () => {
    const image = Math.min(look.image, images - 1);
    encoders.forEach((each, place) => {
      const strip = section.querySelector(`[data-colour-encoder="${place}"]`);
      look.paint(strip.querySelector("canvas"), `picture-${image}`);
      let start = 0;
      each.grids.forEach(([rows, columns], layer) => {
        const from = start + image * rows * columns * 3;
        look.cells(strip.querySelector(`[data-colour-layer="${layer}"]`), [rows, columns], (i) => [...each.values.subarray(from + 3 * i, from + 3 * i + 3), 255]);
        start += images * rows * columns * 3;
      });
    });
  };
  look.onImage(draw);
  draw();
});
