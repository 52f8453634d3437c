"""Reading what a verdict depends on, in the caller's snapshot; with the memory that makes it cheap.

An earlier window keeps the contract revision, the baseline and the judged version of its first verdict,
so that a late row changes what it changes and nothing else.
"""

from collections import OrderedDict
from collections.abc import Mapping

import msgspec
from sqlalchemy import Connection, select

import trimtab
from trimtab.contracts.model import Contract
from trimtab.detect.arrays import ArraysError
from trimtab.detect.baseline import Baseline, merge_states
from trimtab.detect.budget import Budget
from trimtab.detect.calibration import Season, slot_name, slots_of
from trimtab.detect.drift import Fitted, Watching, is_detectors, state_digest
from trimtab.detect.evidence import Detector, State
from trimtab.detect.figures import Figures, Labelled, comparisons
from trimtab.detect.rules import PriorWindow, enough_labelled, flag_of, longest_memory, rules_of
from trimtab.detect.verdict import Carried, WindowInputs, joint_of
from trimtab.events.types import Traffic
from trimtab.monitor.label_free_inputs import LabelFreeReader
from trimtab.monitor.reference_inputs import ReferenceReader
from trimtab.records import Kind, Outcome
from trimtab.stats.aggregate import PaneState, ResourceState
from trimtab.stats.cuts import ModelCuts
from trimtab.stats.joint import JointState
from trimtab.store import baselines
from trimtab.store.baselines import state_of_windows, window_starts
from trimtab.store.detectors import (
    DetectorRow,
    detector,
    digest_after,
    find_detector,
    starts_after,
    state_before,
)
from trimtab.store.engine import Store
from trimtab.store.models import active_cuts, contract_at, cuts_at
from trimtab.store.performance import window_performance
from trimtab.store.resources import window_gauges
from trimtab.store.samples import window_joint
from trimtab.store.tables import traffic
from trimtab.store.verdicts import Head, heads_between
from trimtab.store.window_state import WindowState, segment_states, window_state

COMPARISONS_KEPT = 256
LEAST_SEASON_WINDOWS = 4
"""Figures of a window are against the baseline's windows of its season, if there are so many."""
DRAFTS_KEPT = 8
_COMPARED = (Kind.INPUT, Kind.PREDICTION)

BaselineKey = tuple[int | None, int]


class ModelReader:
    """Builds the inputs of one model's windows. Made anew when its contract changes."""

    def __init__(self, store: Store, contract: Contract, revision: int) -> None:
        self.store = store
        self.contract = contract
        self.revision = revision
        self.memory = longest_memory(rules_of(contract))
        self.heads: OrderedDict[int, Head] = OrderedDict()
        """Heads of recent windows' latest verdicts, by start."""
        self._loaded: set[int] = set()
        self._compared: OrderedDict[
            tuple[str, tuple[int | None, int, str | None] | None, str | None], Figures
        ] = OrderedDict()
        self._contracts: dict[int, Contract] = {revision: contract}
        self._baselines: dict[int, Baseline] = {}
        self._drafts: OrderedDict[int, Baseline] = OrderedDict()
        """What the draft was when it held so many windows."""
        self._label_free = LabelFreeReader()
        self._reference = ReferenceReader()
        self.draft: Baseline | None = None
        """The baseline that traffic is filling, as of the windows closed so far."""
        self._wants_windows = False
        self._from_ms: dict[int, int | None] = {}
        self.detector: DetectorRow | None = None
        """What new windows are judged by; None while it is not made, or there is no baseline."""
        self.windows_per_alarm = 0.0
        """The model's budget, for new windows."""
        self._detectors: dict[tuple[int, float], Detector] = {}
        self._cuts: dict[str, ModelCuts] = {}
        self._rows: dict[int, DetectorRow] = {}
        self._seasons: dict[tuple[int, int, str], tuple[Season, dict[int, int]]] = {}
        """Season of a detector's features, and the slot of each window of its baseline."""
        self.states: OrderedDict[tuple[int, int], tuple[State, str]] = OrderedDict()
        """States after windows that this tick judged, with their digests, by (detector, window start)."""

    def begin(self, connection: Connection) -> None:
        """Read what holds for a whole tick: the active cuts and baseline, the champion."""
        self._label_free.begin()
        self._reference.begin()
        self.cuts = active_cuts(connection, self.contract.name)
        self.champion = _champion(connection, self.contract.name)
        active = baselines.active_baseline_id(connection, self.contract.name)
        self.baseline = None if active is None else self._baseline(connection, active)
        self.draft = None
        self._wants_windows = self._gathers(connection, active)
        if self.gathering and self.cuts is not None:
            row = baselines.draft(connection, self.contract.name, self.cuts.cuts_id)
            if row is not None and row.windows:
                self.draft = Baseline(row.state, row.windows, self.contract.reference.windows)
                self._keep_draft(self.draft)

    def look_for_detector(self, connection: Connection, recipe: str, budget: Budget) -> bool:
        """Read the active baseline's detector; false while it is still to be made."""
        self.windows_per_alarm = budget.windows_per_alarm(self.contract.windows.length_ms)
        self.states.clear()
        self.detector = None
        baseline_id = baselines.detector_baseline_id(connection, self.contract.name)
        if baseline_id is None:
            return True
        detector_id = find_detector(connection, self.contract.name, baseline_id, recipe)
        if detector_id is not None:
            self.detector = self._row(connection, detector_id)
        return self.detector is not None

    def _row(self, connection: Connection, detector_id: int) -> DetectorRow:
        """Return a detector, which never changes. Raises ArraysError where this release cannot read it."""
        if detector_id not in self._rows:
            self._rows[detector_id] = detector(connection, detector_id)
        return self._rows[detector_id]

    def _gathers(self, connection: Connection, active: int | None) -> bool:
        if active is None:
            return self.contract.reference.from_ == "traffic"
        wanting = baselines.detector_baseline_id(connection, self.contract.name) is None
        return wanting and baselines.is_undated(connection, active)

    @property
    def provisional_from_ms(self) -> int | None:
        """Start of the first window of the active baseline."""
        baseline_id = None if self.baseline is None else self.baseline.id
        return None if baseline_id is None else self._from_ms[baseline_id]

    def has_open(self, detector_id: int) -> bool:
        """Whether the newest state of this tick has a source with an open alarm."""
        mine = [start_ms for each, start_ms in self.states if each == detector_id]
        return bool(mine) and bool(self.states[detector_id, max(mine)][0].muted)

    @property
    def gathering(self) -> bool:
        """Whether closed windows still go into a baseline from traffic."""
        return self._wants_windows and self.cuts is not None

    def same_cuts(self, state: PaneState) -> bool:
        """Whether a state was counted under the active cuts."""
        return self.cuts is not None and self.cuts.cuts_id == state.cuts_id

    def _baseline(self, connection: Connection, baseline_id: int) -> Baseline:
        if baseline_id not in self._baselines:
            row = baselines.baseline(connection, baseline_id)
            self._baselines[baseline_id] = Baseline(
                row.state, row.windows, self.contract.reference.windows, row.id
            )
            self._from_ms[baseline_id] = row.from_ms
        return self._baselines[baseline_id]

    def head(self, connection: Connection, start_ms: int) -> Head | None:
        """Return what the window's latest verdict remembers; None when it has none."""
        if start_ms not in self._loaded:
            found = heads_between(connection, self.contract.name, start_ms, start_ms + 1)
            self._loaded.add(start_ms)
            for head in found:
                self.remember(head)
        return self.heads.get(start_ms)

    def remember(self, head: Head) -> None:
        """Keep the head of a verdict that was just made or read."""
        self.heads[head.window_start_ms] = head
        self.heads.move_to_end(head.window_start_ms)
        self._loaded.add(head.window_start_ms)
        while len(self.heads) > 4 * (self.memory + COMPARISONS_KEPT):
            gone, _ = self.heads.popitem(last=False)
            self._loaded.discard(gone)
        if len(self._loaded) > 64 * COMPARISONS_KEPT:
            self._loaded = set(self.heads)

    def forget(self) -> None:
        """Drop what was remembered: the write that should have stored it did not happen."""
        self.heads.clear()
        self._loaded.clear()
        self._reference.forget()

    def contract_of(self, head: Head | None) -> tuple[int, Contract]:
        """Return the contract that a window is judged by: its first verdict's, else the current."""
        revision = self.revision if head is None else head.evidence.contract_revision
        if revision not in self._contracts:
            row = contract_at(self.store, self.contract.name, revision)
            self._contracts[revision] = row.contract
        return revision, self._contracts[revision]

    def inputs(
        self,
        connection: Connection,
        start_ms: int,
        end_ms: int,
        watermark_ms: int | None,
        stalled: str | None,
    ) -> tuple[WindowInputs, WindowState]:
        """Return a window's inputs as they are now, and the state they were read from."""
        model = self.contract.name
        head = self.head(connection, start_ms)
        revision, contract = self.contract_of(head)
        read = window_state(connection, model, start_ms, end_ms)
        cuts = self._cuts_of(connection, read)
        performance = {
            version: Labelled(p.state, p.labelled_rows, p.predicted_rows)
            for version, p in window_performance(connection, model, start_ms, end_ms).items()
        }
        judged = self._judged_version(head, read, performance)
        baseline = self._baseline_of(connection, head, read)
        key = None if baseline is None else (baseline.id, baseline.windows)
        resources = window_gauges(connection, model, start_ms, end_ms)
        watching, no_detector = self._detector_of(connection, head, start_ms)
        baseline = self._in_season(connection, contract, baseline, watching, start_ms)
        labelled = performance.get(judged or "")
        return WindowInputs(
            contract=contract,
            contract_revision=revision,
            code_version=trimtab.__version__,
            window_start_ms=start_ms,
            window_end_ms=end_ms,
            revision=1 if head is None else head.revision + 1,
            state=read.state,
            by_version=read.by_version,
            performance=performance,
            resources=resources,
            cuts=cuts,
            baseline=baseline,
            judged_version=judged,
            labels_due=_labels_due(contract, end_ms, watermark_ms, labelled),
            prior=self._prior(connection, contract, start_ms, key, judged),
            detector=watching,
            no_detector=no_detector,
            segments={}
            if cuts is None or not isinstance(watching, Watching)
            else segment_states(connection, contract, start_ms, end_ms, cuts.cuts_id),
            joint=self._joint(connection, head, contract, watching, read, stalled),
            offsets=[(o.topic, o.partition, o.first_offset, o.next_offset) for o in read.offsets],
            panes=read.panes,
            lost=read.lost,
            stalled=stalled,
            changed=None if head is None else _changed(head, read, performance, resources),
            label_free=self._label_free.known(connection, contract, baseline, judged, read, end_ms),
            reference=self._reference.known(
                connection, contract, baseline, cuts, judged, watermark_ms, head
            ),
        ), read

    def waiting_for_reference(
        self, connection: Connection, watermark_ms: int | None, to_ms: int
    ) -> set[int]:
        """Return the judged windows before `to_ms` that waited for labels of the baseline which are there now."""
        return self._reference.waiting(
            connection, self.contract, self.baseline, self.champion, watermark_ms, to_ms
        )

    def _detector_of(
        self, connection: Connection, head: Head | None, start_ms: int
    ) -> tuple[Watching | Carried | None, str]:
        """Return the detector as it stood before a window, or why there is none.

        A window that was judged before keeps its detector and budget; where its state is gone, what was said.
        """
        if head is None:
            row, budget = self.detector, self.windows_per_alarm
            if row is None:
                return None, self._progress() if self.baseline is not None else ""
            if row.fitted is None:
                return None, row.refused or ""
            watching = self._watching(connection, row, row.fitted, budget, start_ms)
            if watching.state.start_ms is None and self._has_later(connection, row.id, start_ms):
                return (
                    None,
                    "it came too late for the detector, which has let go its state before it",
                )
            return watching, ""
        before = head.evidence.prior.get("detector")
        if before is None:
            return None, str(head.evidence.prior.get("no_detector", ""))
        found = tuple(f for f in head.findings if is_detectors(f))
        carried = Carried(prior=before, tree=head.figures.detector or {}, findings=found)
        try:
            row = self._row(connection, int(before["id"]))
        except ArraysError:  # a release before this one stored it: what it said stays
            return carried, ""
        assert row.fitted is not None  # only such a one is named in evidence
        budget = float(before["windows_per_alarm"])
        watching = self._watching(connection, row, row.fitted, budget, start_ms)
        if before["before"] == watching.before or watching.state.start_ms is not None:
            return watching, ""
        return carried, ""

    def _in_season(
        self,
        connection: Connection,
        contract: Contract,
        baseline: Baseline | None,
        watching: Watching | Carried | None,
        start_ms: int,
    ) -> Baseline | None:
        """Return the baseline's windows of the season of a window, where its detector has found one."""
        if baseline is None or baseline.id is None or watching is None:
            return baseline
        detector_id = watching.id if isinstance(watching, Watching) else int(watching.prior["id"])
        key = (detector_id, baseline.id, contract.windows.time_zone)
        if key not in self._seasons:
            season: Season = "none"
            try:
                row = self._row(connection, detector_id)
                if row.fitted is not None and row.baseline_id == baseline.id:
                    season = row.fitted.feature_season()
            except ArraysError:
                return baseline
            starts = window_starts(connection, baseline.id) if season != "none" else []
            slots = slots_of(season, starts, contract.windows.time_zone)
            self._seasons = {key: (season, dict(zip(starts, slots.tolist(), strict=True)))}
        season, slots_by_start = self._seasons[key]
        if season == "none":
            return baseline
        slot = int(slots_of(season, [start_ms], contract.windows.time_zone)[0])
        same = [at_ms for at_ms, each in slots_by_start.items() if each == slot]
        if len(same) < LEAST_SEASON_WINDOWS:
            return baseline
        state = state_of_windows(connection, baseline.id, same)
        if state is None:
            return baseline
        return msgspec.structs.replace(
            baseline, state=state, season=slot_name(season, slot), season_windows=len(same)
        )

    def _joint(
        self,
        connection: Connection,
        head: Head | None,
        contract: Contract,
        watching: Watching | Carried | None,
        read: WindowState,
        stalled: str | None,
    ) -> JointState | None:
        """Return how columns went together in the window's sample, as its first judgement found it.

        A window that cannot be judged yet is not read: its sample may be half.
        """
        known = None if head is None else joint_of(head.evidence.prior)
        if known is not None or not isinstance(watching, Watching) or not watching.detector.paired:
            return known
        if stalled is not None or read.lost or not read.rows:
            return None
        wanted = watching.detector.paired
        return window_joint(connection, contract, watching.cuts, read.start_ms, read.end_ms, wanted)

    def _watching(
        self,
        connection: Connection,
        row: DetectorRow,
        fitted: Fitted,
        windows_per_alarm: float,
        start_ms: int,
    ) -> Watching:
        key = (row.id, windows_per_alarm)
        if key not in self._detectors:
            self._detectors = {key: fitted.detector(windows_per_alarm, fitted.length_ms)}
        made = self._detectors[key]
        if fitted.cuts_id not in self._cuts:
            cuts = cuts_at(connection, self.contract.name, fitted.cuts_id)
            assert cuts is not None  # cuts are never let go
            self._cuts = {fitted.cuts_id: cuts}
        state, digest = self._state_before(connection, row.id, made, start_ms)
        return Watching(
            id=row.id, detector=made, cuts=self._cuts[fitted.cuts_id], state=state, before=digest
        )

    def _progress(self) -> str:
        """How far the detector's own reference is, beside a file without times."""
        wanted = self.contract.reference.windows
        windows = 0 if self.draft is None else self.draft.windows
        return f"calibrating: {windows} of {wanted} windows of traffic, since the file has no times"

    def keep_state(self, detector_id: int, start_ms: int, state: State) -> None:
        """Remember the detector's state after a window that was just judged."""
        self.states[detector_id, start_ms] = (state, state_digest(state))

    def moved_states(self, connection: Connection, start_ms: int) -> list[int]:
        """Return the window that follows one whose state is another now, if it was judged: it replays."""
        found = []
        for (detector_id, start), (_, digest) in self.states.items():
            if start != start_ms:
                continue
            kept = digest_after(connection, self.contract.name, detector_id, start_ms)
            if kept != digest:
                later = starts_after(connection, self.contract.name, detector_id, start_ms)
                found += later[:1]
        return found

    def _has_later(self, connection: Connection, detector_id: int, start_ms: int) -> bool:
        later = starts_after(connection, self.contract.name, detector_id, start_ms)
        return bool(later) or any(d == detector_id and s > start_ms for d, s in self.states)

    def _state_before(
        self, connection: Connection, detector_id: int, made: Detector, start_ms: int
    ) -> tuple[State, str]:
        """Return the state before a window: of this tick, as stored, or that of no window."""
        stored = state_before(connection, self.contract.name, detector_id, start_ms)
        mine = [s for d, s in self.states if d == detector_id and s < start_ms]
        if mine and (stored is None or max(mine) >= stored.window_start_ms):
            return self.states[detector_id, max(mine)]
        if stored is not None:
            return stored.state, stored.digest
        empty = made.start()
        return empty, state_digest(empty)

    def compared(self, inputs: WindowInputs, read: WindowState) -> Figures:
        """Return the costly comparisons, from memory when the same were made before."""
        baseline = inputs.baseline
        which = None if baseline is None else (baseline.id, baseline.windows, baseline.season)
        key = (read.digest, which, inputs.judged_version)
        if key not in self._compared:
            answers = inputs.by_version.get(inputs.judged_version or "")
            self._compared[key] = comparisons(inputs.state, inputs.cuts, baseline, answers)
            if len(self._compared) > COMPARISONS_KEPT:
                self._compared.popitem(last=False)
        return self._compared[key]

    def gather(self, state: PaneState) -> int:
        """Add a closed window to the draft in memory; return how many windows it now has."""
        wanted = self.contract.reference.windows
        if self.draft is None:
            self.draft = Baseline(state, 1, wanted)
        else:
            self.draft = Baseline(self.draft.state.merge(state), self.draft.windows + 1, wanted)
        self._keep_draft(self.draft)
        return self.draft.windows

    def _keep_draft(self, draft: Baseline) -> None:
        self._drafts[draft.windows] = draft
        while len(self._drafts) > DRAFTS_KEPT:
            self._drafts.popitem(last=False)

    def _draft_of(self, connection: Connection, windows: int, wanted: int) -> Baseline | None:
        """Return the draft as it was with so many windows, from memory or from the windows it kept."""
        if windows not in self._drafts:
            kept = baselines.first_traffic_windows(connection, self.contract.name, windows)
            merged = merge_states(state for _, state in kept)
            if merged is None or len(kept) < windows:
                return None
            self._keep_draft(Baseline(merged, windows, wanted))
        return self._drafts.get(windows)

    def _cuts_of(self, connection: Connection, read: WindowState) -> ModelCuts | None:
        if read.cuts_id is None or (self.cuts and self.cuts.cuts_id == read.cuts_id):
            return self.cuts
        return cuts_at(connection, self.contract.name, read.cuts_id)

    def _baseline_of(
        self, connection: Connection, head: Head | None, read: WindowState
    ) -> Baseline | None:
        found = self.baseline or self.draft
        if head is not None:
            known = head.evidence.prior.get("baseline")
            if known is None:
                found = None
            elif known[0] is not None:
                found = self._baseline(connection, known[0])
            else:
                found = self._draft_of(connection, known[1], known[2])
        if found is None or (read.state and found.state.cuts_id != read.state.cuts_id):
            return None
        return found

    def _judged_version(
        self, head: Head | None, read: WindowState, performance: Mapping[str, Labelled]
    ) -> str | None:
        """The champion where it has rows; else the version with most rows, ties by name."""
        before = None if head is None else head.evidence.prior.get("judged_version")
        if isinstance(before, str):
            return before
        if self.champion in read.by_version:
            return self.champion
        rows = {version: state.rows for version, state in read.by_version.items()}
        rows = rows or {version: p.predicted_rows for version, p in performance.items()}
        return max(sorted(rows), key=lambda version: rows[version], default=None)

    def _prior(
        self,
        connection: Connection,
        contract: Contract,
        start_ms: int,
        key: BaselineKey | None,
        judged: str | None,
    ) -> list[PriorWindow]:
        """Rule memory: of each rule only windows judged under the same baseline, or version, count."""
        length_ms = contract.windows.length_ms
        memory = self.memory
        if contract is not self.contract:
            memory = longest_memory(rules_of(contract))
        prior = []
        for back in range(memory, 0, -1):
            head = self.head(connection, start_ms - back * length_ms)
            if head is not None:
                prior.append(remembered(head, key, judged))
        return prior


def remembered(head: Head, key: BaselineKey | None, judged: str | None) -> PriorWindow:
    """Return what a verdict remembers for a later window under this baseline and judged version."""
    before = head.evidence.prior.get("baseline")
    same_baseline = (before[0] if before else None) == (key[0] if key else None)
    same_version = head.evidence.prior.get("judged_version") == judged
    flags: dict[str, bool | None] = {}
    onsets: dict[str, int] = {}
    for finding in head.findings:
        if finding.rule is None:
            continue
        if finding.kind in _COMPARED and not same_baseline:
            continue
        if finding.reference is not None and not same_baseline:
            continue
        if finding.kind is Kind.PERFORMANCE and not same_version:
            continue
        flags[finding.rule] = flag_of(finding)
        if finding.outcome is Outcome.ALARM and finding.onset_ms is not None:
            onsets[finding.rule] = finding.onset_ms
    return PriorWindow(head.window_start_ms, flags, onsets)


def _labels_due(
    contract: Contract, end_ms: int, watermark_ms: int | None, labelled: Labelled | None
) -> bool:
    after_ms = contract.labels.judge_after_ms
    if after_ms is None or watermark_ms is None or watermark_ms < end_ms + after_ms:
        return False
    if labelled is None:
        return not has_labels_wanted(contract, 0, 0)
    return not has_labels_wanted(contract, labelled.labelled_rows, labelled.predicted_rows)


def has_labels_wanted(contract: Contract, labelled_rows: int, predicted_rows: int) -> bool:
    """Whether a window has the labels that every rule on performance wants: that they are due changes nothing."""
    wanted = _labels_wanted(contract)
    if wanted == 0:
        return True
    return labelled_rows >= wanted and enough_labelled(contract, labelled_rows, predicted_rows)


def _labels_wanted(contract: Contract) -> int:
    """Return how many labelled rows of a window satisfy every rule on performance; 0 without one."""
    return max(
        (
            rule.min_rows if rule.min_rows is not None else contract.windows.min_rows
            for rule in rules_of(contract)
            if rule.kind.value == Kind.PERFORMANCE.value
        ),
        default=0,
    )


def _changed(
    head: Head,
    read: WindowState,
    performance: Mapping[str, Labelled],
    resources: ResourceState,
) -> str:
    rows = (read.state.rows if read.state else 0) - head.figures.rows
    labels = sum(p.labelled_rows for p in performance.values()) - head.figures.labelled_rows
    known = head.figures.resource_samples
    samples = 0 if known is None else resources.samples - known
    counts = ((rows, "rows"), (labels, "labelled rows"), (samples, "samples of resources"))
    parts = [f"{count:+d} {what}" for count, what in counts if count]
    return ", ".join(parts) or "other evidence about the same rows"


def _champion(connection: Connection, model: str) -> str | None:
    body = connection.scalar(select(traffic.c.body).where(traffic.c.model == model))
    return None if body is None else msgspec.json.decode(body, type=Traffic).arms[0].version
