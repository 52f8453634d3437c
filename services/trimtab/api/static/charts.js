/* Charts over one time axis: verdict bands behind, the canary's steps across. What each shows is the page's
   `trimtabSpecs(data, tools)`, loaded before. */
"use strict";

(() => {
  const root = document.getElementById("charts");
  if (!root) return;

  const AXIS_PX = 60;
  const EDGE_PX = 34; // half of the widest tick of the time axis
  const REFRESH_MS = 3000;
  const SYNC = uPlot.sync("time");
  const LINES = ["#1f7a8c", "#d1495b", "#e09f3e", "#5b5f97", "#4f772d", "#8d6a9f", "#7f8a8e"];
  const BANDS = { warning: "138,90,0", alarm: "179,38,30", cannot_tell: "106,76,147" };
  const charts = new Map();
  let limit = 240;
  let latest = null;
  let asked = 0;
  const chosen = {}; // what a page's own buttons have chosen

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const short = (value) => {
    if (value == null) return "–";
    const size = Math.abs(value);
    if (size >= 1e9) return (value / 1e9).toFixed(1) + " G";
    if (size >= 1e6) return (value / 1e6).toFixed(1) + " M";
    if (size >= 1e4) return (value / 1e3).toFixed(0) + " k";
    if (size >= 100) return value.toFixed(0);
    if (size >= 10) return value.toFixed(1);
    return String(Number(value.toPrecision(3)));
  };
  const share = (value) => (value == null ? "–" : (value * 100).toFixed(value < 0.1 ? 1 : 0) + " %");

  /* A mark's name on a small plate, beside its line and inside the plot. */
  function label(u, text, x, y, ratio) {
    const width = u.ctx.measureText(text).width + 8 * ratio;
    const left = x + width + 4 * ratio > u.bbox.left + u.bbox.width ? x - width - 3 * ratio : x + 3 * ratio;
    u.ctx.fillStyle = colour("--card");
    u.ctx.fillRect(left, y - 8 * ratio, width, 15 * ratio);
    u.ctx.fillStyle = colour("--accent");
    u.ctx.textAlign = "left";
    u.ctx.textBaseline = "middle";
    u.ctx.fillText(text, left + 4 * ratio, y);
  }

  /* Bands are drawn before the grid, marks after the lines. */
  function verdictBands(spec) {
    const shade = (u, data, i) => {
      const rgb = BANDS[data.outcome[i]];
      if (!rgb) return;
      const from = Math.max(u.valToPos(data.start_ms[i] / 1000, "x", true), u.bbox.left);
      const to = Math.min(u.valToPos(data.end_ms[i] / 1000, "x", true), u.bbox.left + u.bbox.width);
      if (to <= from) return;
      u.ctx.fillStyle = `rgba(${rgb},${data.outcome[i] === "alarm" ? 0.16 : 0.1})`;
      u.ctx.fillRect(from, u.bbox.top, to - from, u.bbox.height);
    };
    return {
      hooks: {
        drawClear: (u) => {
          if (!latest) return;
          u.ctx.save();
          for (let i = 0; i < latest.t.length; i += 1) shade(u, latest, i);
          u.ctx.restore();
        },
        draw: (u) => {
          if (!latest) return;
          const first = u.root.parentElement === root.querySelector(".chart:not(:empty)");
          const ratio = uPlot.pxRatio;
          u.ctx.save();
          u.ctx.strokeStyle = u.ctx.fillStyle = colour("--accent");
          u.ctx.lineWidth = ratio;
          u.ctx.setLineDash([4 * ratio, 4 * ratio]);
          u.ctx.font = `${11 * ratio}px system-ui, sans-serif`;
          (latest.marks ?? []).forEach((mark, i) => {
            const x = u.valToPos(mark.at_ms / 1000, "x", true);
            if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) return;
            u.ctx.beginPath();
            u.ctx.moveTo(x, u.bbox.top);
            u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
            u.ctx.stroke();
            if (!first) return;
            label(u, mark.label, x, u.bbox.top + u.bbox.height - (10 + 17 * (i % 3)) * ratio, ratio);
          });
          u.ctx.restore();
          stripe(u, spec);
        },
      },
    };
  }

  /* Windows that a chart marks along its bottom, by a colour's name. */
  function stripe(u, spec) {
    if (!spec.stripe) return;
    const height = 4 * uPlot.pxRatio;
    u.ctx.save();
    spec.stripe.forEach((name, i) => {
      if (!name) return;
      const from = Math.max(u.valToPos(latest.start_ms[i] / 1000, "x", true), u.bbox.left);
      const to = Math.min(u.valToPos(latest.end_ms[i] / 1000, "x", true), u.bbox.left + u.bbox.width);
      if (to <= from) return;
      u.ctx.fillStyle = colour(name);
      u.ctx.fillRect(from, u.bbox.top + u.bbox.height - height, Math.max(to - from, 1), height);
    });
    u.ctx.restore();
  }

  /* Ticks as 24-hour times, with the day where it changes or where ticks are days apart. */
  function times(u, ticks, _axis, _space, step) {
    let before = "";
    return ticks.map((seconds) => {
      const text = new Date(seconds * 1000).toISOString();
      const day = text.slice(5, 10);
      const clock = step < 60 ? text.slice(11, 19) : text.slice(11, 16);
      const shown = step >= 86400 ? day : day !== before && before ? `${day} ${clock}` : clock;
      before = day;
      return shown;
    });
  }

  /* Without a pointer the legend tells the newest window. */
  const tellNewest = (u) => {
    if (u.cursor.idx == null && u.data[0].length) u.setLegend({ idx: u.data[0].length - 1 }, false);
  };

  /* Evidence grows by factors: its axis is in powers of ten, from a millionth up. */
  const logOf = (value) => (value == null ? null : Math.max(-6, Math.log10(Math.max(value, 1e-6))));
  const power = (v) => (v == null ? "–" : v <= -6 ? "≤ 1e-6" : short(10 ** v));

  const scaleOf = (kind) => (u, min, max) => {
    if (min == null) return [0, 1];
    if (kind === "log") return [Math.min(-3, Math.floor(min)), Math.max(1, Math.ceil(max))];
    if (kind === "free" || kind === "half") {
      if (kind === "half") { min = Math.min(min, 0.4); max = Math.max(max, 0.6); }
      const pad = (max - min) * 0.08 || Math.abs(max) * 0.05 || 1;
      return [min - pad, max + pad];
    }
    if (kind === "quality") {
      const pad = Math.max((max - min) * 0.15, 0.02);
      return max <= 1.0001 ? [Math.max(0, min - pad), Math.min(1, max + pad)] : [0, max + pad];
    }
    return [Math.min(0, min), Math.max(max * 1.12, kind === "share" ? 0.02 : 1e-3)];
  };

  /* `dash` is a limit or a level; `edge` bounds a band and has no line; `only` is points without a line. */
  const series = (spec) => (line, i) => {
    const stroke = line.stroke ? (line.stroke.startsWith("--") ? colour(line.stroke) : line.stroke) : LINES[i % LINES.length];
    return {
      label: line.label,
      class: line.edge ? "edge" : undefined,
      stroke: line.edge ? "transparent" : line.dash ? colour("--quiet") : stroke,
      width: line.edge ? 0 : line.dash ? 1 : 1.75,
      dash: line.dash ? [6, 4] : line.dotted ? [3, 3] : undefined,
      paths: line.only ? () => null : undefined,
      points: { show: !line.dash && !line.edge && (Boolean(line.only) || latest.t.length < 40), size: latest.t.length > 200 ? 3 : 5, fill: line.only ? stroke : undefined },
      spanGaps: false,
      value: line.value ?? ((u, value) => spec.format(value)),
    };
  };

  function options(spec, width) {
    const grid = { stroke: colour("--line"), width: 1 };
    const axis = { stroke: colour("--quiet"), grid, ticks: grid, font: "11px system-ui, sans-serif" };
    return {
      title: spec.title,
      width,
      height: spec.height,
      cursor: { y: false, sync: { key: SYNC.key, setSeries: false }, drag: { x: true, y: false } },
      legend: { live: true },
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "UTC"),
      scales: { x: { time: true, range: (u, min, max) => [min, spec.end ?? max] }, y: { range: scaleOf(spec.kind) } },
      axes: [
        { ...axis, size: 30, space: 90, values: times },
        { ...axis, size: AXIS_PX, incrs: spec.kind === "log" ? [1, 2, 3] : undefined, values: (u, ticks) => ticks.map(spec.format) },
      ],
      series: [
        { value: (u, seconds) => (seconds == null ? "–" : new Date(seconds * 1000).toISOString().slice(5, 19).replace("T", " ")) },
        ...spec.lines.map(series(spec)),
      ],
      bands: (spec.bands ?? []).map((band) => ({ series: [band.high + 1, band.low + 1], fill: colour(band.fill) })),
      padding: [8, EDGE_PX, 0, 0],
      plugins: [verdictBands(spec)],
      hooks: { ready: [tellNewest], setData: [tellNewest], setCursor: [tellNewest] },
    };
  }

  const tools = {
    LINES,
    chosen,
    short,
    share,
    power,
    logOf,
    lines: (columns, rename = (name) => name) =>
      Object.entries(columns).filter(([, values]) => values.some((v) => v != null)).map(([name, values]) => ({ label: rename(name), values })),
    level: (value, label) => (value == null ? [] : [{ label, values: latest.t.map(() => value), dash: true }]),
    threshold: (figure) => tools.level(latest.thresholds[figure], `limit ${short(latest.thresholds[figure])}`),
  };

  /* Sentences under a chart, and buttons that choose what it shows. */
  function words(place, spec) {
    let note = place.querySelector(".note");
    if (!spec.note?.length) { note?.remove(); return; }
    if (!note) { note = document.createElement("div"); note.className = "note quiet"; }
    note.replaceChildren(...spec.note.map((text) => { const line = document.createElement("p"); line.textContent = text; return line; }));
    place.append(note);
  }

  function choices(spec) {
    const place = document.getElementById(`choose-${spec.id}`);
    if (!place) return;
    const names = spec.choices?.length > 1 ? spec.choices : [];
    place.hidden = names.length === 0;
    place.replaceChildren(...names.map((name) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name.replaceAll("_", " ");
      if (name === spec.chosen) button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => { chosen[spec.id] = name; draw(latest); });
      return button;
    }));
  }

  function draw(data) {
    latest = data;
    document.getElementById("nothing").hidden = data.t.length > 0;
    const width = root.clientWidth - 2;
    const end = data.end_ms.length ? data.end_ms[data.end_ms.length - 1] / 1000 : null;
    const wanted = trimtabSpecs(data, tools).filter((spec) => spec.lines.some((line) => !line.dash && !line.edge));
    const shown = new Set(wanted.map((spec) => spec.id));
    for (const [id, entry] of charts) {
      if (!shown.has(id)) { entry.plot.destroy(); charts.delete(id); document.getElementById(`chart-${id}`).replaceChildren(); }
    }
    for (const spec of wanted) {
      spec.end = end;
      const columns = [data.t, ...spec.lines.map((line) => line.values)];
      const shape = JSON.stringify([spec.title, spec.lines.map((line) => line.label), width]);
      const known = charts.get(spec.id);
      if (known && known.shape === shape) {
        Object.assign(known.spec, spec);
        words(document.getElementById(`chart-${spec.id}`), spec);
        choices(spec);
        known.plot.setData(columns, !known.plot.zoomed);
        continue;
      }
      if (known) known.plot.destroy();
      const plot = new uPlot(options(spec, width), columns, document.getElementById(`chart-${spec.id}`));
      charts.set(spec.id, { plot, shape, spec });
      words(document.getElementById(`chart-${spec.id}`), spec);
      choices(spec);
    }
    strip(data);
    root.dataset.drawn = String(data.t.length);
  }

  function strip(data) {
    const place = document.getElementById("strip");
    place.hidden = data.t.length === 0;
    if (!data.t.length) return;
    const from = data.start_ms[0];
    const span = data.end_ms[data.end_ms.length - 1] - from || 1;
    const links = data.start_ms.map((start, i) => {
      const link = document.createElement("a");
      link.href = root.dataset.windows + start;
      link.className = data.outcome[i];
      link.title = `${new Date(start).toISOString().slice(0, 19).replace("T", " ")}: ${data.outcome[i].replace("_", " ")} (${data.reason[i].replaceAll("_", " ")})`;
      link.style.left = `${((start - from) / span) * 100}%`;
      link.style.width = `max(2px, calc(${((data.end_ms[i] - start) / span) * 100}% - 1px))`;
      return link;
    });
    place.replaceChildren(...links);
  }

  async function refresh() {
    if (document.hidden) return;
    const number = (asked += 1);
    const separator = root.dataset.series.includes("?") ? "&" : "?";
    const answer = await fetch(`${root.dataset.series}${separator}limit=${limit}`, { headers: { Accept: "application/json" } });
    if (answer.status === 401) { location.assign("/login"); return; }
    if (!answer.ok) return;
    const data = await answer.json();
    if (number === asked) draw(data); // an older answer that comes late is let go
  }

  for (const button of root.querySelectorAll("[data-limit]")) {
    button.addEventListener("click", () => {
      limit = Number(button.dataset.limit);
      for (const other of root.querySelectorAll("[data-limit]")) other.removeAttribute("aria-pressed");
      button.setAttribute("aria-pressed", "true");
      refresh();
    });
  }
  const redraw = () => {
    for (const entry of charts.values()) entry.plot.destroy();
    charts.clear();
    if (latest) draw(latest);
  };
  let resizing = 0;
  addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(redraw, 120); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  refresh();
  setInterval(() => refresh().catch(() => undefined), REFRESH_MS);
})();
