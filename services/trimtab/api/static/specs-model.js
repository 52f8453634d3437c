/* What the model page's charts show. */
"use strict";

(() => {
  const STRIPE = { invalid: "--alarm", extrapolating: "--warning", not_available: "--quiet" };
  const counted = (count, of) => `${count} of the ${of} window${of === 1 ? "" : "s"} shown`;

  /* The estimate without labels beside the realised figure: its line, its interval, what it assumes, and where
     it does not hold. */
  function estimate(data, figure, first) {
    const said = data.estimated;
    const none = { lines: [], bands: [], note: [] };
    if (!said) return none;
    const newest = (status) => said.reason[said.status.lastIndexOf(status)];
    const count = (status) => said.status.filter((s) => s === status).length;
    const found = said.figures[figure];
    if (!Object.keys(said.figures).length) return { ...none, note: [`No estimate without labels: ${newest("not_available")}.`] };
    if (!found) {
      const why = said.not_estimated[figure];
      return why ? { ...none, note: [`No estimate of ${figure.replaceAll("_", " ")} without labels: ${why}.`] } : none;
    }
    const holds = said.status.map((s) => s === "ok" || s === "extrapolating");
    const only = (values) => values.map((v, i) => (holds[i] ? v : null));
    const lines = [
      { label: "estimated without labels", values: only(found.value), stroke: "--estimate", dotted: true },
      { label: "95 % interval: from", values: only(found.low), edge: true },
      { label: "to", values: only(found.high), edge: true },
    ];
    const wrong = found.value.map((v, i) => (said.status[i] === "invalid" ? v : null));
    if (wrong.some((v) => v != null)) lines.push({ label: "estimate, not valid", values: wrong, stroke: "--alarm", only: true });
    const note = [said.assumes];
    const total = data.t.length;
    if (count("invalid")) note.push(`The estimate is not valid in ${counted(count("invalid"), total)} (red along the bottom): ${newest("invalid")}.`);
    if (count("extrapolating")) note.push(`It extrapolates in ${counted(count("extrapolating"), total)} (amber along the bottom): ${newest("extrapolating")}.`);
    if (count("not_available")) note.push(`There is none in ${counted(count("not_available"), total)} (grey along the bottom): ${newest("not_available")}.`);
    const shifted = said.reason.filter((text, i) => text && said.status[i] === "ok");
    if (shifted.length) note.push(`In ${counted(shifted.length, total)} ${shifted.at(-1)}.`);
    return { lines, note, bands: [{ low: first + 1, high: first + 2, fill: "--estimate-soft" }], stripe: said.status.map((s) => STRIPE[s]) };
  }

  globalThis.trimtabSpecs = (data, { chosen, lines, threshold, short, power, logOf }) => {
    const choices = [...new Set([...Object.keys(data.performance), ...Object.keys(data.estimated?.figures ?? {})])];
    const quality = choices.includes(chosen.performance) ? chosen.performance : choices[0] ?? "performance";
    const realised = [...lines(data.performance[quality] ?? {}, (v) => `version ${v}`), ...threshold(quality)];
    const estimated = estimate(data, quality, realised.length);
    const moved = Object.entries(data.drift).filter(([name]) => name.startsWith("psi("));
    const drift = moved.length ? Object.fromEntries(moved) : { max_psi: data.drift.max_psi };
    const percentages = Object.fromEntries(Object.entries(data.resources).filter(([name]) => name.endsWith("_percent")));
    const memory = data.resources.memory_bytes ? { memory_bytes: data.resources.memory_bytes } : {};
    const asks = Object.keys(data.thresholds).find((name) => name.startsWith("psi(") || name === "max_psi");
    const exact = ["mae", "rmse", "log_loss"].includes(quality) ? short : (v) => (v == null ? "–" : v.toFixed(3));
    return [
      { id: "performance", title: `Performance: ${quality.replaceAll("_", " ")}, by version${estimated.lines.length ? " (dotted: estimated without labels)" : ""}`, kind: "quality", height: 210, format: exact, lines: [...realised, ...estimated.lines], bands: estimated.bands, stripe: estimated.stripe, note: estimated.note, choices, chosen: quality },
      { id: "drift", title: "Drift: PSI against the baseline, of features in rules and those that moved most", kind: "psi", height: 200, format: short, lines: [...lines(drift, (name) => (name === "max_psi" ? "largest" : name.slice(4, -1))), ...(asks ? threshold(asks) : [])] },
      { id: "detector", title: "Detector: evidence of a change, 1 is an alarm (logarithmic)", kind: "log", height: 150, format: power, lines: [...lines({ evidence: data.evidence.map(logOf) }), { label: "alarm", values: data.t.map(() => 0), dash: true }] },
      { id: "latency", title: "Latency, ms", kind: "psi", height: 180, format: short, lines: [...lines(data.latency_ms), ...threshold("p99_latency_ms")] },
      { id: "volume", title: "Rows per window", kind: "psi", height: 150, format: short, lines: lines({ rows: data.rows }) },
      { id: "resources", title: "Resources, % in use", kind: "psi", height: 150, format: short, lines: lines(percentages, (name) => name.replace("_percent", "")) },
      { id: "memory", title: "Memory, bytes", kind: "psi", height: 130, format: short, lines: lines(memory, () => "memory") },
    ];
  };
})();
