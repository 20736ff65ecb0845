{
  for (const slider of document.querySelectorAll("input[data-ratios]")) {
    const shares = slider.dataset.ratios.split(" ");
    const gallery = slider.closest(".gallery");
    slider.addEventListener("input", () => {
      const share = shares[Number(slider.value)];
      slider.setAttribute("aria-valuetext", `${share} hidden`);
      gallery.querySelector("output").textContent = share;
      for (const set of gallery.querySelectorAll("[data-set]")) set.hidden = set.dataset.set !== slider.value;
    });
  }
}
