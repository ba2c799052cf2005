"use strict";
// The atoms that can be turned, and the buttons that copy. Nothing is fetched.
(() => {
  document.documentElement.classList.add("scripted");

  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(source.textContent);
      } catch {
        const range = document.createRange(); // where the browser keeps the clipboard to itself
        range.selectNodeContents(source);
        const selection = window.getSelection();
        selection.removeAllRanges();
        selection.addRange(range);
        document.execCommand("copy");
      }
      const words = button.textContent;
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = words; }, 1500);
    });
  }

  const holder = document.getElementById("scene-data");
  const canvas = document.getElementById("scene");
  if (!holder || !canvas || !canvas.getContext) return;
  const scene = JSON.parse(holder.textContent);
  const context = canvas.getContext("2d");
  const slider = document.getElementById("scene-xi");
  const shown = document.getElementById("scene-value");
  canvas.closest(".atoms").classList.add("live");
  const last = Math.max(...scene.atoms.map((atom) => atom.p.length)) - 1;
  let place = 0;
  // Rows are the screen's axes: right, up, towards the reader. Begin a little from above.
  let turn = multiply(rotation(0, -0.35), rotation(0.45, 0));

  function rotation(about_y, about_x) {
    const [cy, sy, cx, sx] =
      [Math.cos(about_y), Math.sin(about_y), Math.cos(about_x), Math.sin(about_x)];
    return [[cy, 0, sy], [sx * sy, cx, -sx * cy], [-cx * sy, sx, cx * cy]];
  }
  function multiply(a, b) {
    return a.map((row) => [0, 1, 2].map((j) => row[0] * b[0][j] + row[1] * b[1][j] + row[2] * b[2][j]));
  }
  function apply(p) {
    return turn.map((row) => row[0] * p[0] + row[1] * p[1] + row[2] * p[2]);
  }
  function at(atom, where) {
    if (atom.p.length === 1) return atom.p[0];
    const low = Math.min(Math.floor(where), last - 1), part = where - low;
    return atom.p[low].map((value, k) => value + part * (atom.p[low + 1][k] - value));
  }

  function draw() {
    const size = canvas.clientWidth, dots = window.devicePixelRatio || 1;
    if (!size) return;
    canvas.width = canvas.height = Math.round(size * dots);
    context.setTransform(dots, 0, 0, dots, 0, 0);
    const style = getComputedStyle(document.documentElement);
    const [ink, muted, way] =
      ["--ink", "--muted", "--last"].map((name) => style.getPropertyValue(name).trim());
    const reach = scene.radius + 0.8, scale = 0.5 * size / reach;
    const project = ([x, y, z]) => {
      const near = 1 / (1 - 0.2 * z / reach); // a little perspective tells front from back
      return [0.5 * size + scale * x * near * 0.86, 0.5 * size - scale * y * near * 0.86, z, near];
    };
    context.lineWidth = 1;
    context.strokeStyle = muted;
    context.globalAlpha = 0.35;
    for (const [a, b] of scene.edges) {
      const [from, to] = [project(apply(a)), project(apply(b))];
      line([from, to]);
    }
    const drawn = scene.atoms.map((atom) => [project(apply(at(atom, place))), atom]);
    drawn.sort((a, b) => a[0][2] - b[0][2]);
    for (const [[x, y, z, near], atom] of drawn) {
      const depth = 0.5 + 0.5 * z / reach; // 0 behind, 1 in front
      context.globalAlpha = atom.m ? 1 : 0.25 + 0.5 * Math.max(0, Math.min(1, depth));
      context.fillStyle = atom.c;
      context.beginPath();
      context.arc(x, y, scale * near * (atom.m ? 0.62 : 0.3), 0, 2 * Math.PI);
      context.fill();
      if (atom.m) {
        context.strokeStyle = ink;
        context.lineWidth = 1;
        context.stroke();
      }
    }
    context.globalAlpha = 1;
    context.strokeStyle = way;
    context.lineWidth = 2.5;
    for (const atom of scene.atoms) {
      const [a, b] = [atom.p[0], atom.p[atom.p.length - 1]];
      if (Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]) > 0.3) {
        line(atom.p.map((p) => project(apply(p))));
      }
    }
    shown.textContent = `ξ = ${(place / last).toFixed(2)}`;
  }
  function line(points) {
    context.beginPath();
    points.forEach(([x, y], k) => (k ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.stroke();
  }

  let from = null;
  canvas.addEventListener("pointerdown", (event) => {
    from = [event.clientX, event.clientY];
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!from) return;
    turn = multiply(
      rotation(0.01 * (event.clientX - from[0]), 0.01 * (event.clientY - from[1])), turn);
    from = [event.clientX, event.clientY];
    draw();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => { from = null; });
  }
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
    if (!by) return;
    event.preventDefault();
    turn = multiply(rotation(...by), turn);
    draw();
  });
  slider.max = String(last);
  slider.addEventListener("input", () => { place = Number(slider.value); draw(); });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  new ResizeObserver(draw).observe(canvas);
  draw();
})();
