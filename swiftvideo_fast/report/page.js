// Each player: one clock for all its canvases.  Frames lie from top to bottom in each canvas's sheet.
for (const player of document.querySelectorAll(".player")) {
  const frames = Number(player.dataset.frames), fps = Number(player.dataset.fps);
  const period = frames + Math.round(Number(player.dataset.hold) * fps);    // the last frame stays a while
  const button = player.querySelector("button"), slider = player.querySelector("input[type=range]");
  const counter = player.querySelector("output"), sheets = new Map();

  function draw(canvas) {
    const sheet = sheets.get(canvas), { width, height } = canvas;
    if (!sheet?.complete) return;
    const frame = Math.min(Number(slider.value), Number(canvas.dataset.frames) - 1);
    canvas.getContext("2d").drawImage(sheet, 0, frame * height, width, height, 0, 0, width, height);
  }

  function show(frame) {
    slider.value = frame;
    slider.setAttribute("aria-valuetext", `frame ${frame + 1} of ${frames}`);
    counter.textContent = `${frame + 1} / ${frames}`;
    for (const canvas of sheets.keys()) draw(canvas);
  }

  function choose(choice) {       // the sheets of what is hidden are not decoded
    for (const cell of player.querySelectorAll("figure")) {
      const canvas = cell.querySelector("canvas");
      cell.hidden = cell.dataset.choice !== undefined && cell.dataset.choice !== choice;
      if (cell.hidden || sheets.has(canvas)) continue;
      const sheet = new Image();
      sheet.onload = () => draw(canvas);
      sheets.set(canvas, sheet);
      sheet.src = canvas.dataset.sheet;
    }
    show(Number(slider.value));
  }

  let started = null;           // when frame 0 was, or null while paused

  function tick(now) {
    if (started === null) return;
    const frame = Math.min(Math.max(0, Math.floor(((now - started) / 1000) * fps)) % period, frames - 1);
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
  for (const mark of player.querySelectorAll(".choice input"))
    mark.addEventListener("change", () => choose(mark.value));
  choose(player.querySelector(".choice input:checked")?.value ?? "0");      // a reloaded page remembers both
  play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
}
