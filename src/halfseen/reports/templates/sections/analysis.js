look.lazily(document.querySelector("[data-figures]"), () => {
  for (const figure of document.querySelectorAll("[data-figure]")) figure.src = look.text(figure.dataset.figure);
});
