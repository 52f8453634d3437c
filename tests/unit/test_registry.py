"""The artifact store and the registry: everything may be asked twice and happens once."""

from pathlib import Path
from urllib.parse import quote

import pytest

from trimtab.artifacts import ArtifactError, verify_artifact
from trimtab_agent.registry import (
    MlflowRegistry,
    RegistryError,
    install_artifact,
    local_path,
    sweep_parts,
)
from trimtab_agent.testing import make_artifact


@pytest.fixture
def built(tmp_path: Path) -> tuple[Path, str]:
    folder = tmp_path / "built"
    folder.mkdir()
    return folder, make_artifact(folder, 1)


def test_an_artifact_is_copied_whole_under_its_version(
    built: tuple[Path, str], tmp_path: Path
) -> None:
    source, sha256 = built
    uri = install_artifact(source, tmp_path / "store", "risk/credit", "2", sha256)
    assert local_path(uri) == tmp_path / "store" / quote("risk/credit", safe="") / "2"
    verify_artifact(local_path(uri), sha256)


def test_installing_again_changes_nothing(built: tuple[Path, str], tmp_path: Path) -> None:
    source, sha256 = built
    first = install_artifact(source, tmp_path / "store", "m", "2", sha256)
    (source / "model.bin").unlink()
    assert install_artifact(source, tmp_path / "store", "m", "2", sha256) == first


def test_an_altered_artifact_is_not_installed(built: tuple[Path, str], tmp_path: Path) -> None:
    source, sha256 = built
    (source / "model.bin").write_bytes(b"other weights")
    with pytest.raises(ArtifactError):
        install_artifact(source, tmp_path / "store", "m", "2", sha256)
    assert not (tmp_path / "store" / "m").exists() or not list((tmp_path / "store" / "m").iterdir())


def test_a_version_never_gets_another_artifact(built: tuple[Path, str], tmp_path: Path) -> None:
    source, sha256 = built
    install_artifact(source, tmp_path / "store", "m", "2", sha256)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ArtifactError):
        install_artifact(other, tmp_path / "store", "m", "2", make_artifact(other, 2))


def test_a_killed_copy_is_swept_and_does_not_stand_in_the_way(
    built: tuple[Path, str], tmp_path: Path
) -> None:
    source, sha256 = built
    half = tmp_path / "store" / "m" / ".2.abc.part"
    half.mkdir(parents=True)
    (half / "model.bin").write_bytes(b"wei")
    uri = install_artifact(source, tmp_path / "store", "m", "2", sha256)
    assert sweep_parts(tmp_path / "store") == 1
    assert [path.name for path in (tmp_path / "store" / "m").iterdir()] == ["2"]
    verify_artifact(local_path(uri), sha256)


def test_only_local_artifacts_are_read() -> None:
    assert local_path("file:///a/b%20c") == Path("/a/b c")
    assert local_path("/a/b") == Path("/a/b")
    with pytest.raises(RegistryError, match="s3"):
        local_path("s3://bucket/model")


@pytest.mark.slow
def test_mlflow_lists_a_version_once_and_its_aliases_follow(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    registry = MlflowRegistry(uri)
    assert registry.aliases("it's") == {}
    tags = {"trimtab.incident": "i-1"}
    first = registry.ensure_version("it's", "2", "r-1", "file:///a", "a" * 64, tags)
    again = MlflowRegistry(uri).ensure_version("it's", "2", "r-1", "file:///a", "a" * 64, tags)
    other = registry.ensure_version("it's", "3", "r-2", "file:///b", "b" * 64, tags)
    assert (first, again, other) == ("1", "1", "2")
    registry.set_alias("it's", "champion", "3")
    registry.set_alias("it's", "challenger", "2")
    assert registry.aliases("it's") == {"champion": "3", "challenger": "2"}
    registry.set_alias("it's", "challenger", None)
    registry.set_alias("it's", "champion", "never registered")
    assert registry.aliases("it's") == {}
