// The page's own script: hears which runs have new rows, has htmx fetch the sections that show
// them, and draws the loss curve. Nothing here changes anything on the server.
(() => {
  "use strict";
  const body = document.body;
  const run = body.dataset.run;
  const progress = document.getElementById("progress");
  const place = document.getElementById("curve");

  // --- sections ----------------------------------------------------------------------------------

  const PAUSE_MS = 100;
  let waiting = false;
  let again = false;

  function look() {
    for (const part of document.querySelectorAll(".live")) {
      const box = part.getBoundingClientRect();
      const near = box.bottom > -400 && box.top < innerHeight + 400;
      if (near || !part.dataset.seen) htmx.trigger(part, "stirred");
      part.dataset.seen = "1";
    }
  }

  function stir() {
    if (waiting) {
      again = true;
      return;
    }
    waiting = true;
    look();
    if (place) drawCurve();
    setTimeout(() => {
      waiting = false;
      if (again) {
        again = false;
        stir();
      }
    }, PAUSE_MS);
  }

  // A run that has gone silent grows older, and nothing else says so.
  const AGES_MS = 5000;
  setInterval(() => document.hidden || look(), AGES_MS);

  // An audit ends without news of the run: what waits for one looks again, wherever it stands.
  setInterval(() => {
    const ledger = document.getElementById("part-ledger");
    if (ledger?.textContent.includes("being audited")) htmx.trigger(ledger, "stirred");
  }, 1000);

  const source = new EventSource("/live");
  let lost = false;
  source.addEventListener("changed", (event) => {
    if (!run || event.data.split(",").includes(run)) stir();
  });
  source.addEventListener("progress", (event) => {
    progress.textContent = event.data;
  });
  source.addEventListener("open", () => {
    if (lost) stir();
    lost = false;
    if (progress.textContent === "no connection") progress.textContent = "";
  });
  source.addEventListener("error", () => {
    lost = true;
    progress.textContent = "no connection";
  });
  addEventListener("scrollend", stir);

  // --- the curve ---------------------------------------------------------------------------------

  if (!place) return;
  const told = document.getElementById("curve-told");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let plot = null;
  let shown = null;
  let thinned = false; // a point is many steps, so that it has a lowest and a highest loss
  let asking = false;

  function colour(name) {
    return getComputedStyle(body).getPropertyValue(name).trim();
  }

  function shade(u) {
    const { ctx } = u;
    const { left, top, width, height } = u.bbox;
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, top, width, height);
    ctx.clip();
    ctx.fillStyle = colour("--shade");
    for (const span of shown.shaded) {
      const begin = u.valToPos(span.from, "x", true);
      const end = Math.max(begin + 2, u.valToPos(span.to, "x", true));
      ctx.fillRect(begin, top, end - begin, height);
    }
    ctx.restore();
  }

  function mark(u) {
    const { ctx } = u;
    const { top, height } = u.bbox;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = colour("--bad");
    ctx.lineWidth = devicePixelRatio;
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    for (const crash of shown.crashes) {
      const x = u.valToPos(crash.step, "x", true);
      ctx.setLineDash([4, 3]);
      ctx.beginPath();
      ctx.moveTo(x, top);
      ctx.lineTo(x, top + height);
      ctx.stroke();
      ctx.fillText("✕", x - 4 * devicePixelRatio, top + 10 * devicePixelRatio);
    }
    ctx.restore();
  }

  function options() {
    const axis = { stroke: colour("--text"), grid: { stroke: colour("--line") } };
    return {
      width: place.clientWidth,
      height: 280,
      scales: { x: { time: false } },
      axes: [{ ...axis, label: "step" }, { ...axis, label: "loss" }],
      series: [
        { label: "step" },
        { label: "loss", stroke: colour("--accent"), width: 2, spanGaps: true },
        ...(thinned ? ["lowest", "highest"] : []).map((label) => ({
          label,
          stroke: colour("--faint"),
          width: 1,
          spanGaps: true,
        })),
        { label: "does not count", stroke: colour("--bad"), width: 1, dash: [3, 3] },
      ],
      legend: { live: false },
      bands: thinned ? [{ series: [3, 2], fill: colour("--band") }] : [],
      hooks: { drawClear: [shade], draw: [mark] },
    };
  }

  function say() {
    const count = shown.step.length;
    const losses = shown.mean.filter((value) => value !== null);
    if (!count) {
      told.textContent = "No step is completed yet.";
      return;
    }
    const crashes = shown.crashes.map((crash) => `${crash.cause} at step ${crash.step}`);
    const made = shown.shaded.map((span) =>
      span.from === span.to ? `${span.from}` : `${span.from} to ${span.to}`,
    );
    const parts = [`Steps ${shown.step[0]} to ${shown.step[count - 1]}`];
    if (losses.length)
      parts.push(`loss from ${losses[0].toPrecision(4)} to ${losses.at(-1).toPrecision(4)}`);
    parts.push(crashes.length ? `crashes: ${crashes.join(", ")}` : "no crash");
    if (made.length) parts.push(`made again: ${made.join(", ")}`);
    told.textContent = `${parts.join("; ")}.`;
    place.setAttribute("aria-label", told.textContent);
  }

  function draw() {
    const wide = shown.low.some((value, at) => value !== shown.high[at]);
    if (plot && wide !== thinned) {
      plot.destroy();
      plot = null;
    }
    thinned = wide;
    const between = thinned ? [shown.low, shown.high] : [];
    const data = [shown.step, shown.mean, ...between, shown.gone];
    if (plot) plot.setData(data);
    else plot = new uPlot(options(), data, place);
    place.dataset.points = String(shown.step.length);
    place.dataset.crashes = String(shown.crashes.length);
    place.dataset.shaded = String(shown.shaded.length);
    say();
  }

  function anew() {
    if (plot) plot.destroy();
    plot = null;
    if (shown) draw();
  }

  async function drawCurve() {
    if (asking) return;
    asking = true;
    try {
      const answer = await fetch(body.dataset.curve);
      if (answer.ok) {
        shown = await answer.json();
        draw();
      }
    } catch {
      progress.textContent = "no connection";
    } finally {
      asking = false;
    }
  }

  dark.addEventListener("change", anew);
  addEventListener("resize", () => plot && plot.setSize({ width: place.clientWidth, height: 280 }));
  drawCurve();
})();
