// Turnable point clouds: every point a small shaded ball, drawn into a canvas with a depth buffer. The clouds of one row turn
// together. Only rows that are on the screen and have changed are drawn. The Python twin is splat.py.
(() => {
  "use strict";
  const block = document.getElementById("gallery-data");
  if (!block) return;
  const data = JSON.parse(block.textContent);
  const control = (name) => document.getElementById("view-" + name);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const scales = Object.fromEntries(Object.entries(data.scales).map(([name, colors]) => [name, colors.map(rgb)]));
  const BALL = 0.014;
  const MAX_PIXELS = 1100;

  // 256 colours from the anchors of a scale.
  const ramp = (anchors) =>
    Array.from({ length: 256 }, (_, i) => {
      const at = (i / 255) * (anchors.length - 1);
      const low = Math.min(Math.floor(at), anchors.length - 2);
      return anchors[low].map((v, c) => v + (anchors[low + 1][c] - v) * (at - low));
    });
  const heightRamp = ramp(scales.height);
  const valueRamp = ramp(scales.value);

  // The pixels of a ball of radius r (in half pixels): offset, height towards the eye, shade.
  const balls = new Map();
  function ballOf(halfPixels) {
    if (!balls.has(halfPixels)) {
      const r = halfPixels / 2;
      const cells = [];
      for (let y = -Math.ceil(r); y <= r; y++) {
        for (let x = -Math.ceil(r); x <= r; x++) {
          const h = 1 - (x * x + y * y) / (r * r);
          if (h <= 0) continue;
          const z = Math.sqrt(h);
          const diffuse = Math.max(0, (data.light[0] * x - data.light[1] * y) / r + data.light[2] * z);
          cells.push(x, y, z * r, 0.58 + 0.5 * diffuse);
        }
      }
      balls.set(halfPixels, Float32Array.from(cells));
    }
    return balls.get(halfPixels);
  }

  const items = data.items.map((packed, index) => {
    const element = document.querySelectorAll(".item")[index];
    const canvases = element.querySelectorAll("canvas");
    const clouds = packed.clouds.map((cloud, column) => {
      const grid = new Int16Array(bytes(cloud.xyz).buffer);
      const xyz = Float32Array.from(grid, (v) => v * packed.unit);
      return {
        xyz, n: cloud.n, total: cloud.total, column,
        values: cloud.values ? bytes(cloud.values) : null,
        canvas: canvases[column],
        count: canvases[column].parentElement.querySelector(".count"),
        countText: canvases[column].parentElement.querySelector(".count").textContent,
      };
    });
    let low = Infinity, high = -Infinity;
    const first = clouds.length ? clouds[0].xyz : [];
    for (let i = 1; i < first.length; i += 3) { low = Math.min(low, first[i]); high = Math.max(high, first[i]); }
    if (!(high > low)) { low = -1; high = 1; }
    return { element, clouds, low, high, categories: packed.categories,
      hasValues: clouds.some((cloud) => cloud.values), onScreen: false, dirty: true,
      yaw: data.view.yaw, pitch: data.view.pitch, zoom: packed.fit, fit: packed.fit };
  });

  let background = [255, 255, 255];
  function readTheme() {
    const probe = getComputedStyle(document.documentElement).getPropertyValue("--stage").trim();
    if (/^#[0-9a-f]{6}$/i.test(probe)) background = rgb(probe);
    touchAll();
  }

  // Image and depth buffers are shared by all canvases of one size.
  const buffers = new Map();
  function bufferOf(size, context) {
    if (!buffers.has(size)) {
      if (buffers.size > 6) buffers.clear();
      const image = context.createImageData(size, size);
      buffers.set(size, { image, pixels: new Uint32Array(image.data.buffer), depth: new Float32Array(size * size) });
    }
    return buffers.get(size);
  }

  function colorOf(item, cloud, mode, i) {
    if (mode === "paint" && cloud.paint) return [cloud.paint[3 * i], cloud.paint[3 * i + 1], cloud.paint[3 * i + 2]];
    if ((mode === "value" || mode === "paint") && item.hasValues) {
      if (!cloud.values) return scales.cloud[0];
      const value = cloud.values[i];
      return item.categories ? scales.category[value % scales.category.length] : valueRamp[value];
    }
    if (mode === "cloud") return scales.cloud[cloud.column % scales.cloud.length];
    const at = (cloud.xyz[3 * i + 1] - item.low) / (item.high - item.low);
    return heightRamp[Math.max(0, Math.min(255, Math.round(at * 255)))];
  }

  function draw(item, cloud) {
    const width = cloud.canvas.clientWidth;
    if (!width) return;
    // Twice the resolution of the page smooths the edges of the balls.
    const size = Math.min(MAX_PIXELS, Math.round(width * Math.max(2, window.devicePixelRatio || 1)));
    if (cloud.canvas.width !== size) cloud.canvas.width = cloud.canvas.height = size;
    const context = cloud.canvas.getContext("2d");
    const { image, pixels, depth } = bufferOf(size, context);
    const [br, bg, bb] = background;
    pixels.fill((255 << 24) | (bb << 16) | (bg << 8) | br);
    depth.fill(-1e9);
    const equal = control("equal");
    const count = equal && equal.checked && item.clouds[0].n ? Math.min(cloud.n, item.clouds[0].n) : cloud.n;
    cloud.count.textContent = count < cloud.n ? `${count.toLocaleString("en")} of ${cloud.countText}` : cloud.countText;
    const mode = control("color").value;
    const cosY = Math.cos(item.yaw), sinY = Math.sin(item.yaw), cosP = Math.cos(item.pitch), sinP = Math.sin(item.pitch);
    const half = (size * data.view.margin * item.zoom) / 2;
    const eye = data.view.camera;
    const ball = BALL * size * Number(control("size").value) * Math.sqrt(item.zoom);
    for (let i = 0; i < count; i++) {
      const x = cloud.xyz[3 * i], y = cloud.xyz[3 * i + 1], z = cloud.xyz[3 * i + 2];
      const across = cosY * x + sinY * z, away = cosY * z - sinY * x;
      const up = cosP * y - sinP * away, near = sinP * y + cosP * away;
      if (near > eye - 0.2) continue;
      const grow = eye / (eye - near);
      const column = Math.round(size / 2 + across * grow * half), row = Math.round(size / 2 - up * grow * half);
      const cells = ballOf(Math.max(2, Math.round(2 * ball * grow)));
      const fog = Math.max(0, Math.min(1, 0.5 - 0.5 * near)) * 0.42;
      const [r, g, b] = colorOf(item, cloud, mode, i);
      const base = near * half;
      for (let c = 0; c < cells.length; c += 4) {
        const px = column + cells[c], py = row + cells[c + 1];
        if (px < 0 || py < 0 || px >= size || py >= size) continue;
        const at = py * size + px, height = base + cells[c + 2];
        if (height <= depth[at]) continue;
        depth[at] = height;
        const shade = cells[c + 3];
        const red = Math.min(255, (r + (br - r) * fog) * shade);
        const green = Math.min(255, (g + (bg - g) * fog) * shade);
        const blue = Math.min(255, (b + (bb - b) * fog) * shade);
        pixels[at] = (255 << 24) | (blue << 16) | (green << 8) | red;
      }
    }
    context.putImageData(image, 0, 0);
  }

  // The point of a cloud that is drawn nearest to a place of its canvas, in shares of its side; of those within a ball the front one.
  function pick(item, cloud, left, top) {
    const cosY = Math.cos(item.yaw), sinY = Math.sin(item.yaw), cosP = Math.cos(item.pitch), sinP = Math.sin(item.pitch);
    const half = (data.view.margin * item.zoom) / 2, eye = data.view.camera;
    let best = -1, least = Infinity;
    for (let i = 0; i < cloud.n; i++) {
      const x = cloud.xyz[3 * i], y = cloud.xyz[3 * i + 1], z = cloud.xyz[3 * i + 2];
      const across = cosY * x + sinY * z, away = cosY * z - sinY * x;
      const up = cosP * y - sinP * away, near = sinP * y + cosP * away;
      const grow = eye / (eye - near);
      const apart = Math.hypot(0.5 + across * grow * half - left, 0.5 - up * grow * half - top);
      const cost = apart <= 1.5 * BALL ? -10 - near : apart;
      if (near < eye - 0.2 && cost < least) { least = cost; best = i; }
    }
    return least < 0.08 ? best : -1;
  }

  let scheduled = false, last = 0;
  const spinning = () => control("spin").checked;
  function request() {
    if (!scheduled) { scheduled = true; requestAnimationFrame(frame); }
  }
  function frame(now) {
    scheduled = false;
    const turn = spinning() && last ? Math.min(now - last, 100) * 0.0005 : 0;
    last = spinning() ? now : 0;
    for (const item of items) {
      if (turn && item !== dragged) { item.yaw += turn; item.dirty = true; }
      if (item.onScreen && item.dirty) { item.dirty = false; item.clouds.forEach((cloud) => draw(item, cloud)); }
    }
    if (spinning() && items.some((item) => item.onScreen)) request();
  }
  function touchAll() { items.forEach((item) => { item.dirty = true; }); request(); }

  function setView(item, yaw, pitch, zoom) {
    pitch = Math.max(-Math.PI / 2, Math.min(Math.PI / 2, pitch));
    zoom = Math.max(0.4, Math.min(8, zoom));
    for (const other of control("link").checked ? items : [item]) {
      Object.assign(other, { yaw, pitch, zoom: (zoom / item.fit) * other.fit, dirty: true });
    }
    request();
  }
  const turnBy = (item, dx, dy) => setView(item, item.yaw + dx, item.pitch + dy, item.zoom);
  const zoomBy = (item, factor) => setView(item, item.yaw, item.pitch, item.zoom * factor);
  const reset = (item) => setView(item, data.view.yaw, data.view.pitch, item.fit);

  let dragged = null;
  function listen(item) {
    const stage = item.element.querySelector(".clouds");
    const pointers = new Map();
    let pressed = null;
    stage.addEventListener("pointerdown", (event) => {
      if (event.button > 0) return;
      pressed = pointers.size ? null : event;
      pointers.set(event.pointerId, event);
      stage.setPointerCapture(event.pointerId);
      dragged = item;
    });
    stage.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      const others = [...pointers.values()].filter((p) => p.pointerId !== event.pointerId);
      if (others.length) {
        const apart = (p) => Math.hypot(p.clientX - others[0].clientX, p.clientY - others[0].clientY) || 1;
        zoomBy(item, apart(event) / apart(before));
      } else {
        turnBy(item, (event.clientX - before.clientX) * 0.01, (event.clientY - before.clientY) * 0.01);
      }
      pointers.set(event.pointerId, event);
    });
    stage.addEventListener("pointerup", (event) => {
      const cloud = pressed && item.clouds.find((other) => other.canvas === pressed.target);
      if (!cloud || Math.hypot(event.clientX - pressed.clientX, event.clientY - pressed.clientY) > 4) return;
      const box = cloud.canvas.getBoundingClientRect();
      const point = pick(item, cloud, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
      if (point >= 0) item.element.dispatchEvent(new CustomEvent("pick", { detail: { cloud, point } }));
    });
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
      stage.addEventListener(name, (event) => {
        pointers.delete(event.pointerId);
        if (!pointers.size && dragged === item) { dragged = null; request(); }
      });
    }
    stage.addEventListener("dblclick", () => reset(item));
    // The wheel scrolls the page until a row has been chosen, or with Ctrl, as for zooming a page.
    stage.addEventListener("wheel", (event) => {
      if (document.activeElement !== stage && !event.ctrlKey) return;
      event.preventDefault();
      zoomBy(item, Math.exp(-event.deltaY * (event.deltaMode ? 0.03 : 0.0015)));
    }, { passive: false });
    const keys = {
      ArrowLeft: () => turnBy(item, -0.12, 0), ArrowRight: () => turnBy(item, 0.12, 0),
      ArrowUp: () => turnBy(item, 0, -0.12), ArrowDown: () => turnBy(item, 0, 0.12),
      "+": () => zoomBy(item, 1.15), "=": () => zoomBy(item, 1.15), "-": () => zoomBy(item, 1 / 1.15), 0: () => reset(item),
    };
    stage.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
    });
    item.element.querySelector(".enlarge").addEventListener("click", (event) => {
      const large = item.element.classList.toggle("large");
      event.target.setAttribute("aria-pressed", large);
      event.target.textContent = large ? "shrink" : "enlarge";
      item.element.scrollIntoView({ block: "start" });  // its margin keeps the title free of the controls
    });
  }

  // For scripts that colour points themselves: `paint` of a cloud is three bytes a point, "pick" the event of a click on a point.
  window.galleryView = { items, touch: touchAll, ramp: valueRamp, bytes };
  items.forEach(listen);
  for (const name of ["color", "size", "equal", "link", "spin"]) control(name)?.addEventListener("input", touchAll);
  control("reset").addEventListener("click", () => items.forEach(reset));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) items.find((item) => item.element === entry.target).onScreen = entry.isIntersecting;
    request();
  }, { rootMargin: "150px" });
  const sizes = new ResizeObserver((entries) => {
    for (const entry of entries) items.find((item) => item.element === entry.target).dirty = true;
    request();
  });
  items.forEach((item) => { watcher.observe(item.element); sizes.observe(item.element); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", readTheme);
  // Paper is white, and the print style is not in force yet when this event comes.
  addEventListener("beforeprint", () => {
    background = [255, 255, 255];
    items.forEach((item) => { item.dirty = false; item.clouds.forEach((cloud) => draw(item, cloud)); });
  });
  addEventListener("afterprint", readTheme);
  readTheme();
})();
