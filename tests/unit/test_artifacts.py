"""An artifact is what its digest says, or it is refused with a reason."""

import hashlib
import os
from pathlib import Path

import msgspec
import pytest

from trimtab.artifacts import (
    MANIFEST_NAME,
    ArtifactError,
    FeatureSpec,
    Manifest,
    artifact_bytes,
    artifact_digest,
    make_signature,
    misfits,
    verify_artifact,
    write_manifest,
)
from trimtab.contracts.model import Contract, Feature, Prediction

SIGNATURE = make_signature(
    "binary",
    (FeatureSpec("income"), FeatureSpec("channel", "category", ("web", "app"))),
    ("no", "yes"),
)


def build(directory: Path, **files: bytes) -> str:
    directory.mkdir()
    for name, content in (files or {"model": b"weights", "vocabulary": b"words"}).items():
        (directory / name).write_bytes(content)
    return write_manifest(
        directory,
        recipe="tabular",
        framework="keras",
        signature=SIGNATURE,
        params={"hyperparameters": {"learning_rate": 0.001}},
        created_ms=1_700_000_000_000,
    )


def rewrite(directory: Path, **changes: object) -> str:
    """Change the manifest canonically, as a forger who also controls the record would."""
    manifest = msgspec.json.decode((directory / MANIFEST_NAME).read_bytes(), type=Manifest)
    content = msgspec.json.encode(
        msgspec.structs.replace(manifest, **changes), order="deterministic"
    )
    (directory / MANIFEST_NAME).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def test_a_written_artifact_verifies_and_gives_its_manifest_back(tmp_path):
    digest = build(tmp_path / "a")
    manifest = verify_artifact(tmp_path / "a", digest)
    assert artifact_digest(tmp_path / "a") == digest
    assert [entry.path for entry in manifest.files] == ["model", "vocabulary"]
    assert artifact_bytes(manifest) == len(b"weights") + len(b"words")
    assert manifest.signature == SIGNATURE
    assert manifest.signature.inputs[0].shape == (-1, 2)
    assert manifest.signature.outputs[0].shape == (-1, 2)


def test_equal_content_has_an_equal_digest_wherever_it_lies(tmp_path):
    assert build(tmp_path / "a") == build(tmp_path / "b")


def test_a_changed_byte_of_equal_length_is_refused(tmp_path):
    digest = build(tmp_path / "a")
    (tmp_path / "a" / "model").write_bytes(b"Weights")
    with pytest.raises(ArtifactError, match=r"model .* is not the file that was hashed"):
        verify_artifact(tmp_path / "a", digest)


def test_a_file_that_grew_is_refused(tmp_path):
    digest = build(tmp_path / "a")
    (tmp_path / "a" / "model").write_bytes(b"weights and more")
    with pytest.raises(ArtifactError, match="is not the file that was hashed"):
        verify_artifact(tmp_path / "a", digest)


def test_an_unlisted_file_is_refused(tmp_path):
    digest = build(tmp_path / "a")
    (tmp_path / "a" / "extra.py").write_text("print()")
    with pytest.raises(ArtifactError, match=r"does not list: extra\.py"):
        verify_artifact(tmp_path / "a", digest)


def test_a_missing_file_is_refused(tmp_path):
    digest = build(tmp_path / "a")
    (tmp_path / "a" / "model").unlink()
    with pytest.raises(ArtifactError, match=r"lacks files .* model"):
        verify_artifact(tmp_path / "a", digest)


def test_another_manifest_than_the_record_names_is_refused(tmp_path):
    build(tmp_path / "a")
    with pytest.raises(ArtifactError, match="the record says"):
        verify_artifact(tmp_path / "a", "0" * 64)


@pytest.mark.parametrize("digest", ["", "abc", "G" * 64, "A" * 64])
def test_a_malformed_digest_is_refused(tmp_path, digest):
    build(tmp_path / "a")
    with pytest.raises(ArtifactError, match="not a SHA-256"):
        verify_artifact(tmp_path / "a", digest)


def test_a_link_to_an_equal_file_is_refused(tmp_path):
    digest = build(tmp_path / "a")
    model = tmp_path / "a" / "model"
    (tmp_path / "elsewhere").write_bytes(model.read_bytes())
    model.unlink()
    model.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="link or a special file"):
        verify_artifact(tmp_path / "a", digest)


def test_a_pipe_in_the_directory_is_refused_without_reading_it(tmp_path):
    digest = build(tmp_path / "a")
    os.mkfifo(tmp_path / "a" / "pipe")
    with pytest.raises(ArtifactError, match="link or a special file"):
        verify_artifact(tmp_path / "a", digest)


def test_a_manifest_that_is_a_link_is_refused(tmp_path):
    digest = build(tmp_path / "a")
    (tmp_path / "a" / MANIFEST_NAME).rename(tmp_path / "moved")
    (tmp_path / "a" / MANIFEST_NAME).symlink_to(tmp_path / "moved")
    with pytest.raises(ArtifactError, match="cannot be opened"):
        verify_artifact(tmp_path / "a", digest)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../b", ".hidden", "a\\b", ""])
def test_a_path_that_leaves_the_directory_is_refused(tmp_path, path):
    build(tmp_path / "a")
    manifest = msgspec.json.decode((tmp_path / "a" / MANIFEST_NAME).read_bytes(), type=Manifest)
    entry = msgspec.structs.replace(manifest.files[0], path=path)
    digest = rewrite(tmp_path / "a", files=(entry, *manifest.files[1:]))
    with pytest.raises(ArtifactError, match="no path an artifact may hold"):
        verify_artifact(tmp_path / "a", digest)


def test_an_artifact_over_the_size_limit_is_refused(tmp_path):
    digest = build(tmp_path / "a")
    verify_artifact(tmp_path / "a", digest, max_total_bytes=12)
    with pytest.raises(ArtifactError, match="12 bytes, the limit is 11"):
        verify_artifact(tmp_path / "a", digest, max_total_bytes=11)


def test_a_newer_format_is_refused_and_says_to_upgrade(tmp_path):
    build(tmp_path / "a")
    digest = rewrite(tmp_path / "a", format="trimtab.artifact.v2")
    with pytest.raises(ArtifactError, match="upgrade"):
        verify_artifact(tmp_path / "a", digest)


def test_a_manifest_that_is_not_canonical_is_refused(tmp_path):
    build(tmp_path / "a")
    path = tmp_path / "a" / MANIFEST_NAME
    content = path.read_bytes() + b"\n"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="canonical"):
        verify_artifact(tmp_path / "a", hashlib.sha256(content).hexdigest())


def test_an_artifact_is_never_described_twice(tmp_path):
    build(tmp_path / "a")
    with pytest.raises(ArtifactError, match="never changes"):
        write_manifest(
            tmp_path / "a",
            recipe="tabular",
            framework="keras",
            signature=SIGNATURE,
            params={},
            created_ms=0,
        )


def test_files_in_folders_are_listed_with_slashes(tmp_path):
    (tmp_path / "a" / "assets").mkdir(parents=True)
    (tmp_path / "a" / "assets" / "words.json").write_text("[]")
    digest = write_manifest(
        tmp_path / "a",
        recipe="text",
        framework="keras",
        signature=SIGNATURE,
        params={},
        created_ms=0,
    )
    files = verify_artifact(tmp_path / "a", digest).files
    assert [entry.path for entry in files] == ["assets/words.json"]


def test_a_signature_refuses_double_names_and_single_classes():
    with pytest.raises(ArtifactError, match="distinct"):
        make_signature("regression", (FeatureSpec("a"), FeatureSpec("a")), ())
    with pytest.raises(ArtifactError, match="two classes"):
        make_signature("binary", (FeatureSpec("a"),), ("yes",))


CONTRACT = Contract(
    name="credit",
    task="binary",
    features={
        "income": Feature("number"),
        "channel": Feature("category"),
        "brightness": Feature("number", input=False),
    },
    prediction=Prediction(positive="yes", classes=("no", "yes")),
)


def test_a_signature_that_fits_its_contract_is_not_complained_of():
    assert misfits(SIGNATURE, CONTRACT) == []
    open_contract = Contract(name="credit", task="binary")
    assert misfits(SIGNATURE, open_contract) == []
    more = msgspec.structs.replace(CONTRACT.prediction, classes=("maybe", "no", "yes"))
    assert misfits(SIGNATURE, msgspec.structs.replace(CONTRACT, prediction=more)) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "multiclass"}, "it is a binary model, and the contract's task is multiclass"),
        (
            {"features": {"income": Feature("number")}},
            "it takes channel, which the contract does not declare",
        ),
        (
            {"features": {**CONTRACT.features, "age": Feature("number")}},
            "it does not take age, which the contract gives to the model",
        ),
        (
            {"features": {**CONTRACT.features, "income": Feature("category")}},
            "it takes income as a number, and the contract's is a category",
        ),
        (
            {"prediction": Prediction(classes=("yes", "maybe"))},
            "it answers no, which is not among the contract's classes",
        ),
        (
            {"prediction": Prediction(positive="default")},
            "it never answers default, the contract's positive class",
        ),
    ],
)
def test_a_signature_of_another_model_is_told_apart(changes, said):
    (found,) = misfits(SIGNATURE, msgspec.structs.replace(CONTRACT, **changes))
    assert found.startswith(said)


def test_long_lists_of_features_are_shortened():
    pixels = {f"pixel{number}": Feature("number") for number in range(64)}
    found = misfits(SIGNATURE, msgspec.structs.replace(CONTRACT, features=pixels))
    assert "pixel0, pixel1, pixel2, pixel3, pixel4 and 59 more" in found[1]
