"""The API's promises: a key on every route, scope and role, problems, cursors, tags, one session each."""

from collections.abc import Iterator
from typing import Any

import pytest
from litestar import Litestar
from litestar.routes import HTTPRoute
from litestar.testing import TestClient

from trimtab.api.app import create_app
from trimtab.errors import TrimtabError
from trimtab.records import Role
from trimtab.settings import Settings, load
from trimtab.store import keys, migrate
from trimtab.store.engine import Store, open_store
from trimtab.testing import example

OPEN = {"/healthz", "/readyz", "/login", "/static/{file_path:path}"}
NOW_MS = 1_800_000_000_000


@pytest.fixture
def settings(tmp_path: Any) -> Settings:
    return load({"data_dir": str(tmp_path)}, environ={}).settings


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    store = open_store(settings.store.url)
    migrate.upgrade(store)
    yield store
    store.close()


@pytest.fixture
def client(store: Store, settings: Settings) -> Iterator[TestClient[Litestar]]:
    with TestClient(create_app(store, settings)) as client:
        yield client


def bearer(store: Store, role: Role = Role.ADMIN, scope: str = "*") -> dict[str, str]:
    _, secret = keys.create_key(store, "test", role, scope, NOW_MS)
    return {"Authorization": f"Bearer {secret}"}


def routes(app: Litestar) -> Iterator[tuple[str, str, Any]]:
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                for method in sorted(handler.http_methods - {"OPTIONS"}):
                    yield method, route.path_format, handler


def filled(path: str) -> str:
    parts = {
        "model": "digits",
        "start_ms": "0",
        "action": "approve",
        "act": "ack",
        "file_path": "x",
    }
    for name, value in parts.items():
        path = path.replace("{" + name + "}", value)
    return path.replace("{", "").replace("}", "")


def test_every_route_but_health_and_login_refuses_without_a_key(
    client: TestClient[Litestar],
) -> None:
    checked = 0
    for method, path, _ in routes(client.app):
        if path in {*OPEN, "/static/{file_path}", "/static"}:
            continue
        answer = client.request(method, filled(path), follow_redirects=False)
        assert answer.status_code == 401, (method, path, answer.status_code)
        assert answer.headers["content-type"].startswith("application/problem+json")
        checked += 1
    assert checked > 35


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Bearer nonsense", "Bearer tt_0123456789ab_wrong", "Basic dTpw"],
)
def test_a_wrong_key_is_no_key(client: TestClient[Litestar], header: str) -> None:
    assert client.get("/v1/models", headers={"Authorization": header}).status_code == 401


def test_a_revoked_key_ends_at_once(client: TestClient[Litestar], store: Store) -> None:
    key_id, secret = keys.create_key(store, "test", Role.VIEWER, "*", NOW_MS)
    header = {"Authorization": f"Bearer {secret}"}
    assert client.get("/v1/models", headers=header).status_code == 200
    keys.revoke_key(store, key_id, NOW_MS)
    assert client.get("/v1/models", headers=header).status_code == 401


def test_every_route_of_a_model_refuses_a_key_of_another_model(
    client: TestClient[Litestar], store: Store
) -> None:
    example.fill(store, NOW_MS, windows=30)
    outside = bearer(store, Role.ADMIN, "team:elsewhere")
    names = {"alert": "a1", "incident": "i1", "run": "r1", "rollout": "o1", "start_ms": "0"}
    checked = 0
    for method, path, _ in routes(client.app):
        if not any("{" + name + "}" in path for name in ("model", *names)):
            continue
        real = path
        for name, value in names.items():
            real = real.replace("{" + name + "}", value)
        body = (
            {"json": {"artifact_uri": "x", "artifact_sha256": "0" * 64}} if method == "POST" else {}
        )
        answer = client.request(method, filled(real), headers=outside, **body)
        assert answer.status_code == 403, (method, path, answer.status_code, answer.text)
        checked += 1
    assert checked > 20


@pytest.mark.parametrize("path", ["/v1/ledger", "/v1/keys", "/v1/audit"])
def test_what_concerns_every_model_needs_a_key_of_every_model(
    client: TestClient[Litestar], store: Store, path: str
) -> None:
    assert client.get(path, headers=bearer(store, Role.ADMIN, "team:vision")).status_code == 403
    assert client.get(path, headers=bearer(store)).status_code == 200


def test_a_viewer_reads_and_an_operator_acts_and_an_admin_keeps_keys(
    client: TestClient[Litestar], store: Store
) -> None:
    example.fill(store, NOW_MS, windows=30)
    viewer, operator = bearer(store, Role.VIEWER), bearer(store, Role.OPERATOR)
    assert client.get("/v1/alerts/a1", headers=viewer).json()["state"] == "open"
    assert client.post("/v1/alerts/a1/ack", headers=viewer).status_code == 403
    acknowledged = client.post("/v1/alerts/a1/ack", headers=operator)
    assert acknowledged.json()["state"] == "acknowledged"
    made = client.post("/v1/keys", headers=operator, json={"name": "x"})
    assert made.status_code == 403
    made = client.post("/v1/keys", headers=bearer(store), json={"name": "x", "role": "operator"})
    assert client.get("/v1/models", headers={"Authorization": f"Bearer {made.json()['secret']}"})
    acts = [row.action for row in keys.list_audit(store, 10)]
    assert "alert.ack" in acts
    assert "key.create" in acts


def test_a_list_shows_only_what_is_inside_the_scope(
    client: TestClient[Litestar], store: Store
) -> None:
    example.fill(store, NOW_MS, windows=30)
    example.apply_example(store, NOW_MS, "scores", "risk")
    for scope, names in (("*", ["digits", "scores"]), ("team:risk", ["scores"]), ("model:x", [])):
        header = bearer(store, Role.VIEWER, scope)
        page = client.get("/v1/models", headers=header).json()
        assert [item["model"] for item in page["items"]] == names
        seen = client.get("/v1/alerts", headers=header).json()["items"]
        assert bool(seen) == ("digits" in names)
        for records in ("incidents", "rollouts"):
            items = client.get(f"/v1/{records}", headers=header).json()["items"]
            assert bool(items) == bool(seen)


def test_cursors_reach_every_item_once(client: TestClient[Litestar], store: Store) -> None:
    example.fill(store, NOW_MS, windows=30)
    header = bearer(store)
    seen: list[int] = []
    cursor = None
    while True:
        query = {"limit": 7} | ({"cursor": cursor} if cursor else {})
        page = client.get("/v1/models/digits/windows", params=query, headers=header).json()
        seen += [item["window_start_ms"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 30
    assert seen == sorted(seen, reverse=True)
    wrong = client.get("/v1/models/digits/windows", params={"cursor": "x"}, headers=header)
    assert wrong.status_code == 400


def test_a_window_is_a_drift_report(client: TestClient[Litestar], store: Store) -> None:
    last = example.fill(store, NOW_MS, windows=30)
    report = client.get(f"/v1/models/digits/windows/{last}", headers=bearer(store)).json()
    assert report["verdict"]["outcome"] == "ok"
    assert report["verdict"]["findings"][0]["rule"] == example.RULE
    assert set(report["verdict"]["figures"]["features"]) == {"brightness", "contrast", "sharpness"}


def test_a_series_has_one_value_per_window_and_the_canary_s_steps(
    client: TestClient[Litestar], store: Store
) -> None:
    example.fill(store, NOW_MS, windows=60)
    data = client.get("/v1/models/digits/series", headers=bearer(store)).json()
    columns = [*data["performance"]["accuracy"].values(), *data["drift"].values(), data["rows"]]
    assert {len(column) for column in columns} == {60}
    assert data["start_ms"] == sorted(data["start_ms"])
    assert data["performance"]["accuracy"]["2"][0] is None
    labels = [mark["label"] for mark in data["marks"]]
    assert labels == ["canary 5%", "canary 25%", "canary 50%", "promoted 2"]
    assert data["thresholds"] == {"accuracy": 0.9}


def test_errors_are_problems_that_tell_what_to_do(
    client: TestClient[Litestar], store: Store
) -> None:
    answer = client.get("/v1/models/nothing", headers=bearer(store))
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert "trimtab model list" in answer.json()["detail"]


def test_a_defect_tells_nothing_of_the_inside(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("postgresql://me:hush@host")

    monkeypatch.setattr("trimtab.api.routes.overview.fleet", broken)
    with TestClient(create_app(store, settings), raise_server_exceptions=False) as client:
        answer = client.get("/v1/models", headers=bearer(store))
    assert answer.status_code == 500
    assert "hush" not in answer.text


def test_an_unchanged_answer_is_not_sent_again(client: TestClient[Litestar], store: Store) -> None:
    example.apply_example(store, NOW_MS)
    header = bearer(store)
    first = client.get("/v1/models", headers=header)
    again = client.get("/v1/models", headers={**header, "If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    example.apply_example(store, NOW_MS, "other")
    changed = client.get("/v1/models", headers={**header, "If-None-Match": first.headers["etag"]})
    assert changed.status_code == 200


def test_a_large_body_is_refused(client: TestClient[Litestar], store: Store) -> None:
    body = {"name": "x" * 1_100_000}
    assert client.post("/v1/keys", headers=bearer(store), json=body).status_code == 413


def test_readiness_follows_the_store_s_schema(
    client: TestClient[Litestar], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.get("/readyz").status_code == 200

    def wrong(_store: Store) -> None:
        raise TrimtabError("not this schema")

    monkeypatch.setattr("trimtab.api.app.migrate.check", wrong)
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200


def test_metrics_need_a_key_unless_the_settings_open_them(
    client: TestClient[Litestar], store: Store, settings: Settings
) -> None:
    example.fill(store, NOW_MS, windows=30)
    assert client.get("/metrics").status_code == 401
    text = client.get("/metrics", headers=bearer(store)).text
    assert 'trimtab_model_outcome{model="digits",outcome="ok"} 1.0' in text
    opened = load(
        {"data_dir": str(settings.data_dir), "api.open_metrics": True}, environ={}
    ).settings
    with TestClient(create_app(store, opened)) as other:
        assert other.get("/metrics").status_code == 200


def test_a_login_is_a_cookie_no_script_reads_and_no_other_site_uses(
    client: TestClient[Litestar], store: Store
) -> None:
    _, secret = keys.create_key(store, "test", Role.OPERATOR, "*", NOW_MS)
    example.fill(store, NOW_MS, windows=30)
    page = {"accept": "text/html"}
    sent = client.get("/", headers=page, follow_redirects=False)
    assert sent.headers["location"] == "/login"
    assert client.post("/login", data={"key": "tt_x_y"}).status_code == 401
    login = client.post("/login", data={"key": secret}, follow_redirects=False)
    cookie = login.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert secret not in cookie
    assert client.get("/", headers=page).status_code == 200
    act = "/models/digits/alerts/a1/ack"
    assert client.post(act, follow_redirects=False).status_code == 403
    cross = client.post(act, headers={"sec-fetch-site": "cross-site"}, follow_redirects=False)
    assert cross.status_code == 403
    own = client.post(act, headers={"sec-fetch-site": "same-origin"}, follow_redirects=False)
    assert own.status_code == 303
    client.post("/logout", headers={"sec-fetch-site": "same-origin"}, follow_redirects=False)
    again = client.get(
        "/v1/models", cookies={"trimtab_session": cookie.split("=")[1].split(";")[0]}
    )
    assert again.status_code == 401


def test_an_incident_tells_its_diagnosis_in_the_api_and_on_the_page(
    client: TestClient[Litestar], store: Store
) -> None:
    example.fill(store, NOW_MS, windows=30)
    header = bearer(store, Role.VIEWER)
    found = client.get("/v1/incidents/i1", headers=header).json()
    said = found["incident"]["decision"]["diagnosis"]
    assert (said["cause"], said["advice"]) == ("covariate_harmful", "retrain")
    assert [t["to_state"] for t in found["transitions"]] == ["acting"]
    listed = client.get("/v1/incidents", params={"model": "digits"}, headers=header).json()
    assert [item["id"] for item in listed["items"]] == ["i1"]
    assert client.get("/v1/incidents/none", headers=header).status_code == 404
    page = client.get("/models/digits", headers=header).text
    assert "covariate harmful" in page
    for sign in said["reasons"]:
        assert sign["text"].split("`")[0] in page


def test_pages_escape_what_others_wrote_and_allow_no_inline_script(
    client: TestClient[Litestar], store: Store
) -> None:
    import msgspec

    from trimtab.alerts.ledger import apply_ledger_alert
    from trimtab.store.alerts import get_alert, save_alert

    example.fill(store, NOW_MS, windows=30)
    hostile = "<script>alert(1)</script>"
    with store.write() as connection:
        alert = get_alert(store, "a1")
        save_alert(connection, msgspec.structs.replace(alert, summary=hostile))
        apply_ledger_alert(connection, [hostile], [], NOW_MS)
    answer = client.get("/", headers=bearer(store))
    assert "The ledger does not balance: &lt;script&gt;" in answer.text
    narrow = client.get("/", headers=bearer(store, Role.VIEWER, "model:digits"))
    assert "does not balance" not in narrow.text
    answer = client.get("/models/digits", headers=bearer(store))
    assert hostile not in answer.text
    assert "&lt;script&gt;" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe-inline" not in policy


HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def test_a_person_gets_an_error_as_a_page_with_a_way_back(
    client: TestClient[Litestar], store: Store
) -> None:
    example.apply_example(store, NOW_MS)
    header = bearer(store)
    for path in ("/models/digits/windows/1", "/models/nobody", "/no/such/page"):
        page = client.get(path, headers=header | HTML)
        assert page.status_code == 404, path
        assert page.headers["content-type"].startswith("text/html")
        assert 'href="/"' in page.text
    window = client.get("/models/digits/windows/1", headers=header | HTML).text
    assert "digits has no closed window that starts at 1 ms." in window
    assert 'href="/models/digits"' in window
    form = client.post("/models/digits/alerts/none/ack", headers=header | HTML)
    assert form.status_code == 404
    assert form.headers["content-type"].startswith("text/html")


def test_a_program_gets_an_error_as_a_problem_wherever_it_asks(
    client: TestClient[Litestar], store: Store
) -> None:
    example.apply_example(store, NOW_MS)
    header = bearer(store)
    for path, asked in (
        ("/models/digits/windows/1", header),
        ("/v1/models/nobody", header),
        ("/v1/models/nobody", header | HTML),
    ):
        answer = client.get(path, headers=asked)
        assert answer.status_code == 404
        assert answer.headers["content-type"].startswith("application/problem+json")


def test_the_page_of_routes_needs_no_other_site(client: TestClient[Litestar], store: Store) -> None:
    header = bearer(store)
    page = client.get("/v1/schema", headers=header | HTML)
    assert page.status_code == 200
    assert "/v1/models/{model}" in page.text
    assert 'href="/v1/schema/openapi.json"' in page.text
    assert "://" not in page.text
    assert client.get("/v1/schema/openapi.json", headers=header).json()["openapi"]


def test_an_empty_model_s_page_has_no_unit_without_a_figure(
    client: TestClient[Litestar], store: Store
) -> None:
    example.apply_example(store, NOW_MS)
    page = client.get("/models/digits", headers=bearer(store) | HTML).text
    assert "no latencies yet" in page
    assert "– ms" not in page


def test_a_models_detector_says_its_budget_or_why_there_is_none(
    client: TestClient[Litestar], store: Store
) -> None:
    example.fill(store, NOW_MS, windows=30)
    answer = client.get("/v1/models/digits/detector", headers=bearer(store, Role.VIEWER))
    assert answer.status_code == 200
    told = answer.json()
    assert told["false_alarms_per_30_days"] == 1
    assert told["budget"] == "1 per 30 days, one of 4 shares of the fleet's 4 per 30 days"
    assert told["fitted"] is False
    assert told["reason"]
    unknown = client.get("/v1/models/nobody/detector", headers=bearer(store, Role.VIEWER))
    assert unknown.status_code == 404
