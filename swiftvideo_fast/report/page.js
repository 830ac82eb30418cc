// Each player: one clock for all its canvases.  Frames lie from top to bottom in each canvas's sheet.
for (const player of document.querySelectorAll(".player")) {
  const frames = Number(player.dataset.frames), fps = Number(player.dataset.fps);
  const button = player.querySelector("button"), slider = player.querySelector("input");
  const counter = player.querySelector("output");

  const cells = [...player.querySelectorAll("canvas")].map((canvas) => {
    const sheet = new Image(), pen = canvas.getContext("2d"), { width, height } = canvas;
    const draw = () => {
      const frame = Math.min(Number(slider.value), Number(canvas.dataset.frames) - 1);
      if (sheet.complete) pen.drawImage(sheet, 0, frame * height, width, height, 0, 0, width, height);
    };
    sheet.onload = draw;
    sheet.src = canvas.dataset.sheet;
    return draw;
  });

  function show(frame) {
    slider.value = frame;
    slider.setAttribute("aria-valuetext", `frame ${frame + 1} of ${frames}`);
    counter.textContent = `${frame + 1} / ${frames}`;
    for (const draw of cells) draw();
  }

  let started = null;           // when frame 0 was, or null while paused

  function tick(now) {
    if (started === null) return;
    const frame = Math.max(0, Math.floor(((now - started) / 1000) * fps)) % frames;
    if (frame !== Number(slider.value)) show(frame);
    requestAnimationFrame(tick);
  }

  function play(on) {
    started = on ? performance.now() - (Number(slider.value) * 1000) / fps : null;
    button.textContent = on ? "Pause" : "Play";
    if (on) requestAnimationFrame(tick);
  }

  button.addEventListener("click", () => play(started === null));
  slider.addEventListener("input", () => { play(false); show(Number(slider.value)); });
  show(0);                      // a reloaded page remembers the slider
  play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
}
