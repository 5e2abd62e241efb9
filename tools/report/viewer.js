// Turnable point clouds. The clouds of one row turn together, on request those of all rows; only rows that are on the screen and have
// changed are drawn (balls.js). The address follows the view, so that a copied link opens it.
(() => {
  "use strict";
  const block = document.getElementById("gallery-data");
  if (!block) return;
  const data = JSON.parse(block.textContent);
  const control = (name) => document.getElementById("view-" + name);
  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const scales = Object.fromEntries(Object.entries(data.scales).map(([name, colors]) => [name, colors.map(rgb)]));
  const { draw: drawBalls, rotation } = ballPainter(data.view, data.light);
  const BALL = 0.014;  // radius as a share of the side
  const DENSE = 8192;  // clouds with more points have smaller balls, and are thinned while they move if this computer is slow
  const MAX_PIXELS = 1100;
  const REST = 180;  // milliseconds after the last movement until all is drawn as well as can be

  function bytes(text) {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }

  // 256 colours from the anchors of a scale.
  const ramp = (anchors) =>
    Array.from({ length: 256 }, (_, i) => {
      const at = (i / 255) * (anchors.length - 1);
      const low = Math.min(Math.floor(at), anchors.length - 2);
      return anchors[low].map((v, c) => v + (anchors[low + 1][c] - v) * (at - low));
    });
  const heightRamp = ramp(scales.height);
  const valueRamp = ramp(scales.value);

  const items = data.items.map((packed, index) => {
    const element = document.querySelectorAll(".item")[index];
    const cells = element.querySelectorAll(".cloud");
    const places = [];  // clouds of a row may have the same points
    const clouds = packed.clouds.map((cloud, column) => {
      const count = cells[column].querySelector(".count");
      places.push(cloud.xyz === undefined ? places[cloud.same]
        : Float32Array.from(new Int16Array(bytes(cloud.xyz).buffer), (v) => v * packed.unit));
      return {
        xyz: places[column],
        n: cloud.n, dense: cloud.dense, column, rgb: new Uint8Array(3 * cloud.n), version: 0, stale: true,
        values: cloud.values ? bytes(cloud.values) : null,
        frames: (cloud.frames || []).map(([label, values]) => ({ label, values: bytes(values) })),
        canvas: cells[column].querySelector("canvas"), label: cells[column].querySelector(".frame"), count, countText: count.textContent,
      };
    });
    let low = Infinity, high = -Infinity;
    const first = clouds.length ? clouds[0].xyz : [];
    for (let i = 1; i < first.length; i += 3) { low = Math.min(low, first[i]); high = Math.max(high, first[i]); }
    if (!(high > low)) { low = -1; high = 1; }
    return { element, clouds, low, high, categories: packed.categories, index,
      hasValues: clouds.some((cloud) => cloud.values), onScreen: false, dirty: true, rough: false,
      yaw: data.view.yaw, pitch: data.view.pitch, zoom: packed.fit, fit: packed.fit };
  });

  let background = [255, 255, 255];
  function readTheme() {
    const probe = getComputedStyle(document.documentElement).getPropertyValue("--stage").trim();
    if (/^#[0-9a-f]{6}$/i.test(probe)) background = rgb(probe);
    touchAll();
  }

  const frameOf = (cloud) => cloud.frames[Math.min(Number(control("frame").value), cloud.frames.length - 1)];

  // Bring the colours of the points up to date.
  function colorize(item, cloud, mode) {
    const { rgb: out, n } = cloud;
    const values = cloud.frames.length ? frameOf(cloud).values : cloud.values;
    let colorAt;
    if (mode === "paint" && cloud.paint) colorAt = null;
    else if ((mode === "value" || mode === "paint") && item.hasValues) {
      if (!values) colorAt = () => scales.cloud[0];
      else if (item.categories) colorAt = (i) => scales.category[values[i] % scales.category.length];
      else colorAt = (i) => valueRamp[values[i]];
    } else if (mode === "cloud") colorAt = () => scales.cloud[cloud.column % scales.cloud.length];
    else {
      const step = 255 / (item.high - item.low);
      colorAt = (i) => heightRamp[Math.max(0, Math.min(255, Math.round((cloud.xyz[3 * i + 1] - item.low) * step)))];
    }
    if (!colorAt) out.set(cloud.paint);
    else {
      for (let i = 0; i < n; i++) {
        const color = colorAt(i);
        out[3 * i] = color[0]; out[3 * i + 1] = color[1]; out[3 * i + 2] = color[2];
      }
    }
    if (cloud.label) cloud.label.textContent = mode === "value" ? frameOf(cloud).label : "";
    cloud.stale = false;
    cloud.version++;
  }

  // `share` is the part of a large cloud that is drawn, `coarse` leaves out the smoothing.
  function draw(item, cloud, share, coarse) {
    const width = cloud.canvas.clientWidth;
    if (!width) return;
    if (cloud.stale) colorize(item, cloud, control("color").value);
    // Twice the resolution of the page smooths the edges of the balls.
    const size = Math.min(MAX_PIXELS, Math.round(width * Math.max(2, window.devicePixelRatio || 1))) >> (coarse ? 1 : 0);
    const equal = control("equal");
    const full = equal && equal.checked && !cloud.dense && item.clouds[0].n ? Math.min(cloud.n, item.clouds[0].n) : cloud.n;
    cloud.count.textContent = full < cloud.n ? `${full.toLocaleString("en")} of ${cloud.countText}` : cloud.countText;
    const count = Math.min(full, Math.max(DENSE, Math.round(full * share)));
    if (count < full || coarse) item.rough = true;
    const thin = Math.min(1, Math.sqrt(DENSE / (count || 1)));
    const ball = BALL * size * Number(control("size").value) * thin * Math.sqrt(item.zoom);
    const kind = drawBalls(cloud.canvas, cloud, item, { size, count, ball, background });
    document.documentElement.dataset.renderer = kind;
  }

  // The point of a cloud that is drawn nearest to a place of its canvas, in shares of its side; of those within a ball the front one.
  function pick(item, cloud, left, top) {
    const [rx, ry, rz, ux, uy, uz, nx, ny, nz] = rotation(item);
    const half = (data.view.margin * item.zoom) / 2, eye = data.view.camera;
    let best = -1, least = Infinity;
    for (let i = 0; i < cloud.n; i++) {
      const x = cloud.xyz[3 * i], y = cloud.xyz[3 * i + 1], z = cloud.xyz[3 * i + 2];
      const near = nx * x + ny * y + nz * z, grow = (eye / (eye - near)) * half;
      const across = 0.5 + (rx * x + ry * y + rz * z) * grow - left, down = 0.5 - (ux * x + uy * y + uz * z) * grow - top;
      const apart = Math.sqrt(across * across + down * down);
      const cost = apart <= 1.5 * BALL ? -10 - near : apart;
      if (near < eye - 0.2 && cost < least) { least = cost; best = i; }
    }
    return least < 0.08 ? best : -1;
  }

  let scheduled = false, last = 0, moved = -Infinity, fresh = false, dragged = null;
  let share = 1, slow = false;  // what this computer can draw in time
  const spinning = () => control("spin").checked;
  function request() {
    if (!scheduled) { scheduled = true; requestAnimationFrame(frame); }
  }
  function frame(now) {
    scheduled = false;
    const moving = spinning() || fresh || now - moved < REST;
    fresh = false;
    const took = last ? now - last : 0;
    let drawn = false;
    for (const item of items) {
      if (took && spinning() && item !== dragged) { item.yaw += Math.min(took, 100) * 0.0005; item.dirty = true; }
      if (item.rough && !moving) item.dirty = true;
      if (!item.onScreen || !item.dirty) continue;
      item.dirty = item.rough = false;
      item.clouds.forEach((cloud) => draw(item, cloud, moving ? share : 1, moving && slow));
      drawn = true;
    }
    // Aim at 30 frames a second, and at all points.
    if (moving && drawn && took) share = Math.max(0.01, Math.min(1, share * Math.max(0.3, Math.min(1.2, 33 / took))));
    if (share < 0.3) slow = true;
    last = moving ? now : 0;
    if (moving && items.some((item) => item.onScreen)) request();
  }
  function touchAll() { items.forEach((item) => { item.dirty = true; }); request(); }
  function recolor() { items.forEach((item) => item.clouds.forEach((cloud) => { cloud.stale = true; })); touchAll(); }

  let touched = 0;  // the row that a link goes to
  function setView(item, yaw, pitch, zoom) {
    pitch = Math.max(-Math.PI / 2, Math.min(Math.PI / 2, pitch));
    zoom = Math.max(0.4, Math.min(8, zoom));
    for (const other of control("link").checked ? items : [item]) {
      Object.assign(other, { yaw, pitch, zoom: (zoom / item.fit) * other.fit, dirty: true });
    }
    touched = item.index;
    moved = performance.now();
    fresh = true;
    request();
    remember();
  }
  const turnBy = (item, dx, dy) => setView(item, item.yaw + dx, item.pitch + dy, item.zoom);
  const zoomBy = (item, factor) => setView(item, item.yaw, item.pitch, item.zoom * factor);
  const reset = (item) => setView(item, data.view.yaw, data.view.pitch, item.fit);

  function stepFrame(step) {
    control("frame").value = Number(control("frame").value) + step;
    control("frame").dispatchEvent(new Event("input"));
  }

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
      const other = [...pointers.values()].find((p) => p.pointerId !== event.pointerId);
      if (other) {
        const apart = (p) => Math.hypot(p.clientX - other.clientX, p.clientY - other.clientY) || 1;
        zoomBy(item, apart(event) / apart(before));
      }
      const speed = other ? 0.005 : 0.01;  // of two fingers each turns by half
      turnBy(item, (event.clientX - before.clientX) * speed, (event.clientY - before.clientY) * speed);
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
    // One finger turns to the side and scrolls the page up and down; two are for the cloud alone.
    for (const name of ["touchstart", "touchmove"]) {
      stage.addEventListener(name, (event) => { if (event.touches.length > 1) event.preventDefault(); }, { passive: false });
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
    if (control("frame")) Object.assign(keys, { ",": () => stepFrame(-1), ".": () => stepFrame(1) });
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

  // The link: behind the # of the address is what differs from the first view, and what other scripts of the page add.
  const choices = ["color", "size", "frame"].map(control).filter(Boolean), switches = ["equal", "link"].map(control).filter(Boolean);
  const short = (element) => element.id.slice("view-".length);
  const first = new Map([...choices.map((one) => [one, one.value]), ...switches.map((one) => [one, one.checked])]);
  const added = new Map();
  const isFirst = (item) => item.yaw === data.view.yaw && item.pitch === data.view.pitch && item.zoom === item.fit;
  let waiting = 0;
  // Browsers refuse an address that changes too often.
  function remember() { clearTimeout(waiting); waiting = setTimeout(writeLink, 250); }
  function writeLink() {
    const parts = [...added];
    for (const one of choices) if (one.value !== first.get(one)) parts.push([short(one), one.value]);
    for (const one of switches) if (one.checked !== first.get(one)) parts.push([short(one), Number(one.checked)]);
    for (const item of control("link").checked ? [items[touched]] : items) {
      const name = control("link").checked ? "camera" : `camera${item.index}`;
      if (!isFirst(item)) parts.push([name, [item.yaw, item.pitch, item.zoom / item.fit].map((v) => Number(v.toFixed(3))).join(",")]);
    }
    if (touched) parts.push(["row", touched]);
    for (const kind of ["2d", "webgl2"]) if (linked().has(kind)) parts.push([kind, ""]);
    const text = parts.map(([name, value]) => (value === "" ? name : `${name}=${value}`)).join("&");
    history.replaceState(null, "", text ? "#" + text : location.pathname + location.search);
  }
  const linked = () => new URLSearchParams(location.hash.slice(1));
  function readLink() {
    const given = linked();
    for (const one of choices) {
      const value = given.get(short(one));
      if (value === null || (one.options && ![...one.options].some((option) => option.value === value))) continue;
      one.value = value;
    }
    for (const one of switches) if (given.has(short(one))) one.checked = given.get(short(one)) === "1";
    for (const item of items) {
      const camera = (given.get(`camera${item.index}`) || given.get("camera") || "").split(",").map(Number);
      if (camera.length !== 3 || !camera.every(Number.isFinite)) continue;
      const [yaw, pitch, zoom] = camera;
      Object.assign(item, { yaw, pitch: Math.max(-1.58, Math.min(1.58, pitch)), zoom: Math.max(0.1, Math.min(8, zoom)) * item.fit });
    }
    touched = items[Number(given.get("row"))] ? Number(given.get("row")) : 0;
    if (touched) items[touched].element.scrollIntoView();
    show();
  }

  // What follows from the controls beyond the clouds: legends, by the style sheet, and the label of a frame.
  function show() {
    document.querySelector(".items").closest("section").dataset.color = control("color").value;
    if (control("frame")) {
      const most = items.flatMap((item) => item.clouds).reduce((a, b) => (b.frames.length > a.frames.length ? b : a));
      control("frame-label").textContent = frameOf(most).label;
    }
    recolor();
  }

  // For scripts that colour points themselves: `paint` of a cloud is three bytes a point, "pick" the event of a click on a point;
  // `link` adds a part to the address, or with null takes it out, `linked` reads those of the address. `share` is the part of large clouds drawn while they move.
  window.galleryView = {
    items, touch: recolor, ramp: valueRamp, bytes, linked, setView, redraw: request, share: () => share,
    link: (name, value) => { if (value === null) added.delete(name); else added.set(name, value); remember(); },
  };
  items.forEach(listen);
  for (const name of ["color", "frame"]) control(name)?.addEventListener("input", () => { show(); remember(); });
  for (const name of ["size", "equal", "link", "spin"]) control(name)?.addEventListener("input", () => { touchAll(); remember(); });
  control("frame")?.addEventListener("input", () => { if (control("color").value !== "value") { control("color").value = "value"; show(); } });
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
  addEventListener("hashchange", readLink);
  // Paper is white, and the print style is not in force yet when this event comes.
  addEventListener("beforeprint", () => {
    background = [255, 255, 255];
    items.forEach((item) => { item.dirty = false; item.clouds.forEach((cloud) => draw(item, cloud, 1, false)); });
  });
  addEventListener("afterprint", readTheme);
  readLink();
  readTheme();
})();
