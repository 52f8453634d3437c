"""The demo: starts everything on the embedded defaults, plays the script, and sums up.

One parent, and under it the broker, `serve`, `agent`, `monitor`, `archive`, `api` and the client, each
the process that production runs. Whatever dies is started again. The parent only reads the store,
turns the camera, and paces the client by the slower of monitor and archive.
"""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from rich.console import Console
from rich.live import Live

from trimtab.contracts.parse import parse_contract
from trimtab.errors import TrimtabError
from trimtab.processes import trimtab_command
from trimtab.settings import Loaded, as_environment, load
from trimtab.store.agent import set_champion
from trimtab.store.alerts import alerts_of
from trimtab.store.baselines import fit_from_file
from trimtab.store.models import apply_contract
from trimtab.up import Stack, write_pids
from trimtab_agent.demo.board import Board, draw
from trimtab_agent.demo.camera import CLEAN, Lens, see
from trimtab_agent.demo.client import Command, Options
from trimtab_agent.demo.digits import (
    CLASSES,
    Digits,
    champion_data,
    contract_text,
    write_baseline,
    write_training_set,
)
from trimtab_agent.demo.script import Phase, Seen, dead_end, script
from trimtab_agent.demo.summary import Played, Summary, summarise
from trimtab_agent.demo.watch import Ledger, look, moments, read_ledger
from trimtab_agent.recipes.data import make_data, save_data
from trimtab_agent.search.protocol import RecipeRef
from trimtab_agent.search.runner import evaluate, fit_artifact, read_answers
from trimtab_agent.search.workers import WorkerPool

MODEL = "digits"
CHAMPION_VERSION = "1"
CHAMPION_STEPS = 12
CHAMPION_PARAMS: dict[str, Any] = {
    "hyperparameters": {"learning_rate": 1e-3, "batch_size": 32, "dropout": 0.2},
    "architecture": {"filters": 8, "depth": 2, "dense": 64},
    "data": {"window": 1.0, "old_mix": 1.0, "class_balance": "none"},
    "seed": 1,
}
RECIPE = RecipeRef("image-cnn", {"shape": [8, 8, 1], "range": [0.0, 1.0]})
BASELINE_WINDOWS = 168
WINDOW_ROWS = 200
WINDOW_MS = 2_000
TRIALS = 12
LOOK_S = 0.5
SETTLE_LIMIT_S = 20.0
LAG_SHOWN_MESSAGES = 200
LAG_LIMIT_MESSAGES = 1_000
"""Beyond this the client pauses: the embedded broker drops the oldest at about 5,000."""
REPORT_LIMIT_S = 90
_REPORT_AFTER = "start"
_MARK = "this-is-a-trimtab-demo"


class DemoOptions(Struct, frozen=True, kw_only=True):
    """How to play it."""

    directory: Path = Path(".trimtab/demo")
    bad_challenger: bool = False
    keep: bool = False
    trials: int = TRIALS
    seed: int = 1


class LoopError(TrimtabError):
    """The loop did not close; the text names the link."""


class Demo:
    """One performance. `run` plays it; `stop` ends what it started."""

    def __init__(self, options: DemoOptions, console: Console) -> None:
        self._options = options
        self._console = console
        self._stack: Stack | None = None
        self._client: subprocess.Popen[str] | None = None
        self._command = Command()
        self._sent: dict[str, int] = {}
        self._began_s = time.monotonic()
        self._addresses: list[tuple[str, str]] = []
        self._restarts: list[str] = []
        self._report: subprocess.Popen[bytes] | None = None

    def run(self) -> Summary:
        """Play to the end and sum up.

        Raises:
            LoopError: a link of the loop did not close in time.

        """
        say = self._say
        directory = _clean_directory(self._options.directory)
        self._stack = stack = Stack(_settings(directory))
        say("broker, store and processes are starting")
        stack.start()
        say("training the champion on 700 clean digits")
        self._prepare(directory, stack)
        stack.wait_ready("api", f"{stack.dashboard}/healthz")
        say("loading the champion into the server")
        stack.wait_ready("serve", f"{stack.server}/v2/models/{MODEL}/ready", 90)
        self._addresses = [
            ("dashboard", f"{stack.dashboard}/models/{MODEL}"),
            ("API key", stack.key(_now_ms())),
            ("logs", str(stack.logs)),
        ]
        self._start_client(stack)
        return self._play(stack)

    def _say(self, what: str) -> None:
        elapsed_s = time.monotonic() - self._began_s
        self._console.print(f"[dim]{elapsed_s:4.0f} s[/]  {what}", highlight=False)

    def stop(self) -> None:
        """End everything that was started."""
        if self._client is not None:
            if self._client.stdin is not None:
                self._client.stdin.close()
            try:
                self._client.wait(5)
            except subprocess.TimeoutExpired:
                self._client.kill()
                self._client.wait()
        if self._report is not None and self._report.poll() is None:
            self._report.kill()
            self._report.wait()
        if self._stack is not None:
            self._stack.stop()

    def tend(self) -> None:
        """Keep the processes alive and the client paced (for `--keep`)."""
        if self._stack is not None:
            self._tend(self._stack)

    # --- before the first request ---

    def _prepare(self, directory: Path, stack: Stack) -> None:
        """Train and register the champion, apply the contract, fit the baseline."""
        digits = Digits(self._options.seed)
        rng = np.random.default_rng(self._options.seed)
        original = directory / "original.parquet"
        training = champion_data(digits, CLEAN, rng)
        write_training_set(training, original)
        old_mix = (0.0,) if self._options.bad_challenger else (0.0, 0.5, 1.0)
        text = contract_text(original.absolute(), self._options.trials, old_mix)
        (directory / "digits.toml").write_text(text)
        contract = parse_contract(text, "digits.toml")
        artifact_dir = directory / "artifacts" / MODEL / CHAMPION_VERSION
        pool = WorkerPool(1)
        try:
            artifact_dir.parent.mkdir(parents=True, exist_ok=True)
            champion = fit_artifact(
                pool,
                recipe_ref=RECIPE,
                params=CHAMPION_PARAMS,
                steps=CHAMPION_STEPS,
                data=save_data(training, directory / "original.npz"),
                out_dir=artifact_dir,
                created_ms=_now_ms(),
            ).result(180)
            images, labels = _past_traffic(digits, rng)
            scored = save_data(
                make_data(
                    images.reshape(len(images), -1),
                    labels.astype(np.int64),
                    specs=training.specs,
                    classes=CLASSES,
                ),
                directory / "baseline.npz",
            )
            answers = read_answers(
                evaluate(
                    pool,
                    recipe_ref=RECIPE,
                    artifact_dir=artifact_dir,
                    sha256=champion.sha256,
                    data=scored,
                    out_file=directory / "baseline-answers.npz",
                ).result(180)
            )
        finally:
            pool.close()
        end_ms = _now_ms() // WINDOW_MS * WINDOW_MS
        times_ms = (
            end_ms
            - len(images) * WINDOW_MS // WINDOW_ROWS
            + (np.arange(len(images)) * WINDOW_MS // WINDOW_ROWS)
        )
        baseline = directory / "baseline.parquet"
        write_baseline(
            baseline,
            images,
            list(labels),
            [CLASSES[code] for code in answers.predicted],
            times_ms.astype(np.int64),
        )
        apply_contract(stack.store, contract, text, by="demo", now_ms=_now_ms())
        fit_from_file(
            stack.store,
            MODEL,
            str(baseline),
            time_column="time",
            prediction_column="prediction",
            label_column="label",
            now_ms=_now_ms(),
        )
        set_champion(
            stack.store,
            MODEL,
            CHAMPION_VERSION,
            artifact_dir.absolute().as_uri(),
            champion.sha256,
            by="demo",
            now_ms=_now_ms(),
        )

    def _start_client(self, stack: Stack) -> None:
        settings = stack.settings
        self._client = subprocess.Popen(
            [sys.executable, "-m", "trimtab_agent.demo.client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(stack.logs / "client.log").open("a"),
            text=True,
            start_new_session=True,
        )
        options = Options(
            model=MODEL,
            serve_host=settings.serve.host,
            serve_port=settings.serve.port,
            bootstrap=settings.kafka.bootstrap,
            api_version=settings.kafka.api_version,
            prefix=settings.kafka.prefix,
            seed=_now_ms() % 1_000_000,
        )
        self._tell(msgspec.json.encode(options).decode())
        threading.Thread(target=self._read_client, daemon=True).start()

    def _read_client(self) -> None:
        assert self._client is not None
        assert self._client.stdout is not None
        for line in self._client.stdout:
            self._sent = msgspec.json.decode(line)

    def _tell(self, line: str) -> None:
        assert self._client is not None
        assert self._client.stdin is not None
        self._client.stdin.write(line + "\n")
        self._client.stdin.flush()

    # --- the script ---

    def _play(self, stack: Stack) -> Summary:
        with Live(console=self._console, refresh_per_second=4, transient=False) as live:

            def show(phase: Phase | None, since_s: float, seen: Seen, ledger: Ledger) -> None:
                board = Board(
                    phase=phase,
                    phase_s=time.monotonic() - since_s,
                    elapsed_s=time.monotonic() - self._began_s,
                    seen=seen,
                    ledger=ledger,
                    moments=moments(stack.store, MODEL),
                    note="",
                    addresses=self._addresses,
                )
                live.update(draw(board))

            played = []
            for phase in script(bad_challenger=self._options.bad_challenger):
                played.append(self._act(stack, phase, show))
                if phase.name == _REPORT_AFTER:
                    self._begin_report(stack)
        ledger = self._settle(stack)
        self._finish_report(stack)
        return summarise(
            stack.store,
            MODEL,
            played,
            ledger,
            elapsed_s=time.monotonic() - self._began_s,
            client=self._sent,
            restarts=self._restarts,
            addresses=dict(self._addresses),
            bad_challenger=self._options.bad_challenger,
        )

    def _begin_report(self, stack: Stack) -> None:
        """Make the drift report that people share, now that the search has freed a core."""
        window_ms = min(alert.window_start_ms for alert in alerts_of(stack.store, MODEL))
        with (stack.logs / "report.log").open("ab") as log:
            self._report = subprocess.Popen(  # noqa: S603 - our own command
                trimtab_command(
                    "report",
                    "make",
                    MODEL,
                    "--window",
                    str(window_ms),
                    "--out",
                    str(self._report_file(stack)),
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **as_environment(stack.settings)},
            )

    def _finish_report(self, stack: Stack) -> None:
        """Wait for the report and name its file.

        Raises:
            LoopError: it could not be made.

        """
        if self._report is None:
            return
        if self._report.wait(REPORT_LIMIT_S) != 0:
            raise LoopError(f"The loop did not close at: report: see {stack.logs / 'report.log'}")
        self._addresses.insert(1, ("report", str(self._report_file(stack).absolute())))

    @staticmethod
    def _report_file(stack: Stack) -> Path:
        return stack.settings.data_dir / "drift-report.html"

    def _act(
        self,
        stack: Stack,
        phase: Phase,
        show: Callable[[Phase, float, Seen, Ledger], None],
    ) -> Played:
        """Play one phase to its end."""
        began_s, began_ms = time.monotonic(), _now_ms()
        self._set_camera(phase)
        while True:
            ledger = self._tend(stack)
            seen = look(stack.store, MODEL)
            show(phase, began_s, seen, ledger)
            elapsed_s = time.monotonic() - began_s
            if elapsed_s >= phase.least_s and phase.over(seen):
                return Played(phase.name, began_ms, _now_ms())
            end = dead_end(seen, bad_challenger=self._options.bad_challenger)
            if end is not None or elapsed_s > phase.limit_s:
                behind = (
                    f"; a reader is {ledger.lag_messages:,} messages behind, so this machine is slow"
                    if ledger.lag_messages > LAG_SHOWN_MESSAGES
                    else ""
                )
                raise LoopError(
                    f"The loop did not close at: {phase.link or phase.title}"
                    f" ({end or f'not within {phase.limit_s:.0f} s'}{behind}). Logs: {stack.logs}"
                )
            time.sleep(LOOK_S)

    def _set_camera(self, phase: Phase) -> None:
        lens: Lens | None = phase.lens
        changed = self._command
        if lens is not None:
            changed = msgspec.structs.replace(
                changed, lens=(lens.blur_sigma, lens.contrast, lens.noise)
            )
        if phase.pool is not None:
            changed = msgspec.structs.replace(changed, pool=phase.pool)
        if changed != self._command:
            self._send(changed)

    def _send(self, command: Command) -> None:
        self._command = command
        self._tell(msgspec.json.encode(command).decode())

    def _tend(self, stack: Stack) -> Ledger:
        """Restart what died; pause the client while a reader is too far behind."""
        for restart in stack.check():
            self._restarts.append(restart.name)
        write_pids(stack, stack.settings.data_dir / "pids.json")
        ledger = read_ledger(stack.store)
        rate_hz = 0.0 if ledger.lag_messages > LAG_LIMIT_MESSAGES else Command().rate_hz
        if rate_hz != self._command.rate_hz:
            self._send(msgspec.structs.replace(self._command, rate_hz=rate_hz))
        return ledger

    def _settle(self, stack: Stack) -> Ledger:
        """Stop sending and wait until everything that was answered and labelled has been read."""
        self._send(msgspec.structs.replace(self._command, rate_hz=0.0))
        deadline_s = time.monotonic() + SETTLE_LIMIT_S
        while True:
            stack.check()
            ledger = read_ledger(stack.store)
            sent = self._sent
            answered = sent.get("answered", 0)
            quiet = sent.get("sent") == answered + sent.get("failed", 0)
            read = ledger.rows >= answered and ledger.labels >= sent.get("labels", 0) >= answered
            if (quiet and read and ledger.lag_messages == 0) or time.monotonic() > deadline_s:
                return ledger
            time.sleep(0.2)


def _settings(directory: Path) -> Loaded:
    """The embedded defaults, quick enough for a demo, on free ports."""
    return load(
        {
            "data_dir": str(directory),
            "monitor.flush_s": 0.5,
            "monitor.lease_s": 5,
            "archive.flush_s": 2.0,
            "agent.tick_s": 1.0,
            "agent.lease_s": 10.0,
            "api.port": _free_port(),
            "serve.port": _free_port(),
        },
        environ={},
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _clean_directory(directory: Path) -> Path:
    """An empty directory; only one that an earlier demo marked as its own is emptied."""
    mark = directory / _MARK
    if directory.exists() and any(directory.iterdir()):
        if not mark.exists():
            raise TrimtabError(
                f"{directory} holds something that is not a demo's. Name another: --directory."
            )
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return directory


def _past_traffic(digits: Digits, rng: np.random.Generator) -> tuple[Any, Any]:
    """Images and labels of `BASELINE_WINDOWS` windows through the clean camera."""
    images, labels = digits.pool("early")
    rows = rng.integers(0, len(images), BASELINE_WINDOWS * WINDOW_ROWS)
    return see(images[rows], CLEAN, rng), labels[rows]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
