(function () {
  "use strict";
  const EYES = { left: [-1, 0, 0], right: [1, 0, 0], front: [0, 1, 0], behind: [0, -1, 0], above: [0, 0, 1], below: [0, 0, -1], oblique: [-0.62, 0.62, 0.48] };

  const MARGIN = 12; // mm around the box, for the letters
  const ZOOM = 1.9;

  function buffer(text) {
    const raw = atob(text);
    const out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out.buffer;
  }

  function camera(name) {
    const e = EYES[name];
    const flat = e[0] === 0 && e[1] === 0;
    return { eye: { x: 1.25 * e[0], y: 1.25 * e[1], z: 1.25 * e[2] }, center: { x: 0, y: 0, z: 0 },
             up: flat ? { x: 0, y: 1, z: 0 } : { x: 0, y: 0, z: 1 }, projection: { type: "orthographic" } };
  }

  // All streamlines are one trace, broken by nulls: one trace each would be far too slow.
  function lines(data) {
    const raw = new Int16Array(buffer(data.points));
    const x = [], y = [], z = [], colour = [];
    let at = 0;
    for (const count of data.counts) {
      for (let p = 0; p < count; p++) {
        const i = 3 * (at + p), j = 3 * (at + Math.max(p - 1, 0)), k = 3 * (at + Math.min(p + 1, count - 1));
        const d = [Math.abs(raw[k] - raw[j]), Math.abs(raw[k + 1] - raw[j + 1]), Math.abs(raw[k + 2] - raw[j + 2])];
        const norm = Math.hypot(d[0], d[1], d[2]) || 1;
        x.push(raw[i] * data.unit + data.centre[0]);
        y.push(raw[i + 1] * data.unit + data.centre[1]);
        z.push(raw[i + 2] * data.unit + data.centre[2]);
        colour.push("rgb(" + d.map(function (v) { return Math.round(255 * v / norm); }).join(",") + ")");
      }
      x.push(null); y.push(null); z.push(null); colour.push("rgb(0,0,0)");
      at += count;
    }
    return { type: "scatter3d", mode: "lines", x: x, y: y, z: z, line: { width: 2, color: colour }, hoverinfo: "skip", showlegend: false };
  }

  function slice(part) {
    const pixels = new Uint8Array(buffer(part.pixels));
    const [rows, columns] = part.shape;
    const grids = [[], [], []], shade = [];
    for (let r = 0; r < rows; r++) {
      const line = [[], [], []], tones = [];
      for (let c = 0; c < columns; c++) {
        for (let axis = 0; axis < 3; axis++) line[axis].push(part.corner[axis] + r * part.down[axis] + c * part.across[axis]);
        tones.push(pixels[r * columns + c]);
      }
      for (let axis = 0; axis < 3; axis++) grids[axis].push(line[axis]);
      shade.push(tones);
    }
    return { type: "surface", x: grids[0], y: grids[1], z: grids[2], surfacecolor: shade, cmin: 0, cmax: 255, colorscale: [[0, "rgb(0,0,0)"], [1, "rgb(190,190,190)"]],
             showscale: false, hoverinfo: "skip", contours: { x: { highlight: false }, y: { highlight: false }, z: { highlight: false } },
             lighting: { ambient: 1, diffuse: 0, specular: 0 }, visible: part.shown };
  }

  function letters(box) {
    const c = box.lower.map(function (low, i) { return (low + box.upper[i]) / 2; });
    const m = 0.6 * MARGIN;
    return { type: "scatter3d", mode: "text", hoverinfo: "skip", showlegend: false,
             x: [box.lower[0] - m, box.upper[0] + m, c[0], c[0], c[0], c[0]],
             y: [c[1], c[1], box.lower[1] - m, box.upper[1] + m, c[1], c[1]],
             z: [c[2], c[2], c[2], c[2], box.lower[2] - m, box.upper[2] + m],
             text: ["L", "R", "P", "A", "I", "S"], textfont: { size: 18, color: "#ffd54a" } };
  }

  function supported() {
    try {
      const canvas = document.createElement("canvas");
      return Boolean(canvas.getContext("webgl") || canvas.getContext("experimental-webgl"));
    } catch (error) {
      return false;
    }
  }

  function draw(viewer) {
    const plot = viewer.querySelector(".viewer3d-plot");
    if (!supported()) {
      plot.innerHTML = "<p>This browser has no WebGL: see the still views above.</p>";
      return;
    }
    const data = JSON.parse(viewer.querySelector("script").textContent);
    const slices = data.slices.map(slice);
    const traces = slices.concat([lines(data), letters(data.box)]);
    const size = data.box.upper.map(function (high, i) { return high - data.box.lower[i] + 2 * MARGIN; });
    const longest = Math.max(...size);
    const ratio = { x: ZOOM * size[0] / longest, y: ZOOM * size[1] / longest, z: ZOOM * size[2] / longest };
    const range = function (i) { return [data.box.lower[i] - MARGIN, data.box.upper[i] + MARGIN]; };
    const axis = function (i) { return { visible: false, showspikes: false, range: range(i) }; };
    const layout = { margin: { l: 0, r: 0, t: 0, b: 0 }, paper_bgcolor: "#000", showlegend: false,
                     scene: { xaxis: axis(0), yaxis: axis(1), zaxis: axis(2), aspectmode: "manual", aspectratio: ratio, dragmode: "orbit", camera: camera("oblique") } };
    const options = { displaylogo: false, responsive: true, scrollZoom: true, modeBarButtons: [["toImage", "zoom3d", "pan3d", "orbitRotation", "resetCameraDefault3d"]] };
    plot.textContent = "";
    Plotly.newPlot(plot, traces, layout, options).then(function () { viewer.dataset.state = "drawn"; });
    for (const button of viewer.querySelectorAll("button")) {
      button.addEventListener("click", function () { Plotly.relayout(plot, { "scene.camera": camera(button.dataset.view) }); });
    }
    viewer.querySelectorAll("input").forEach(function (box, index) {
      box.addEventListener("change", function () { Plotly.restyle(plot, { visible: box.checked }, [index]); });
    });
  }

  // A browser keeps only a few WebGL contexts alive: draw a view when it is about to be seen.
  const watch = new IntersectionObserver(function (entries) {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        watch.unobserve(entry.target);
        draw(entry.target);
      }
    }
  }, { rootMargin: "300px" });
  for (const viewer of document.querySelectorAll(".viewer3d")) watch.observe(viewer);
})();
