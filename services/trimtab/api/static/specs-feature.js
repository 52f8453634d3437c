/* What the charts of a feature's page show: its figures, with the baseline's. */
"use strict";

(() => {
  const NAMES = { psi: "PSI", ks: "KS distance", cramers_v: "Cramér's V", p05: "5 %", p50: "median", p95: "95 %", missing_rate: "missing", type_error_rate: "type error", unseen_rate: "unseen", out_of_range_rate: "out of range" };
  const pick = (figures, names) => Object.fromEntries(names.filter((name) => figures[name]).map((name) => [name, figures[name]]));

  /* The panel beside the charts is fetched anew: what a person has opened stays open. */
  let opened = false;
  const table = () => document.getElementById("bars-table");
  document.addEventListener("htmx:beforeSwap", () => { opened = Boolean(table()?.open); });
  document.addEventListener("htmx:afterSwap", () => { if (table()) table().open = opened; });

  globalThis.trimtabSpecs = (data, { lines, level, threshold, short, share }) => {
    const { figures, baseline, t } = data;
    const constant = (value) => t.map(() => value);
    const withBaseline = (name) => `${NAMES[name] ?? name}${baseline[name] == null ? "" : ` (baseline ${share(baseline[name])})`}`;
    const usual = baseline.p05 == null || baseline.p95 == null ? [] : [
      { label: "baseline 5 %", values: constant(baseline.p05), edge: true },
      { label: "baseline 95 %", values: constant(baseline.p95), edge: true },
    ];
    const values = lines(pick(figures, ["p50", "mean", "p05", "p95"]), (name) => NAMES[name] ?? name);
    const levels = values.length ? level(baseline.p50, "baseline median") : [];
    const first = values.length + levels.length;
    const open = data.alarm_open.some(Boolean);
    const shares = lines(data.shares, (name) => `${name}${name in data.baseline_shares ? ` (baseline ${share(data.baseline_shares[name])})` : ""}`);
    return [
      { id: "drift", title: `Distance from the baseline: PSI, debiased${figures.ks ? ", and KS distance" : ", and Cramér's V"}`, kind: "psi", height: 180, format: short, lines: [...lines(pick(figures, ["psi", figures.ks ? "ks" : "cramers_v"]), (name) => NAMES[name]), ...threshold("psi")] },
      { id: "values", title: "Values: median, mean and the middle 90 %", kind: "free", height: 200, format: short, lines: [...values, ...levels, ...usual], bands: usual.length ? [{ low: first, high: first + 1, fill: "--baseline-soft" }] : [], note: usual.length ? ["Shaded: where the middle 90 % of the baseline's rows are."] : [] },
      { id: "shares", title: "Categories: share of rows of the most frequent", kind: "share", height: 200, format: share, lines: shares },
      { id: "quality", title: "Broken values: share of rows", kind: "share", height: 150, format: share, lines: [...lines(pick(figures, ["missing_rate", "type_error_rate", "unseen_rate", "out_of_range_rate"]), withBaseline), ...threshold("missing_rate")] },
      { id: "evidence", title: "Detector: its share of the evidence", kind: "share", height: 130, format: share, lines: lines({ share: data.evidence_share }).map((line) => ({ ...line, only: true })), stripe: data.alarm_open.map((is) => (is ? "--alarm" : null)), note: [...(data.evidence_share.some((v, i) => v == null && !data.alarm_open[i]) ? ["A gap: there is no detector yet, or it is not among the sources that bring most of the evidence."] : []), ...(open ? ["Red along the bottom: its alarm is open, and it brings no further evidence."] : [])] },
      { id: "effect", title: "Effect: shift in standard deviations", kind: "free", height: 130, format: short, lines: [...lines({ shift: figures.sd_equivalents ?? [] }), { label: "no shift", values: constant(0), dash: true }] },
      { id: "superiority", title: "Effect: P(new > baseline)", kind: "half", height: 130, format: short, lines: [...lines({ probability: figures.superiority ?? [] }), { label: "no shift", values: constant(0.5), dash: true }] },
    ];
  };
})();
