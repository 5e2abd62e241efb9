// Draws clouds as small shaded balls into canvases: `ballPainter(view, light).draw(...)`. One WebGL2 context, off the page, serves all
// canvases of it and is copied into them: browsers allow some 16 contexts, and one canvas below the whole page would lag behind when it
// scrolls and be missing on paper. Where there is no WebGL2, or only one that a processor emulates, which is slower, the same picture is
// made here. `2d` or `webgl2` behind the # of the address choose. Python twin: splat.py.
const ballPainter = (view, light) => {
  "use strict";
  const NEAREST = 0.2;  // to the eye; nearer points are not drawn
  const SMALLEST = 1.5;  // pixels of a radius; smaller balls leave holes
  const FOG = 0.42, AMBIENT = 0.58, DIFFUSE = 0.5;

  const VERTEX = `#version 300 es
    in vec3 place; in vec3 paint;
    uniform mat3 turn; uniform float eye, half_pixels, size, ball; uniform vec3 background;
    out vec3 color; out vec2 depth; out float round;
    void main() {
      vec3 p = turn * place;
      float grow = eye / max(eye - p.z, ${NEAREST});
      float radius = max(${SMALLEST}, ball * grow);
      color = mix(paint, background, clamp(0.5 - 0.5 * p.z, 0.0, 1.0) * ${FOG});
      depth = vec2(p.z, radius / half_pixels);
      round = clamp(radius - 1.0, 0.0, 1.0);
      gl_PointSize = 2.0 * radius;
      gl_Position = vec4(p.xy * grow * half_pixels * 2.0 / size, 0.0, p.z > eye - ${NEAREST} ? -1.0 : 1.0);
    }`;
  const FRAGMENT = `#version 300 es
    precision highp float;
    in vec3 color; in vec2 depth; in float round;
    uniform vec3 light;
    out vec4 made;
    void main() {
      vec2 q = 2.0 * gl_PointCoord - 1.0;
      float h = 1.0 - dot(q, q);
      if (h <= 0.0) discard;
      float z = sqrt(h);
      vec3 normal = mix(vec3(0.0, 0.0, 1.0), vec3(q.x, -q.y, z), round);
      float diffuse = max(0.0, dot(light, normal));
      made = vec4(color * (${AMBIENT} + ${DIFFUSE} * diffuse), 1.0);
      gl_FragDepth = clamp((4.0 - depth.x - depth.y * z) / 64.0, 0.0, 1.0);
    }`;

  // Rows of the rotation: right, up, towards the eye.
  function rotation({ yaw, pitch }) {
    const cosY = Math.cos(yaw), sinY = Math.sin(yaw), cosP = Math.cos(pitch), sinP = Math.sin(pitch);
    return [cosY, 0, sinY, sinP * sinY, cosP, -sinP * cosY, -cosP * sinY, sinP, cosP * cosY];
  }

  function webgl(emulated) {
    const canvas = document.createElement("canvas");
    const gl = canvas.getContext("webgl2", {
      alpha: false, antialias: false, powerPreference: "high-performance", failIfMajorPerformanceCaveat: !emulated,
    });
    if (!gl) return null;
    // Not every browser takes an emulated card for a caveat.
    const kind = gl.getExtension("WEBGL_debug_renderer_info");
    const name = kind ? gl.getParameter(kind.UNMASKED_RENDERER_WEBGL) : "";
    if (!emulated && /swiftshader|llvmpipe|softpipe|software|basic render/i.test(name)) return null;
    let at, buffers;
    function build() {
      const program = gl.createProgram();
      for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
        const shader = gl.createShader(kind);
        gl.shaderSource(shader, text);
        gl.compileShader(shader);
        gl.attachShader(program, shader);
      }
      gl.bindAttribLocation(program, 0, "place");
      gl.bindAttribLocation(program, 1, "paint");
      gl.linkProgram(program);
      if (!gl.getProgramParameter(program, gl.LINK_STATUS)) return false;
      gl.useProgram(program);
      gl.enable(gl.DEPTH_TEST);
      gl.enable(gl.SCISSOR_TEST);
      const names = ["turn", "eye", "half_pixels", "size", "ball", "background", "light"];
      at = Object.fromEntries(names.map((name) => [name, gl.getUniformLocation(program, name)]));
      buffers = new WeakMap();
      return true;
    }
    if (!build()) return null;
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", build);

    function bind(cloud) {
      let own = buffers.get(cloud);
      if (!own) {
        own = { array: gl.createVertexArray(), places: gl.createBuffer(), colors: gl.createBuffer(), version: -1 };
        buffers.set(cloud, own);
        gl.bindVertexArray(own.array);
        gl.bindBuffer(gl.ARRAY_BUFFER, own.places);
        gl.bufferData(gl.ARRAY_BUFFER, cloud.xyz, gl.STATIC_DRAW);
        gl.enableVertexAttribArray(0);
        gl.vertexAttribPointer(0, 3, gl.FLOAT, false, 0, 0);
        gl.bindBuffer(gl.ARRAY_BUFFER, own.colors);
        gl.enableVertexAttribArray(1);
        gl.vertexAttribPointer(1, 3, gl.UNSIGNED_BYTE, true, 0, 0);
      }
      gl.bindVertexArray(own.array);
      if (own.version !== cloud.version) {
        gl.bindBuffer(gl.ARRAY_BUFFER, own.colors);
        gl.bufferData(gl.ARRAY_BUFFER, cloud.rgb, gl.DYNAMIC_DRAW);
        own.version = cloud.version;
      }
    }

    return (context, cloud, camera, { size, count, ball, background }) => {
      if (gl.isContextLost()) return false;
      if (canvas.height < size) canvas.width = canvas.height = size;  // 300 by 150 at first
      gl.viewport(0, canvas.height - size, size, size);
      gl.scissor(0, canvas.height - size, size, size);
      const paper = background.map((v) => v / 255);
      gl.clearColor(...paper, 1);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      if (count) {
        bind(cloud);
        gl.uniformMatrix3fv(at.turn, true, rotation(camera));
        gl.uniform1f(at.eye, view.camera);
        gl.uniform1f(at.half_pixels, (size * view.margin * camera.zoom) / 2);
        gl.uniform1f(at.size, size);
        gl.uniform1f(at.ball, ball);
        gl.uniform3fv(at.background, paper);
        gl.uniform3fv(at.light, light);
        gl.drawArrays(gl.POINTS, 0, count);
      }
      context.drawImage(canvas, 0, 0, size, size, 0, 0, size, size);
      return true;
    };
  }

  // The pixels of a ball of radius r (in half pixels): offset, height towards the eye, shade.
  const balls = new Map();
  function ballOf(halfPixels) {
    if (!balls.has(halfPixels)) {
      const r = halfPixels / 2;
      const cells = [], round = Math.min(1, r - 1);  // balls of a few pixels have one shade, or they would be noise
      for (let y = -Math.ceil(r); y <= r; y++) {
        for (let x = -Math.ceil(r); x <= r; x++) {
          const h = 1 - (x * x + y * y) / (r * r);
          if (h <= 0) continue;
          const z = Math.sqrt(h);
          const diffuse = Math.max(0, round * (light[0] * x - light[1] * y) / r + light[2] * (1 + round * (z - 1)));
          cells.push(x, y, z * r, AMBIENT + DIFFUSE * diffuse);
        }
      }
      balls.set(halfPixels, Float32Array.from(cells));
    }
    return balls.get(halfPixels);
  }

  // Image and depth buffers are shared by all canvases of one size.
  const images = new Map();
  function imageOf(size, context) {
    if (!images.has(size)) {
      if (images.size > 6) images.clear();
      const image = context.createImageData(size, size);
      images.set(size, { image, pixels: new Uint32Array(image.data.buffer), depth: new Float32Array(size * size) });
    }
    return images.get(size);
  }

  function plain(context, cloud, camera, { size, count, ball, background }) {
    const { image, pixels, depth } = imageOf(size, context);
    const [br, bg, bb] = background, { xyz, rgb } = cloud;
    pixels.fill((255 << 24) | (bb << 16) | (bg << 8) | br);
    depth.fill(-1e9);
    const [rx, ry, rz, ux, uy, uz, nx, ny, nz] = rotation(camera);
    const half = (size * view.margin * camera.zoom) / 2, eye = view.camera;
    for (let i = 0; i < 3 * count; i += 3) {
      const x = xyz[i], y = xyz[i + 1], z = xyz[i + 2];
      const near = nx * x + ny * y + nz * z;
      if (near > eye - NEAREST) continue;
      const grow = eye / (eye - near);
      const column = Math.round(size / 2 + (rx * x + ry * y + rz * z) * grow * half);
      const row = Math.round(size / 2 - (ux * x + uy * y + uz * z) * grow * half);
      const cells = ballOf(Math.max(2 * SMALLEST, Math.round(2 * ball * grow)));
      const fog = Math.max(0, Math.min(1, 0.5 - 0.5 * near)) * FOG;
      const r = rgb[i] + (br - rgb[i]) * fog, g = rgb[i + 1] + (bg - rgb[i + 1]) * fog, b = rgb[i + 2] + (bb - rgb[i + 2]) * fog;
      const base = near * half;
      for (let c = 0; c < cells.length; c += 4) {
        const px = column + cells[c], py = row + cells[c + 1];
        if (px < 0 || py < 0 || px >= size || py >= size) continue;
        const at = py * size + px, height = base + cells[c + 2];
        if (height <= depth[at]) continue;
        depth[at] = height;
        const shade = cells[c + 3];
        pixels[at] = (255 << 24) | (Math.min(255, b * shade) << 16) | (Math.min(255, g * shade) << 8) | Math.min(255, r * shade);
      }
    }
    context.putImageData(image, 0, 0);
  }

  const [, chosen] = /[#&](2d|webgl2)\b/.exec(location.hash) || [];
  const fast = chosen === "2d" ? null : webgl(chosen === "webgl2");
  // `cloud` has xyz, rgb and a version that changes with rgb; `shot` the side of the canvas, how many points, the radius of a ball in
  // the middle, in pixels, and the background. Returns how it was drawn.
  function draw(canvas, cloud, camera, shot) {
    if (canvas.width !== shot.size) canvas.width = canvas.height = shot.size;
    const context = canvas.getContext("2d", { alpha: false });
    if (fast && fast(context, cloud, camera, shot)) return "webgl2";
    plain(context, cloud, camera, shot);
    return "2d";
  }
  return { draw, rotation };
};
