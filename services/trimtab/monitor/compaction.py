"""Compaction: one kept run in place of two."""

from __future__ import annotations

import numpy as np

from trimtab.monitor.current import among, interleave
from trimtab.store.entries import KeptRun
from trimtab.store.label_runs import NO_VALUE


def compact(older: KeptRun, newer: KeptRun, expired_to_ms: int | None) -> KeptRun:
    """Return one kept run in place of two neighbours.

    `expired_to_ms` drops what has expired; None where an older kept run may hold the same ids.
    """
    groups = {group: place for place, group in enumerate(older.groups)}
    classes = {name: place for place, name in enumerate(older.classes)}
    group_of = np.array([groups.setdefault(g, len(groups)) for g in newer.groups], np.int32)
    class_of = np.array(
        [*(classes.setdefault(c, len(classes)) for c in newer.classes), NO_VALUE], np.int32
    )
    p, label = newer.predictions.copy(), newer.labels.copy()
    if group_of.size:
        p["group"] = group_of[p["group"]]
    if newer.classes:  # without one, a code only says whether there is a number
        p["code"], label["code"] = class_of[p["code"]], class_of[label["code"]]
    ids = newer.hashes
    p_stays, l_stays = ~among(older.prediction_hashes, ids), ~among(older.label_hashes, ids)
    p_hash, p = interleave(
        older.prediction_hashes[p_stays], older.predictions[p_stays], newer.prediction_hashes, p
    )
    l_hash, label = interleave(
        older.label_hashes[l_stays], older.labels[l_stays], newer.label_hashes, label
    )
    r_stays = ~among(older.repeat_hashes, ids)
    r_hash = np.concatenate((older.repeat_hashes[r_stays], newer.repeat_hashes))
    order = r_hash.argsort(kind="stable")  # an id's repeats are all of one of the two
    r_hash, repeats = r_hash[order], np.concatenate((older.repeats[r_stays], newer.repeats))[order]
    if expired_to_ms is not None:
        lives = p["pane"] >= expired_to_ms
        alone = (label["time"] >= expired_to_ms) & ~among(l_hash, p_hash)
        keeps = alone | among(l_hash, p_hash[lives])
        p_hash, p, l_hash, label = p_hash[lives], p[lives], l_hash[keeps], label[keeps]
        stays = among(r_hash, l_hash)
        r_hash, repeats = r_hash[stays], repeats[stays]
    return KeptRun(p_hash, p, l_hash, label, r_hash, repeats, tuple(groups), tuple(classes))
