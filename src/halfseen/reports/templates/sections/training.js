{
  const charts = JSON.parse(document.getElementById("curves").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const make = (name, attributes, text) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const short = (value) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e5 || size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
    return String(Number(value.toPrecision(4)));
  };

  // Labels of evenly spaced ticks: as many decimals as tell neighbours apart.
  const tickLabel = (value, ticks) => {
    const step = ticks.length > 1 ? Math.abs(ticks[1] - ticks[0]) : 0;
    if (!step || step < 1e-5 || Math.abs(value) >= 1e5) return short(value);
    if (step < 1e-3 && Math.abs(ticks[ticks.length - 1]) < 0.1) return short(value);
    return value.toFixed(Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
  };
  const linearTicks = (low, high, wanted) => {
    const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
    return ticks;
  };
  const logTicks = (low, high) => {
    const few = Math.log10(high / low) < 2 ? [1, 2, 5] : [1], ticks = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
      for (const m of few) { const v = m * 10 ** e; if (v >= low * 0.999 && v <= high * 1.001) ticks.push(v); }
    return ticks.length > 1 ? ticks : linearTicks(low, high, 4);
  };

  // A running mean over about 1/40 of the points, so that a noisy loss shows its course.
  const smooth = (ys) => {
    const half = Math.floor(ys.length / 80);
    if (half < 1) return ys;
    return ys.map((_, i) => {
      const part = ys.slice(Math.max(0, i - half), i + half + 1);
      return part.reduce((a, b) => a + b, 0) / part.length;
    });
  };

  const draw = (figure, chart) => {
    const svg = figure.querySelector("svg"), readout = figure.querySelector(".readout");
    const words = readout.textContent;
    // What is read from a curve may be shorter than the words that stand there first: nothing below moves.
    readout.style.minHeight = `${readout.offsetHeight}px`;
    let scale = "linear", chosen = null, place = null;

    const render = () => {
      const width = Math.max(200, svg.clientWidth), height = Math.max(120, svg.clientHeight);
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.replaceChildren();
      const left = 52, right = width - 10, top = 8, bottom = height - 30;
      const log = scale === "log";
      const ok = (y) => !log || y > 0;
      const xs = chart.series.flatMap((s) => s.x), ys = chart.series.flatMap((s) => s.y).filter(ok);
      if (!ys.length) return;
      const sorted = [...ys].sort((a, b) => a - b);
      let x0 = Math.min(...xs), x1 = Math.max(...xs), y0 = sorted[0], y1 = sorted[sorted.length - 1];
      if (x1 === x0) { x0 -= 0.5; x1 += 0.5; }
      if (chart.zero && !log) y0 = Math.min(0, y0);
      if (y1 === y0) { const pad = Math.abs(y1) * 0.1 || 1; y0 = log ? y0 / 1.5 : y0 - pad; y1 = log ? y1 * 1.5 : y1 + pad; }
      const f = log ? Math.log : (v) => v;
      const px = (x) => left + ((x - x0) / (x1 - x0)) * (right - left);
      const py = (y) => bottom - ((f(y) - f(y0)) / (f(y1) - f(y0))) * (bottom - top);
      const marks = log ? logTicks(y0, y1) : linearTicks(y0, y1, height > 200 ? 7 : 5);
      for (const tick of marks) {
        svg.append(make("line", { class: "gridline", x1: left, x2: right, y1: py(tick), y2: py(tick) }));
        svg.append(make("text", { x: left - 6, y: py(tick) + 4, "text-anchor": "end" }, log ? short(tick) : tickLabel(tick, marks)));
      }
      for (const tick of linearTicks(x0, x1, Math.max(3, Math.floor(width / 110))))
        svg.append(make("text", { x: px(tick), y: bottom + 16, "text-anchor": "middle" }, short(tick)));
      svg.append(make("text", { x: right, y: height - 2, "text-anchor": "end" }, chart.x));
      const path = (s, values) => s.x.map((x, i) => [x, values[i]]).filter(([, y]) => ok(y))
        .map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
      chart.series.forEach((s) => {
        const calm = chart.smooth ? smooth(s.y) : s.y, stroke = `stroke:var(--run${s.colour})`;
        if (calm !== s.y) svg.append(make("path", { class: "raw", style: stroke, d: path(s, s.y) }));
        svg.append(make("path", { class: "curve", style: stroke, d: path(s, calm) }));
        if (s.x.length === 1) svg.append(make("circle", { cx: px(s.x[0]), cy: py(s.y[0]), r: 4, style: `fill:var(--run${s.colour})` }));
      });
      const cursor = make("g", {});
      svg.append(cursor);
      place = (event) => {
        const box = svg.getBoundingClientRect();
        return x0 + (((event.clientX - box.left) / box.width) * width - left) / (right - left) * (x1 - x0);
      };
      const show = () => {
        cursor.replaceChildren();
        if (chosen === null) { readout.textContent = words; return; }
        const parts = [];
        let at = null;
        for (const s of chart.series) {
          let best = 0;
          s.x.forEach((x, i) => { if (Math.abs(x - chosen) < Math.abs(s.x[best] - chosen)) best = i; });
          if (at === null) at = s.x[best];
          if (ok(s.y[best])) cursor.append(make("circle", { cx: px(s.x[best]), cy: py(s.y[best]), r: 4, style: `fill:var(--run${s.colour})` }));
          parts.push(`${chart.series.length > 1 ? s.name + ": " : ""}${short(s.y[best])} (step ${s.step[best]})`);
        }
        cursor.append(make("line", { class: "cursor", x1: px(at), x2: px(at), y1: top, y2: bottom }));
        readout.textContent = `${chart.x} ${short(at)} - ${parts.join(", ")}`;
      };
      svg.show = show;
      show();
    };

    const choose = (x) => { chosen = x; svg.show(); };
    svg.addEventListener("pointermove", (event) => place && choose(place(event)));
    svg.addEventListener("pointerdown", (event) => place && choose(place(event)));
    svg.addEventListener("pointerleave", () => choose(null));
    svg.addEventListener("blur", () => choose(null));
    svg.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const xs = chart.series[0].x, last = xs.length - 1;
      let at = chosen === null ? -1 : xs.reduce((b, x, i) => (Math.abs(x - chosen) < Math.abs(xs[b] - chosen) ? i : b), 0);
      const jump = event.shiftKey ? 10 : 1;
      const moves = { ArrowRight: Math.min(last, at + jump), ArrowLeft: at < 0 ? last : Math.max(0, at - jump), Home: 0, End: last };
      if (event.key === "Escape") return choose(null);
      if (!(event.key in moves)) return;
      event.preventDefault();
      choose(xs[moves[event.key]]);
    });
    for (const button of figure.querySelectorAll("[data-scale]"))
      button.addEventListener("click", () => {
        scale = button.dataset.scale;
        for (const each of figure.querySelectorAll("[data-scale]")) each.setAttribute("aria-pressed", String(each === button));
        render();
      });
    render();
    new ResizeObserver(render).observe(svg);
  };
  document.querySelectorAll("[data-chart]").forEach((figure) => draw(figure, charts[figure.dataset.chart]));
}
