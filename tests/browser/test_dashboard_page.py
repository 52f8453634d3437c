"""The dashboard in a real browser: log in, see charts with bands and the canary's steps, act."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trimtab.api.app import run_api
from trimtab.records import Role
from trimtab.settings import load
from trimtab.store import keys, migrate
from trimtab.store.alerts import get_alert
from trimtab.store.engine import Store, open_store
from trimtab.testing import example

NOW_MS = 1_800_000_000_000


@pytest.fixture
def dashboard(tmp_path: Path) -> Iterator[tuple[str, str, Store]]:
    """(address, key, store) of a running API over the example."""
    settings = load({"data_dir": str(tmp_path), "api.port": 0}, environ={}).settings
    store = open_store(settings.store.url)
    migrate.upgrade(store)
    example.fill(store, NOW_MS)
    _, secret = keys.create_key(store, "test", Role.OPERATOR, "*", NOW_MS)
    stop, started, address = threading.Event(), threading.Event(), []

    def ready(url: str) -> None:
        address.append(url)
        started.set()

    thread = threading.Thread(target=run_api, args=(settings, stop, ready))
    thread.start()
    assert started.wait(30)
    yield address[0], secret, store
    stop.set()
    thread.join(30)
    store.close()


def test_a_person_logs_in_sees_the_story_and_acknowledges(
    dashboard: tuple[str, str, Store], browser_page: Any
) -> None:
    address, secret, store = dashboard
    problems: list[str] = []
    browser_page.on("pageerror", lambda error: problems.append(str(error)))
    browser_page.on(
        "console", lambda said: problems.append(said.text) if said.type == "error" else None
    )
    outside: list[str] = []
    browser_page.on(
        "request",
        lambda asked: (
            None if asked.url.startswith((address, "data:")) else outside.append(asked.url)
        ),
    )
    browser_page.goto(f"{address}/models/digits")
    browser_page.fill("#key", secret)
    browser_page.click("form.login button")
    browser_page.click("text=digits")
    browser_page.wait_for_selector("#charts[data-drawn='120']")
    for chart in ("performance", "drift", "latency", "volume", "resources"):
        assert browser_page.locator(f"#chart-{chart} canvas").count() == 1, chart
    assert browser_page.locator("#strip a").count() == 120
    alarms = browser_page.locator("#strip a.alarm").count()
    assert alarms > 40
    assert _pixels_of(browser_page, "alarm") > 1_000
    assert "rollout" in browser_page.inner_text("#side").lower()
    browser_page.click("text=Acknowledge")
    browser_page.wait_for_selector("#side .pill.acknowledged")
    assert get_alert(store, "a1").state == "acknowledged"
    browser_page.locator("#strip a").last.click()
    browser_page.wait_for_selector("text=Findings")
    assert "contrast" in browser_page.inner_text("main")
    assert problems == []
    assert outside == []


def _pixels_of(page: Any, _outcome: str) -> int:
    """Reddish pixels of the performance chart: the alarm's band behind the lines."""
    count: int = page.evaluate(
        """() => {
            const canvas = document.querySelector("#chart-performance canvas");
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let reddish = 0;
            for (let i = 0; i < data.length; i += 4)
                if (data[i + 3] > 20 && data[i] > 150 && data[i + 1] < 90 && data[i + 2] < 90) reddish += 1;
            return reddish;
        }"""
    )
    return count


def log_in(page: Any, address: str, secret: str) -> None:
    page.goto(f"{address}/login")
    page.fill("#key", secret)
    page.click("form.login button")


def test_the_estimate_stands_beside_the_realised_figure_with_what_it_assumes(
    dashboard: tuple[str, str, Store], browser_page: Any
) -> None:
    address, secret, _ = dashboard
    log_in(browser_page, address, secret)
    browser_page.goto(f"{address}/models/digits")
    browser_page.wait_for_selector("#charts[data-drawn='120']")
    legend = browser_page.inner_text("#chart-performance .u-legend")
    for name in ("version 1", "version 2", "estimated without labels", "estimate, not valid"):
        assert name in legend
    note = browser_page.inner_text("#chart-performance .note")
    assert "Assumes P(label | score) has not changed" in note
    assert "not valid in" in note
    assert "contradict it" in note
    assert "extrapolates in" in note
    assert "There is none in" in note
    assert "estimated" in browser_page.inner_text("#chart-performance .u-title")
    # Another figure has no estimate: neither its line nor its sentence stay.
    browser_page.click("#choose-performance >> text=f1")
    browser_page.wait_for_selector("#chart-performance .u-title:has-text('f1')")
    assert "estimate" not in browser_page.inner_text("#chart-performance")
    assert browser_page.inner_text("#choose-performance [aria-pressed]") == "f1"


def test_a_feature_is_reached_from_the_model_and_its_page_fits_any_width(
    dashboard: tuple[str, str, Store], browser_page: Any
) -> None:
    address, secret, _ = dashboard
    problems: list[str] = []
    browser_page.on("pageerror", lambda error: problems.append(str(error)))
    browser_page.on(
        "console", lambda said: problems.append(said.text) if said.type == "error" else None
    )
    log_in(browser_page, address, secret)
    browser_page.goto(f"{address}/models/digits")
    browser_page.click("#features >> text=contrast")
    browser_page.wait_for_selector("#charts[data-drawn='120']")
    assert browser_page.inner_text("h1") == "contrast"
    for chart in ("drift", "values", "quality", "effect", "superiority"):
        assert browser_page.locator(f"#chart-{chart} canvas").count() == 1, chart
    assert browser_page.locator("#chart-shares canvas").count() == 0  # it is a number
    browser_page.click("[data-limit='60']")
    browser_page.wait_for_selector("#charts[data-drawn='60']")
    browser_page.set_viewport_size({"width": 390, "height": 844})
    browser_page.reload()
    browser_page.wait_for_selector("#charts[data-drawn]")
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= 390
    assert problems == []


def test_the_page_fits_a_phone(dashboard: tuple[str, str, Store], browser_page: Any) -> None:
    address, secret, _ = dashboard
    browser_page.set_viewport_size({"width": 390, "height": 844})
    browser_page.goto(f"{address}/login")
    browser_page.fill("#key", secret)
    browser_page.click("form.login button")
    browser_page.goto(f"{address}/models/digits")
    browser_page.wait_for_selector("#charts[data-drawn]")
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("width", [1_400, 390])
def test_the_guardrails_are_whole_at_any_width(
    dashboard: tuple[str, str, Store], browser_page: Any, width: int
) -> None:
    address, secret, _ = dashboard
    browser_page.set_viewport_size({"width": width, "height": 844})
    browser_page.goto(f"{address}/login")
    browser_page.fill("#key", secret)
    browser_page.click("form.login button")
    browser_page.goto(f"{address}/models/digits")
    browser_page.wait_for_selector(".rails")
    over = browser_page.evaluate(
        """() => {
            for (const row of document.querySelectorAll(".rails tbody tr:last-child")) {
                row.children[0].firstChild.textContent = "1,234,567 ";
                row.children[1].firstChild.textContent = "1,234,567 ";
                row.children[2].textContent = "10^-14";
                row.children[3].textContent = "10^120";
            }
            const place = document.querySelector(".rails").parentElement;
            return place.scrollWidth - place.clientWidth;
        }"""
    )
    assert over <= 0
