"""Flag, environment, file, default: in this order, each with its origin, and no typo passes."""

from pathlib import Path

import pytest

from trimtab import logs, settings
from trimtab.settings import SettingsError, load


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "trimtab.toml"
    file.write_text("[api]\nport = 1\nhost = '0.0.0.0'\n[kafka]\nprefix = 'file'\ngroup = 'file'\n")
    environ = {"TRIMTAB_API__PORT": "2", "TRIMTAB_KAFKA__PREFIX": "environment"}
    loaded = load({"api.port": 3, "data_dir": None}, file=file, environ=environ)
    assert loaded.settings.api.port == 3
    assert loaded.settings.kafka.prefix == "environment"
    assert loaded.settings.kafka.group == "file"
    assert loaded.settings.api.host == "0.0.0.0"
    origin = {key: source for key, _, source in settings.show(loaded)}
    assert origin["api.port"] == "flag --set api.port"
    assert origin["kafka.prefix"] == "environment TRIMTAB_KAFKA__PREFIX"
    assert origin["kafka.group"] == str(file)
    assert origin["agent.tick_s"] == "default"


def test_what_has_no_place_of_its_own_lies_in_the_data_directory() -> None:
    loaded = load({"data_dir": "elsewhere"}, environ={}).settings
    assert loaded.store.url == "sqlite:///elsewhere/trimtab.db"
    assert loaded.archive.dir == Path("elsewhere/archive")
    assert loaded.registry.artifacts == Path("elsewhere/artifacts")


def test_topics_follow_the_prefix_unless_they_are_named() -> None:
    environ = {"TRIMTAB_KAFKA__PREFIX": "a", "TRIMTAB_KAFKA__LABEL_TOPICS": '["b.labels"]'}
    kafka = load(environ=environ).settings.kafka
    assert kafka.inference_topics == ("a.inference",)
    assert kafka.label_topics == ("b.labels",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data_dir = 'x'\n[kafka]\nbootstap = 'h:1'\n", "line 3: kafka.bootstap: there is no such"),
        ("[kafak]\nprefix = 'x'\n", "line 1: kafak: there is no such"),
        ("[api]\nport = 'many'\n", "line 2: api.port: "),
        ("[store]\nurl = 'mysql://h/d'\n", "line 2: store.url: expected sqlite"),
        ("[api\n", "is not TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "trimtab.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(file=file, environ={})
    assert said in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_mistake_in_the_environment_is_named_by_its_variable() -> None:
    with pytest.raises(SettingsError, match="environment TRIMTAB_MONITOR__FLUSH_ROW"):
        load(environ={"TRIMTAB_MONITOR__FLUSH_ROW": "5"})


def test_settings_are_frozen() -> None:
    loaded = load(environ={}).settings
    with pytest.raises(ValueError, match="frozen"):
        loaded.api.port = 5  # type: ignore[misc]


def test_no_secret_is_shown() -> None:
    environ = {
        "TRIMTAB_STORE__URL": "postgresql://me:hush@host/db",
        "TRIMTAB_WEBHOOKS": '{"pager": {"url": "https://example.org/h", "secret": "hush"}}',
        "TRIMTAB_KAFKA__OPTIONS": '{"sasl_plain_password": "hush"}',
    }
    loaded = load(environ=environ)
    shown = {key: value for key, value, _ in settings.show(loaded)}
    assert "hush" not in repr(shown)
    assert shown["store.url"] == "postgresql://me:***@host/db"
    assert shown["webhooks.pager.secret"] == settings.MASK


def test_a_child_process_gets_the_same_settings() -> None:
    environ = {
        "TRIMTAB_WEBHOOKS": '{"pager": {"url": "https://example.org/h", "secret": "s"}}',
        "TRIMTAB_KAFKA__OPTIONS": '{"security_protocol": "SSL"}',
        "TRIMTAB_KAFKA__API_VERSION": "2.1",
    }
    parent = load({"api.open_metrics": True}, environ=environ).settings
    assert load(environ=settings.as_environment(parent)).settings == parent
    assert parent.kafka.version == (2, 1)


def test_a_log_line_hides_what_sounds_like_a_secret() -> None:
    line = logs.mask_secrets(
        None, "info", {"event": "hello", "headers": {"Authorization": "Bearer x"}, "rows": 3}
    )
    assert line == {"event": "hello", "headers": {"Authorization": settings.MASK}, "rows": 3}
