"""The evaluator: closed windows to verdicts, verdicts to alerts, all in one transaction per model.

Under a lease. Each tick, for each model of which something has moved (`quiet`): windows that the watermark has passed, in order; and earlier
windows whose input changed, found by the positions of flushes and joins, each revised at most once per
`coalesce_ms` and only when its digest differs. It reads in one snapshot, computes without holding a lock,
and writes verdicts, alerts, outbox and its own progress in one transaction that checks the lease.
"""

import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

import msgspec
from msgspec import Struct
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from trimtab import logs
from trimtab.alerts.lifecycle import AlertChange, condition_of, next_alerts
from trimtab.contracts.model import Contract
from trimtab.detect.baseline import usable
from trimtab.detect.budget import FLEET, Budget, budget_of, parse_budget, sharing_of
from trimtab.detect.calibration import FULL_WINDOWS
from trimtab.detect.drift import Watched, Watching, says_the_same
from trimtab.detect.evidence import State
from trimtab.detect.observed import Observed
from trimtab.detect.rules import flag_of, longest_memory, rules_of
from trimtab.detect.series import close_windows, coalesce_ms
from trimtab.detect.verdict import (
    WindowInputs,
    detector_prior,
    encode,
    evaluate,
    input_digest,
    watched,
)
from trimtab.errors import ConflictError, TrimtabError
from trimtab.events.types import ALERT_TYPE, VERDICT_TYPE
from trimtab.monitor.fits import Fits, Wanted, recipe_of
from trimtab.monitor.quiet import Quiet, closed_to
from trimtab.monitor.window_inputs import ModelReader, has_labels_wanted
from trimtab.records import Finding, Outcome, Reason, Verdict
from trimtab.store import alerts, baselines
from trimtab.store.baselines import detector_baseline_id
from trimtab.store.detectors import add_detector, find_detector, save_states
from trimtab.store.engine import Store
from trimtab.store.flushes import held_total
from trimtab.store.leases import Lease, acquire, check, release
from trimtab.store.models import ContractRow, CurrentContracts
from trimtab.store.panes import first_start_ms, starts_with_rows
from trimtab.store.samples import window_joint
from trimtab.store.verdicts import (
    Head,
    Progress,
    add_verdict,
    flushed_since,
    head_of,
    joined_since,
    last_window,
    progress_of,
    save_progress,
    windows_ending,
)
from trimtab.store.watermarks import watermark_of
from trimtab.store.window_state import WindowState, segment_states
from trimtab.windows.panes import start_of
from trimtab.windows.watermark import Watermark

LEASE = "evaluator"
WINDOWS_PER_TICK = 64
"""Per model: a backlog is worked off in transactions of this size, so that other models get their turn."""
GROW_EVERY_WINDOWS = 24
"""A provisional baseline that could not be made whole is tried again after so many windows."""
LOOKS_PER_TICK = 200
"""Models looked at, beside those that have nothing: a tick ends long before its lease does, in a fleet too."""

log = logs.get("evaluator")


class _Judged(Struct, frozen=True):
    """One verdict that is about to be written."""

    verdict: Verdict
    counts: Observed | None
    """None where they are not all under one set of cuts."""
    gather: bool
    """Whether its counts go into the baseline from traffic."""


class _Plan(Struct):
    """What one tick does to one model."""

    judged: list[_Judged]
    progress: Progress
    changed: bool
    mark: Watermark
    next_end_ms: int
    """End of the window that would be judged next."""
    again_ms: int | None
    """When the first of the revisions that wait may be judged."""
    states: dict[tuple[int, int], tuple[State, str]]
    """The detector's states after windows, and their digests, by (detector, window start)."""


class Evaluator:
    """Judges every model's closed windows. `tick` from one thread only."""

    def __init__(
        self,
        store: Store,
        owner: str,
        *,
        lease_s: float = 30.0,
        fleet: str = FLEET,
        fit_wait_s: float = 0.5,
        before_commit: Callable[[str], None] | None = None,
        skip_quiet: bool = True,
    ) -> None:
        """`owner` names this process; `before_commit(model)` is called inside each transaction, last.

        `fleet` is the budget of false alarms of all models that state none. A tick waits `fit_wait_s` for a
        detector that is being fitted; its model's new windows wait until it is there.
        Without `skip_quiet` every model is looked at in every tick, which writes the same verdicts.
        """
        self._store = store
        self._owner = owner
        self._hold_ms = round(lease_s * 1000)
        self._fleet = parse_budget(fleet)
        self._fits = Fits(store)
        self._fit_wait_s = self._wait_s = fit_wait_s
        self._sharing = 0
        self._grown_to_ms: dict[str, int] = {}
        """Up to where a provisional baseline was last tried to be made whole."""
        self._before_commit = before_commit or (lambda _model: None)
        self._lease: Lease | None = None
        self._contracts = CurrentContracts(store)
        self._readers: dict[str, ModelReader] = {}
        self._quiet = Quiet() if skip_quiet else None
        self._turn = ""
        self.behind = False
        """Whether the last tick left models to look at: the next should come soon."""
        self.failures: dict[str, str] = {}
        """Models whose last evaluation failed, and why; shown by metrics and status."""

    def tick(self, now_ms: int) -> int:
        """Judge what is due; return the number of verdicts written (0 while another holds the lease)."""
        lease = self._held(now_ms)
        if lease is None:
            return 0
        for model in self._contracts.refresh():
            self._readers.pop(model, None)
            self.failures.pop(model, None)
        self._sharing = sharing_of(row.contract for row in self._contracts.rows.values())
        if self._quiet is not None:
            with self._store.read() as connection:
                self._quiet.look(connection)
        written = looks = 0
        self.behind, self._wait_s = False, self._fit_wait_s
        for model, row in self._in_turn():
            if self._quiet is not None:
                if self._quiet.has_nothing(row, now_ms):
                    continue
                if looks == LOOKS_PER_TICK:
                    self.behind, self._turn = True, model
                    break
            looks += 1
            try:
                written += self._evaluate(model, row, lease, now_ms)
                self.failures.pop(model, None)
            except ConflictError:
                self._lease = None
                self._forget_all()
                log.info("evaluator_lost_lease", owner=self._owner)
                return written
            except SQLAlchemyError:
                raise  # the store is away, for every model alike
            except Exception as error:
                # One model that cannot be judged must not keep the others from it.
                said = str(error) if isinstance(error, TrimtabError) else repr(error)
                if self.failures.get(model) != said:
                    log.exception("evaluation_failed", model=model)
                self.failures[model] = said
                self._readers.pop(model, None)
        return written

    def _in_turn(self) -> Iterable[tuple[str, ContractRow]]:
        """Every model once, from the one at which the last tick stopped."""
        rows = self._contracts.rows
        names = list(rows)
        first = bisect_left(names, self._turn)
        return [(name, rows[name]) for name in (*names[first:], *names[:first])]

    def close(self) -> None:
        """Give the lease back."""
        self._fits.close()
        if self._lease is not None:
            release(self._store, self._lease)
            self._lease = None

    def _held(self, now_ms: int) -> Lease | None:
        """Renew at half time, so that an idle tick writes nothing."""
        if self._lease is not None and self._lease.expires_ms - now_ms > self._hold_ms // 2:
            return self._lease
        before = self._lease
        self._lease = acquire(self._store, LEASE, self._owner, now_ms, self._hold_ms)
        if before is None or self._lease is None or self._lease.token > before.token + 1:
            self._forget_all()  # another owner has held it since, and may have written
        return self._lease

    def _forget_all(self) -> None:
        self._readers.clear()
        if self._quiet is not None:
            self._quiet.clear()

    def _reader(self, row: ContractRow) -> ModelReader:
        reader = self._readers.get(row.contract.name)
        if reader is None or reader.revision != row.revision:
            reader = ModelReader(self._store, row.contract, row.revision)
            self._readers[row.contract.name] = reader
        return reader

    def _evaluate(self, model: str, row: ContractRow, lease: Lease, now_ms: int) -> int:
        reader = self._reader(row)
        if not self._has_detector(row, lease, now_ms):
            self.behind = True
        with self._store.read() as connection:
            plan = self._plan(connection, reader, now_ms)
        self._note(row, plan)
        if plan is None or not plan.changed:
            return 0
        try:
            written = self._write(model, row.contract, plan, lease, now_ms)
        except BaseException:
            reader.forget()
            raise
        self._grow(reader, plan.progress.evaluated_to_ms, lease, now_ms)
        return written

    def _grow(self, reader: ModelReader, to_ms: int, lease: Lease, now_ms: int) -> None:
        """Make a whole baseline of a provisional one, once enough windows have come since its change."""
        row, contract = reader.detector, reader.contract
        if row is None or row.fitted is None or not row.fitted.inherited or reader.has_open(row.id):
            return
        model, length_ms = contract.name, contract.windows.length_ms
        from_ms = reader.provisional_from_ms
        tried_ms = self._grown_to_ms.get(model, 0)
        if from_ms is None or to_ms < max(
            from_ms + FULL_WINDOWS * length_ms, tried_ms + GROW_EVERY_WINDOWS * length_ms
        ):
            return
        self._grown_to_ms[model] = to_ms
        try:
            baselines.rebase(
                self._store,
                model,
                from_ms,
                to_ms,
                f"grown:{row.baseline_id}",
                now_ms,
                version=reader.champion,
                least_windows=FULL_WINDOWS,
                fence=lambda connection: check(connection, lease),
            )
        except TrimtabError as error:
            if isinstance(error, ConflictError):
                raise
            log.info("baseline_not_grown", model=model, reason=str(error))

    def _budget(self, contract: Contract) -> Budget:
        return budget_of(contract, self._fleet, self._sharing)

    def _has_detector(self, row: ContractRow, lease: Lease, now_ms: int) -> bool:
        """Whether the active baseline's detector is made, or needs none; has it made where it is not."""
        model, contract = row.contract.name, row.contract
        budget, recipe = self._budget(contract), recipe_of(contract)
        with self._store.read() as connection:
            baseline_id = detector_baseline_id(connection, model)
            if baseline_id is None:
                return True
            if find_detector(connection, model, baseline_id, recipe) is not None:
                return True
        wanted = Wanted(model, baseline_id, recipe)
        made = self._fits.ask(wanted, contract, budget, self._wait_s)
        if made is None:
            self._wait_s = 0.0  # once in a tick: a fleet that waits must not outlast the lease
            return False
        with self._store.write() as connection:
            check(connection, lease)
            add_detector(connection, model, baseline_id, recipe, made, now_ms)
        return True

    def _note(self, row: ContractRow, plan: _Plan | None) -> None:
        if self._quiet is None:
            return
        if plan is None:
            self._quiet.remember(row, None, None, None)
        elif plan.changed:
            self._quiet.forget(row.contract.name)
        else:
            self._quiet.remember(row, plan.mark, plan.next_end_ms, plan.again_ms)

    # --- reading and judging ----------------------------------------------------------------------

    def _plan(self, connection: Connection, reader: ModelReader, now_ms: int) -> _Plan | None:
        contract = reader.contract
        model, length_ms = contract.name, contract.windows.length_ms
        progress = progress_of(connection, model)
        has_begun = progress is not None
        if progress is None:
            first_ms = first_start_ms(connection, model)
            # Rows held for the cuts are counted partition by partition; a baseline that began
            # in between would hold half of its first windows.
            if first_ms is None or held_total(connection, model):
                return None
            progress = Progress(evaluated_to_ms=start_of(first_ms, length_ms))
        done_ms = progress.evaluated_to_ms
        from_ms = -(-done_ms // length_ms) * length_ms
        mark, rows = watermark_of(connection, contract, now_ms)
        flushed = flushed_since(connection, model, progress.seen)
        joined = joined_since(connection, model, progress.joined)
        due = _labels_due_windows(connection, contract, progress.due_to_ms, mark.ms)
        changed: set[int] = set()
        if has_begun:  # before the first window nothing was judged, though gauges may be older
            touched = flushed.pane_starts_ms | joined.pane_starts_ms
            changed = {
                *_windows_of(connection, reader, touched, done_ms),
                *flushed.windows_ms,
                *progress.pending,
                *(start_ms for start_ms in due if not _has_labels(reader, connection, start_ms)),
            }
        reader.begin(connection)
        if has_begun:
            changed |= reader.waiting_for_reference(connection, mark.ms, done_ms)
        fitted = reader.look_for_detector(connection, recipe_of(contract), self._budget(contract))
        # Revisions first, so that new windows remember what is now known of the earlier ones.
        revised, pending, again_ms = self._revise(connection, reader, changed, mark, now_ms)
        closed_to_ms = closed_to(contract, mark, done_ms, rows, now_ms) if fitted else done_ms
        if not fitted:  # new windows wait for their detector
            again_ms = now_ms
        evaluated_to_ms, empty_windows = done_ms, progress.empty_windows
        judged: list[_Judged] = []
        if closed_to_ms >= from_ms:
            with_rows, closed_to_ms = _windows_with_rows(
                connection, contract, from_ms, closed_to_ms
            )
            closing = close_windows(
                from_ms,
                closed_to_ms,
                length_ms,
                with_rows,
                progress.empty_windows,
                WINDOWS_PER_TICK,
            )
            windows = [(start_ms, start_ms + length_ms) for start_ms in closing.window_starts_ms]
            # Between the last window of another length and the first of this one.
            if done_ms < from_ms and starts_with_rows(connection, model, done_ms, from_ms, 1):
                windows.insert(0, (done_ms, from_ms))
            judged, full_to_ms = self._judge_new(connection, reader, windows, mark, now_ms)
            evaluated_to_ms, empty_windows = closing.evaluated_to_ms, closing.empty_windows
            if full_to_ms is not None:  # the baseline is complete: the rest waits for its number
                evaluated_to_ms, empty_windows = full_to_ms, 0
        pending |= {
            j.verdict.window_start_ms for j in judged if _stalled(mark, j.verdict.window_end_ms)
        }
        after = Progress(
            evaluated_to_ms=evaluated_to_ms,
            seen=flushed.positions,
            joined=joined.positions,
            pending=sorted(pending),
            due_to_ms=_due_to(contract, progress.due_to_ms, mark.ms),
            empty_windows=empty_windows,
        )
        moved = msgspec.structs.replace(after, due_to_ms=progress.due_to_ms) != progress
        changed_any = moved or bool(judged or revised or due)
        states = dict(reader.states)
        return _Plan(
            [*revised, *judged],
            after,
            changed_any or bool(states),
            mark,
            from_ms + length_ms,
            again_ms,
            states,
        )

    def _judge_new(
        self,
        connection: Connection,
        reader: ModelReader,
        windows: Sequence[tuple[int, int]],
        mark: Watermark,
        now_ms: int,
    ) -> tuple[list[_Judged], int | None]:
        """Judge windows, each (start, end), in order; stop after the one that completes the baseline from traffic.

        Returns that one's end as well.
        """
        length_ms = reader.contract.windows.length_ms
        min_rows = reader.contract.windows.min_rows
        judged = []
        for start_ms, end_ms in windows:
            one = self._judge(connection, reader, start_ms, end_ms, mark, now_ms)
            if one is None:
                continue
            verdict, counts = one
            if (
                not reader.gathering
                or end_ms - start_ms != length_ms
                or _stalled(mark, verdict.window_end_ms) is not None
                or counts is None
                or not usable(counts.state, min_rows)
                or not reader.same_cuts(counts.state)
            ):
                judged.append(_Judged(verdict, counts, gather=False))
                continue
            judged.append(_Judged(verdict, counts, gather=True))
            if reader.gather(counts.state) >= reader.contract.reference.windows:
                return judged, end_ms
        return judged, None

    def _revise(
        self,
        connection: Connection,
        reader: ModelReader,
        changed: set[int],
        mark: Watermark,
        now_ms: int,
    ) -> tuple[list[_Judged], set[int], int | None]:
        """Judge changed windows again, oldest first; windows that remember them follow.

        Returns the new revisions, the windows that must wait, and when the first of these may be judged; None
        where all wait for the watermark.
        """
        queue = sorted(changed)
        heapq.heapify(queue)
        queued, done, pending = set(queue), set[int](), set[int]()
        revised: list[_Judged] = []
        again_ms: int | None = None
        looked_at = 0
        while queue:
            start_ms = heapq.heappop(queue)
            if start_ms in done:
                continue
            done.add(start_ms)
            if (
                looked_at >= WINDOWS_PER_TICK
            ):  # the rest waits unread: it may be two years of windows
                pending.add(start_ms)
                again_ms = now_ms
                continue
            head = reader.head(connection, start_ms)
            # A window keeps the length that it was first judged with, and so do those that remember it.
            _, contract = reader.contract_of(head)
            length_ms = contract.windows.length_ms
            end_ms = start_ms + length_ms if head is None else head.window_end_ms
            open_ = mark.ms is None or end_ms > mark.ms
            held = head is not None and head.reason is Reason.STALLED and open_
            may_at_ms = now_ms if head is None else head.created_ms + coalesce_ms(length_ms)
            if held or may_at_ms > now_ms:
                pending.add(start_ms)
                if not held:
                    again_ms = may_at_ms if again_ms is None else min(again_ms, may_at_ms)
                continue
            looked_at += 1
            one = self._judge(connection, reader, start_ms, end_ms, mark, now_ms, again=True)
            for follower in reader.moved_states(connection, start_ms):
                if follower not in queued:
                    queued.add(follower)
                    heapq.heappush(queue, follower)
            if one is None:
                continue
            revised.append(_Judged(one[0], one[1], gather=False))
            if head is None or _memory_of(head.findings) != _memory_of(one[0].findings):
                memory = max(reader.memory, longest_memory(rules_of(contract)))
                for later in range(1, memory + 1):
                    follower = start_ms + later * length_ms
                    if follower not in queued and reader.head(connection, follower) is not None:
                        queued.add(follower)
                        heapq.heappush(queue, follower)
        return revised, pending, again_ms

    def _judge(
        self,
        connection: Connection,
        reader: ModelReader,
        start_ms: int,
        end_ms: int,
        mark: Watermark,
        now_ms: int,
        *,
        again: bool = False,
    ) -> tuple[Verdict, Observed | None] | None:
        """Return the window's new verdict, which is remembered; None when its evidence is what it was.

        With its counts, where all are under one set of cuts.
        """
        head = reader.head(connection, start_ms)
        if again and head is None and not _may_be_judged_late(connection, reader, start_ms, end_ms):
            return None
        inputs, read = reader.inputs(connection, start_ms, end_ms, mark.ms, _stalled(mark, end_ms))
        if head is not None and head.evidence.input_digest == input_digest(inputs):
            return None
        if read.coarser is not None or (head is not None and _has_less(inputs, read, head)):
            return None  # its counts are past retention: what was judged of them stays
        said = watched(inputs)
        if said is not None and isinstance(inputs.detector, Watching):
            reader.keep_state(inputs.detector.id, start_ms, said.after)
        if head is not None and _only_replayed(inputs, said, head):
            return None  # people would read the same
        verdict = evaluate(inputs, reader.compared(inputs, read), said)
        reader.remember(head_of(encode(verdict), now_ms))
        if read.state is None or read.other_cuts_rows:
            return verdict, None
        counts = Observed(state=read.state, resources=inputs.resources, segments=inputs.segments)
        if reader.gathering and inputs.cuts is not None:
            contract = inputs.contract
            counts = msgspec.structs.replace(
                counts,
                segments=segment_states(
                    connection, contract, start_ms, end_ms, inputs.cuts.cuts_id
                ),
                joint=window_joint(connection, contract, inputs.cuts, start_ms, end_ms),
            )
        return verdict, counts

    # --- writing ------------------------------------------------------------------------------------

    def _write(self, model: str, contract: Contract, plan: _Plan, lease: Lease, now_ms: int) -> int:
        written = 0
        with self._store.write() as connection:
            check(connection, lease)
            for judged in plan.judged:
                verdict = judged.verdict
                verdict_id = add_verdict(connection, verdict, now_ms)
                if verdict_id is None:
                    continue
                written += 1
                _publish_verdict(connection, verdict, verdict_id, now_ms)
                _apply_alerts(connection, contract, verdict, verdict_id, now_ms)
            windows = [
                (j.verdict.window_start_ms, j.counts)
                for j in plan.judged
                if j.gather and j.counts is not None
            ]
            if windows:
                baselines.extend_draft(
                    connection,
                    model,
                    windows,
                    contract.reference.windows,
                    contract.windows.length_ms,
                    now_ms,
                )
            if plan.states:
                to_ms = plan.progress.evaluated_to_ms
                reach_ms = contract.windows.lateness_ms + contract.windows.length_ms
                save_states(connection, model, plan.states, to_ms - reach_ms)
            save_progress(connection, model, plan.progress, now_ms)
            self._before_commit(model)
        return written


def _has_labels(reader: ModelReader, connection: Connection, start_ms: int) -> bool:
    """Whether the judged version has every label that a rule wants: that they are due changes nothing."""
    head = reader.head(connection, start_ms)
    if head is None:
        return False
    found = head.figures.performance.get(str(head.evidence.prior.get("judged_version")), {})
    labelled, predicted = (int(found.get(f"{n}_rows", 0)) for n in ("labelled", "predicted"))
    return has_labels_wanted(reader.contract, labelled, predicted)


def _windows_of(
    connection: Connection, reader: ModelReader, panes_ms: Iterable[int], done_ms: int
) -> set[int]:
    """Starts of the windows before `done_ms` that panes lie in: judged ones of any length, or passed over."""
    length_ms = reader.contract.windows.length_ms
    found = set()
    for pane_ms in (pane_ms for pane_ms in panes_ms if pane_ms < done_ms):
        start_ms = start_of(pane_ms, length_ms)
        head = reader.head(connection, start_ms)
        if head is None or head.window_end_ms <= pane_ms:
            last = last_window(connection, reader.contract.name, pane_ms + 1)
            if last is not None and last[1] > pane_ms:
                start_ms = last[0]
            elif head is not None or start_ms + length_ms > done_ms:
                continue  # in no window, nor in a whole one
        found.add(start_ms)
    return found


def _may_be_judged_late(
    connection: Connection, reader: ModelReader, start_ms: int, end_ms: int
) -> bool:
    """Whether a window that was passed over may have its first verdict now.

    It holds rows, for gauges alone make no window, and no window of another length has judged them.
    """
    model = reader.contract.name
    if not starts_with_rows(connection, model, start_ms, end_ms, 1):
        return False
    last = last_window(connection, model, end_ms)
    return last is None or last[1] <= start_ms


def _has_less(inputs: WindowInputs, read: WindowState, head: Head) -> bool:
    """Whether retention has taken rows or samples that the window's last verdict counted."""
    rows, samples = head.figures.rows, head.figures.resource_samples
    return read.rows < rows or (samples is not None and inputs.resources.samples < samples)


def _only_replayed(inputs: WindowInputs, said: Watched | None, head: Head) -> bool:
    """Whether nothing but the detector's state before the window is another, and it says what it said."""
    before = head.evidence.prior.get("detector")
    if said is None or before is None or not isinstance(inputs.detector, Watching):
        return False
    if detector_prior(inputs.detector) == before or head.figures.detector is None:
        return False
    as_it_was = msgspec.structs.replace(
        inputs, detector=msgspec.structs.replace(inputs.detector, before=before["before"])
    )
    same = head.evidence.input_digest == input_digest(as_it_was)
    return same and says_the_same(head.figures.detector, said.tree)


def _memory_of(findings: list[Finding]) -> list[tuple[str | None, bool | None, int | None]]:
    """What later windows remember of a verdict."""
    return [
        (f.rule, flag_of(f), f.onset_ms if f.outcome is Outcome.ALARM else None)
        for f in findings
        if f.rule is not None
    ]


def _stalled(mark: Watermark, end_ms: int) -> str | None:
    if mark.reason != "stalled" or (mark.ms is not None and end_ms <= mark.ms):
        return None
    return (
        f"partitions {', '.join(map(str, mark.held_by))} make no progress and may hold rows of it"
    )


def _windows_with_rows(
    connection: Connection, contract: Contract, from_ms: int, to_ms: int
) -> tuple[set[int], int]:
    """Starts of windows with rows in [from_ms, to_ms), and up to where this is known."""
    length_ms = contract.windows.length_ms
    limit = (WINDOWS_PER_TICK + 1) * max(1, length_ms // contract.windows.pane_ms)
    starts = starts_with_rows(connection, contract.name, from_ms, to_ms, limit)
    if len(starts) == limit:
        to_ms = min(to_ms, start_of(starts[-1], length_ms))
    return {start_of(start, length_ms) for start in starts}, to_ms


def _due_to(contract: Contract, due_to_ms: int | None, mark_ms: int | None) -> int | None:
    after_ms = contract.labels.judge_after_ms
    if after_ms is None or mark_ms is None:
        return due_to_ms
    return mark_ms - after_ms if due_to_ms is None else max(due_to_ms, mark_ms - after_ms)


def _labels_due_windows(
    connection: Connection, contract: Contract, due_to_ms: int | None, mark_ms: int | None
) -> list[int]:
    """Windows whose time to wait for labels has run out since the last look."""
    after_ms = contract.labels.judge_after_ms
    if after_ms is None or mark_ms is None:
        return []
    from_ms = mark_ms - after_ms if due_to_ms is None else due_to_ms
    return windows_ending(connection, contract.name, from_ms, mark_ms - after_ms)


def _publish_verdict(
    connection: Connection, verdict: Verdict, verdict_id: int, now_ms: int
) -> None:
    alerts.enqueue(
        connection,
        f"verdict:{verdict.window_start_ms}:{verdict.revision}",
        alerts.OUTCOMES,
        verdict.model,
        VERDICT_TYPE,
        {
            "verdict_id": verdict_id,
            "window_start_ms": verdict.window_start_ms,
            "window_end_ms": verdict.window_end_ms,
            "revision": verdict.revision,
            "outcome": str(verdict.outcome),
            "kind": None if verdict.kind is None else str(verdict.kind),
            "reason": str(verdict.reason),
            "summary": verdict.summary,
            "changed": verdict.changed,
        },
        now_ms,
    )


def _apply_alerts(
    connection: Connection, contract: Contract, verdict: Verdict, verdict_id: int, now_ms: int
) -> None:
    """Open, update and resolve alerts by a verdict, and queue what receivers should hear."""
    held = alerts.open_alerts(connection, verdict.model, lock=True)
    open_conditions = {alert.condition for alert in held}
    alarming = {condition_of(f) for f in verdict.findings if f.outcome is Outcome.ALARM}
    closed = alerts.last_resolved(connection, verdict.model, sorted(alarming - open_conditions))
    silences = alerts.silences_of(connection, verdict.model, now_ms)
    for change in next_alerts([*held, *closed], verdict, verdict_id, now_ms):
        alert = change.alert
        alerts.save_alert(connection, alert)
        silenced = any(s.mutes(alert.condition, now_ms) for s in silences)
        alerts.enqueue(
            connection,
            f"alert:{alert.id}:{change.change}:{verdict_id}",
            alerts.OUTCOMES,
            alert.model,
            ALERT_TYPE,
            alerts.alert_event_body(alert, change.change, silenced=silenced),
            now_ms,
            _receivers(contract, change, silenced=silenced),
        )


def _receivers(contract: Contract, change: AlertChange, *, silenced: bool) -> list[str]:
    """Kafka hears everything; webhooks hear of beginnings and ends that nobody has silenced."""
    if silenced or change.change == "updated":
        return [alerts.KAFKA]
    return [alerts.KAFKA, *(f"webhook:{name}" for name in contract.alarms.webhooks)]
