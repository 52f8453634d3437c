"""The demo's script: phases in order, each with the camera it sets and the sight that ends it.

Pure: what the store shows goes in (`Seen`), whether the phase is over comes out. A phase that does
not end within its limit names the link of the loop that did not close.
"""

from collections.abc import Callable

from msgspec import Struct

from trimtab.records import FINAL_ROLLOUT, FINAL_RUN, Incident, Rollout, RolloutState, Run, RunState
from trimtab_agent.decide import Why
from trimtab_agent.demo.camera import CLEAN, STEPS, Lens
from trimtab_agent.demo.digits import Pool

STEADY_WINDOWS = 4


class Window(Struct, frozen=True):
    """One judged window."""

    start_ms: int
    outcome: str
    accuracy: float | None
    """Over all versions; None before labels came."""
    rows: int


class Seen(Struct, frozen=True, kw_only=True):
    """What the store shows now."""

    windows: list[Window]
    """Newest first."""
    champion: str
    alerts_opened: int = 0
    quality_alerts: int = 0
    """Of these the ones about performance."""
    alerts_open: int = 0
    reasons: frozenset[str] = frozenset()
    """Reason codes of all decisions so far."""
    incident: Incident | None = None
    run: Run | None = None
    rollout: Rollout | None = None

    def steady(self, outcome: str = "ok", windows: int = STEADY_WINDOWS) -> bool:
        """Whether the newest labelled windows all have this outcome."""
        labelled = [window for window in self.windows if window.accuracy is not None][:windows]
        return len(labelled) == windows and all(w.outcome == outcome for w in labelled)

    def since(self, moment_ms: int) -> list[Window]:
        """Windows that start at or after the moment."""
        return [window for window in self.windows if window.start_ms >= moment_ms]


class Phase(Struct, frozen=True, kw_only=True):
    """One act: what the camera does, and what must be seen before the next one."""

    name: str
    title: str
    link: str
    """The link of the loop that failed when the phase does not end."""
    over: Callable[[Seen], bool]
    limit_s: float
    least_s: float = 0.0
    lens: Lens | None = None
    """None: as it was."""
    pool: Pool | None = None


def script(*, bad_challenger: bool) -> list[Phase]:
    """The phases of the demo, or of its other ending."""
    beginning = [
        Phase(
            name="healthy",
            title="A healthy model: the camera is clean",
            link="verdicts: no window was judged ok",
            over=lambda seen: seen.steady(),
            limit_s=240,
            lens=CLEAN,
            pool="early",
        ),
        Phase(
            name="moved",
            title="The camera degrades a little: inputs move, accuracy holds",
            link="decision: the agent did not record that inputs moved without harm",
            over=lambda seen: str(Why.INPUTS_MOVED_NO_HARM) in seen.reasons,
            limit_s=150,
            lens=STEPS[0],
        ),
        Phase(
            name="worse",
            title="The camera degrades more: accuracy falls",
            link="",
            over=lambda _: True,
            least_s=6,
            limit_s=30,
            lens=STEPS[1],
        ),
        Phase(
            name="alert",
            title="The camera is bad, and stays so",
            link="alert: accuracy fell and no alert was opened",
            over=lambda seen: seen.quality_alerts > 0,
            limit_s=150,
            lens=STEPS[2],
        ),
        Phase(
            name="decide",
            title="The agent gathers labels and decides",
            link="decision: no retraining run was started",
            over=lambda seen: seen.run is not None,
            limit_s=240,
        ),
        Phase(
            name="search",
            title="Bayesian search over hyperparameters, architecture and data",
            link="search: no winner was fitted",
            over=lambda seen: _past_search(seen.run),
            limit_s=240,
        ),
        Phase(
            name="gate",
            title="The challenger meets the champion on held-out rows",
            link="gate: the challenger was not blessed",
            over=lambda seen: seen.run is not None and seen.run.state == RunState.BLESSED,
            limit_s=150,
        ),
        Phase(
            name="start",
            title="The canary starts",
            link="rollout: the canary did not start",
            over=lambda seen: seen.rollout is not None and seen.rollout.state != "pending",
            limit_s=90,
        ),
    ]
    if bad_challenger:
        return [
            *beginning,
            Phase(
                name="canary",
                title="The camera is repaired as the canary starts",
                link="rollback: the worse challenger was not rolled back",
                over=lambda seen: _rollout_in(seen, RolloutState.ROLLED_BACK),
                limit_s=360,
                lens=CLEAN,
                pool="late",
            ),
            Phase(
                name="ok",
                title="The old champion serves everything again",
                link="verdicts: the model did not return to ok",
                over=lambda seen: seen.steady() and seen.alerts_open == 0,
                least_s=4,
                limit_s=240,
                pool="early",  # the baseline's digits: others are a change, if a small one
            ),
        ]
    return [
        *beginning,
        Phase(
            name="canary",
            title="Canary steps on live traffic",
            link="canary: the challenger was not promoted",
            over=lambda seen: (
                seen.rollout is not None
                and seen.rollout.state in (RolloutState.WATCHING, RolloutState.DONE)
            ),
            limit_s=360,
            pool="late",
        ),
        Phase(
            name="watch",
            title="Promoted; the old champion keeps a holdback",
            link="watch: the watch period did not end",
            over=lambda seen: _rollout_in(seen, RolloutState.DONE),
            limit_s=150,
        ),
        Phase(
            name="ok",
            title="Back to ok",
            link="verdicts: the model did not return to ok",
            over=lambda seen: seen.steady() and seen.alerts_open == 0,
            limit_s=150,
        ),
    ]


def dead_end(seen: Seen, *, bad_challenger: bool) -> str | None:
    """Why the loop can no longer close as it should; None while it can."""
    if seen.run is not None and seen.run.state in FINAL_RUN - {RunState.BLESSED}:
        return f"the run ended as {seen.run.state}: {seen.run.reason}"
    if seen.rollout is not None and seen.rollout.state in FINAL_ROLLOUT:
        wanted = RolloutState.ROLLED_BACK if bad_challenger else RolloutState.DONE
        if seen.rollout.state != wanted:
            return f"the rollout ended as {seen.rollout.state}: {seen.rollout.reason}"
    return None


def _past_search(run: Run | None) -> bool:
    return run is not None and run.state not in (
        RunState.PLANNED,
        RunState.AWAITING_APPROVAL,
        RunState.SEARCHING,
        RunState.FITTING,
    )


def _rollout_in(seen: Seen, state: RolloutState) -> bool:
    return seen.rollout is not None and seen.rollout.state == state


def mean_accuracy(windows: list[Window]) -> float | None:
    """Accuracy over windows, each weighted by its rows; None without labelled windows."""
    labelled = [(w.accuracy, w.rows) for w in windows if w.accuracy is not None and w.rows]
    if not labelled:
        return None
    return sum(accuracy * rows for accuracy, rows in labelled) / sum(rows for _, rows in labelled)
