// Colours of patches on the viewer's clouds: features, similarity to a patch, its attention, hidden patches. A click on a point, or the
// keys , and . of a row, choose the patch. The Python twin of what is computed here is tools/look.
(() => {
  "use strict";
  const block = document.getElementById("look-data");
  const view = window.galleryView;
  if (!block || !view) return;
  const data = JSON.parse(block.textContent);
  const control = (name) => document.getElementById("look-" + name);
  const MARK = [255, 64, 160], GREY = [150, 156, 168];
  const numbers = (text, Kind) => new Kind(view.bytes(text).buffer);
  const halves = (text) => Float32Array.from(numbers(text, Uint16Array), (bits) => {
    const sign = bits >> 15 ? -1 : 1, power = (bits >> 10) & 31, rest = bits & 1023;
    return sign * (power ? 2 ** (power - 15) * (1 + rest / 1024) : 2 ** -24 * rest);
  });

  const clouds = data.clouds.map((packed, index) => ({
    item: view.items[index], painted: packed.painted.map((column) => view.items[index].clouds[column]),
    scales: packed.scales.map((scale) => ({
      centers: numbers(scale.centers, Float32Array), colors: view.bytes(scale.colors), features: halves(scale.features),
      masked: scale.masked ? view.bytes(scale.masked) : null, packed: scale, nearest: new Map(), layers: null,
    })),
  }));
  const state = { cloud: 0, scale: data.clouds[0].scales.length - 1, row: 0 };
  const count = (scale) => scale.centers.length / 3;

  // The three nearest centres of each point, with weights of inverse distance.
  function nearestOf(shown, scale) {
    if (scale.nearest.has(shown)) return scale.nearest.get(shown);
    const { xyz, n } = shown, total = count(scale), c = scale.centers;
    const index = new Uint16Array(3 * n), weight = new Float32Array(3 * n);
    for (let i = 0; i < n; i++) {
      let first = Infinity, second = Infinity, third = Infinity, a = 0, b = 0, d = 0;
      for (let j = 0; j < total; j++) {
        const x = xyz[3 * i] - c[3 * j], y = xyz[3 * i + 1] - c[3 * j + 1], z = xyz[3 * i + 2] - c[3 * j + 2];
        const apart = x * x + y * y + z * z;
        if (apart < first) { third = second; d = b; second = first; b = a; first = apart; a = j; }
        else if (apart < second) { third = second; d = b; second = apart; b = j; }
        else if (apart < third) { third = apart; d = j; }
      }
      const one = 1 / Math.max(Math.sqrt(first), 1e-6), two = 1 / Math.max(Math.sqrt(second), 1e-6);
      const three = 1 / Math.max(Math.sqrt(third), 1e-6), sum = one + two + three;
      index[3 * i] = a; index[3 * i + 1] = b; index[3 * i + 2] = d;
      weight[3 * i] = one / sum; weight[3 * i + 1] = two / sum; weight[3 * i + 2] = three / sum;
    }
    scale.nearest.set(shown, { index, weight });
    return scale.nearest.get(shown);
  }

  // Colours of the points from a function that gives a patch's value, or from three bytes a patch.
  function paint(cloud, scale, value, colors, mark) {
    for (const shown of cloud.painted) {
      const { n } = shown, { index, weight } = nearestOf(shown, scale);
      const out = (shown.paint = new Uint8Array(3 * n));
      for (let i = 0; i < 3 * n; i += 3) {
        const a = index[i], b = index[i + 1], d = index[i + 2], u = weight[i], v = weight[i + 1], w = weight[i + 2];
        if (a === mark) out.set(MARK, i);
        else if (colors) for (let c = 0; c < 3; c++) out[i + c] = u * colors[3 * a + c] + v * colors[3 * b + c] + w * colors[3 * d + c];
        else out.set(view.ramp[Math.max(0, Math.min(255, Math.round(255 * (u * value[a] + v * value[b] + w * value[d]))))], i);
      }
    }
  }

  function similarity(cloud) {
    const width = data.dims[state.scale], rows = cloud.scales[state.scale].features;
    const own = clouds[state.cloud].scales[state.scale].features.subarray(state.row * width, (state.row + 1) * width);
    const length = (row) => Math.hypot(...row);
    return Float32Array.from({ length: rows.length / width }, (_, j) => {
      const row = rows.subarray(j * width, (j + 1) * width);
      let dot = 0;
      for (let k = 0; k < width; k++) dot += row[k] * own[k];
      return dot / (length(row) * length(own) || 1);
    });
  }

  // Weights of one head over class tokens and patches; "mean" is the mean of all heads.
  function attention(scale, layer, head) {
    const { q, k, allowed, heads, width, extra } = layer, total = extra + count(scale), row = extra + state.row;
    if (head === "mean") {
      const all = Array.from({ length: heads }, (_, h) => attention(scale, layer, h));
      return all[0].map((_, j) => all.reduce((sum, one) => sum + one[j], 0) / heads);
    }
    const at = (h, token) => (h * total + token) * width;
    const logits = Float32Array.from({ length: total }, (_, j) => {
      if (allowed && !((allowed[(row * total + j) >> 3] >> (7 - ((row * total + j) & 7))) & 1)) return -Infinity;
      let dot = 0;
      for (let c = 0; c < width; c++) dot += q[at(head, row) + c] * k[at(head, j) + c];
      return dot;
    });
    const most = Math.max(...logits), powers = logits.map((v) => Math.exp(v - most)), sum = powers.reduce((a, b) => a + b, 0);
    return powers.map((v) => v / sum);
  }

  function layersOf(scale) {
    if (!scale.layers && scale.packed.layers) {
      scale.layers = scale.packed.layers.map((one) => ({
        q: halves(one.q), k: halves(one.k), heads: one.heads, width: one.width, extra: one.extra, allowed: one.allowed ? view.bytes(one.allowed) : null,
      }));
    }
    return scale.layers;
  }

  function options(select, entries) {
    const before = select.value;
    select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
    if (entries.some(([value]) => String(value) === before)) select.value = before;
    select.disabled = entries.length < 1;
  }

  const number = (v) => v.toPrecision(2);
  function legend(text, low, high) {
    control("low").textContent = low;
    control("high").textContent = high;
    control("ramp").hidden = low === "";
    control("legend").textContent = text;
  }

  function update() {
    const show = control("show").value, scales = clouds[state.cloud].scales, scale = scales[state.scale];
    const packed = scale.packed.layers || [];
    options(control("layer"), packed.map((_, i) => [i, String(i)]));
    const heads = packed.length ? packed[0].heads : 0;
    options(control("head"), heads ? [["mean", "mean"], ...Array.from({ length: heads }, (_, i) => [i, String(i)])] : []);
    const name = `patch ${scale.packed.index[state.row]} of ${data.clouds[state.cloud].name}, scale ${state.scale}`;
    let weights = null, extra = 0;
    if (show === "attention" && packed.length) {
      const head = control("head").value;
      const layer = layersOf(scale)[Number(control("layer").value)];
      weights = attention(scale, layer, head === "mean" ? head : Number(head));
      extra = layer.extra;
    }
    for (const [index, cloud] of clouds.entries()) {
      const own = cloud.scales[state.scale], mark = index === state.cloud && show !== "features" ? state.row : -1;
      if (show === "similarity") paint(cloud, own, similarity(cloud).map((v) => (v + 1) / 2), null, mark);
      else if (show === "hidden" && own.masked) paint(cloud, own, own.masked, null, mark);
      else if (show === "attention" && weights && index === state.cloud) {
        const patches = weights.slice(extra), most = Math.max(...patches);
        paint(cloud, own, patches.map((v) => v / (most || 1)), null, mark);
      } else if (show === "attention") cloud.painted.forEach((shown) => { shown.paint = new Uint8Array(3 * shown.n).map((_, i) => GREY[i % 3]); });
      else paint(cloud, own, null, own.colors, -1);
    }
    if (show === "similarity") legend(`cosine with ${name}`, "\u22121", "1");
    else if (show === "hidden") legend(`hidden patches of scale ${state.scale}`, "visible", "hidden");
    else if (show === "attention" && weights) {
      const others = weights.slice(0, extra).reduce((a, b) => a + b, 0);
      const rest = extra ? `; tokens that are no patches ${number(others)}` : "";
      legend(`attention of ${name}, a share of 1${rest}`, "0", number(Math.max(...weights.slice(extra))));
    } else if (show === "attention") legend(`attention is not kept of ${data.clouds[state.cloud].name}; choose one of the first clouds`, "", "");
    else legend(`first three principal axes of scale ${state.scale} as red, green, blue; chosen: ${name}`, "", "");
    const parts = [state.cloud, state.scale, state.row, show, control("layer").value, control("head").value];
    view.link("view", parts.join(","));
    document.documentElement.dataset.view = parts.join(",");
    view.touch();
  }

  function nearestRow(scale, x, y, z) {
    const c = scale.centers;
    let best = 0, least = Infinity;
    for (let j = 0; j < count(scale); j++) {
      const apart = Math.hypot(c[3 * j] - x, c[3 * j + 1] - y, c[3 * j + 2] - z);
      if (apart < least) { least = apart; best = j; }
    }
    return best;
  }

  function choose(cloud, row) {
    state.cloud = cloud;
    state.row = row;
    if (control("show").value === "features" || control("show").value === "hidden") control("show").value = "similarity";
    update();
  }

  clouds.forEach((cloud, index) => {
    cloud.item.element.addEventListener("pick", ({ detail }) => {
      if (!cloud.painted.includes(detail.cloud)) return;
      const at = 3 * detail.point;
      choose(index, nearestRow(cloud.scales[state.scale], ...detail.cloud.xyz.subarray(at, at + 3)));
    });
    cloud.item.element.querySelector(".clouds").addEventListener("keydown", (event) => {
      const step = { ",": -1, ".": 1 }[event.key];
      if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
      const total = count(cloud.scales[state.scale]);
      choose(index, ((index === state.cloud ? state.row + step : 0) + total) % total);
    });
  });
  control("scale").addEventListener("input", () => {
    const before = clouds[state.cloud].scales[state.scale].centers.subarray(3 * state.row, 3 * state.row + 3);
    state.scale = Number(control("scale").value);
    state.row = nearestRow(clouds[state.cloud].scales[state.scale], ...before);
    update();
  });
  for (const name of ["show", "layer", "head"]) control(name).addEventListener("input", update);

  // A link restores what it was made of, as far as it fits this page.
  function restore() {
    const given = /^(\d+),(\d+),(\d+),(\w+),(\d*),(\w*)$/.exec(view.linked().get("view") || "");
    const scales = given && clouds[given[1]] && clouds[given[1]].scales;
    if (scales && scales[given[2]] && Number(given[3]) < count(scales[given[2]])) {
      [state.cloud, state.scale, state.row] = given.slice(1, 4).map(Number);
      control("show").value = given[4];
      if (!control("show").value) control("show").value = "features";
      control("scale").value = given[2];
      update();
      for (const [name, value] of [["layer", given[5]], ["head", given[6]]]) {
        if ([...control(name).options].some((option) => option.value === value)) control(name).value = value;
      }
    }
    update();
  }
  control("scale").value = state.scale;
  restore();
  addEventListener("hashchange", restore);
})();
