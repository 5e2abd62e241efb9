// A read-out under the pointer for every chart: the nearest point of each curve, with a line to find it on the axis.
(() => {
  "use strict";
  const svgNs = "http://www.w3.org/2000/svg";
  const make = (parent, name, attributes) => {
    const element = document.createElementNS(svgNs, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return parent.appendChild(element);
  };
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle; else high = middle;
    }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  };
  for (const figure of document.querySelectorAll("figure.chart")) {
    const block = figure.querySelector("script.readout");
    if (!block) continue;
    const chart = JSON.parse(block.textContent);
    if (!chart.series.length) continue;
    const svg = figure.querySelector("svg");
    const [low, high, start, end] = chart.x;
    const toPixel = (x) => start + ((x - low) / (high - low)) * (end - start);
    const layer = make(svg, "g", { class: "pointer", visibility: "hidden" });
    const rule = make(layer, "line", { class: "rule", y1: chart.box[0], y2: chart.box[1] });
    const dots = chart.series.map((series) => make(layer, "circle", { class: `c${series.color} dot`, r: 4 }));
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    figure.appendChild(tip);
    const show = (event) => {
      const box = svg.getBoundingClientRect();
      const unit = svg.viewBox.baseVal.width / box.width;
      const x = low + (((event.clientX - box.left) * unit - start) / (end - start)) * (high - low);
      const picks = chart.series.map((series) => nearest(series.x, x));
      // The title is the x nearest to the pointer; a curve without a point close by stays out of the read-out.
      const xs = chart.series.map((series, i) => series.x[picks[i]]);
      const title = xs.reduce((best, value) => (Math.abs(value - x) < Math.abs(best - x) ? value : best));
      const reach = Math.max((high - low) * 0.02, 0.51);
      tip.replaceChildren(Object.assign(document.createElement("b"),
        { textContent: `${chart.xLabel} ${Number.isInteger(title) ? title : title.toFixed(2)}` }));
      chart.series.forEach((series, i) => {
        const near = Math.abs(xs[i] - title) <= reach;
        dots[i].setAttribute("visibility", near ? "inherit" : "hidden");
        if (!near) return;
        dots[i].setAttribute("cx", toPixel(xs[i]));
        dots[i].setAttribute("cy", series.y[picks[i]]);
        const line = document.createElement("span");
        line.className = `c${series.color}`;
        line.textContent = `${series.name}: ${series.text[picks[i]]}`;
        tip.appendChild(line);
      });
      rule.setAttribute("x1", toPixel(title));
      rule.setAttribute("x2", toPixel(title));
      layer.setAttribute("visibility", "visible");
      tip.hidden = false;
      const home = figure.getBoundingClientRect();
      const left = toPixel(title) / unit + box.left - home.left;
      tip.style.left = `${left > home.width / 2 ? left - tip.offsetWidth - 12 : left + 12}px`;
      tip.style.top = `${box.top - home.top + 14}px`;
    };
    const hide = () => { layer.setAttribute("visibility", "hidden"); tip.hidden = true; };
    svg.addEventListener("pointermove", show);
    svg.addEventListener("pointerdown", show);
    svg.addEventListener("pointerleave", hide);
  }
})();
