"""Model artifacts: a directory of files under a hashed manifest.

An artifact is a directory with `manifest.json` and the files it lists. The manifest is written in
canonical JSON (keys sorted, no spaces), so the SHA-256 of its bytes, *the artifact's digest*, fixes
every file, the signature and the parameters. Records hold (path, digest); whoever loads an artifact
verifies it first. The module imports no machine-learning framework.

Shapes: `n` rows, `d` features in the contract's order, `k` scores per row. Sizes are in bytes, times
in milliseconds since the epoch, UTC.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from trimtab.contracts.model import Contract
from trimtab.errors import TrimtabError

FORMAT = "trimtab.artifact.v1"
MANIFEST_NAME = "manifest.json"
MAX_FILES = 256
MAX_DEPTH = 4
MAX_MANIFEST_BYTES = 4 * 2**20
MAX_TOTAL_BYTES = 4 * 2**30

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 2**20

Task = Literal["binary", "multiclass", "regression"]
FeatureKind = Literal["number", "category"]


class ArtifactError(TrimtabError):
    """An artifact is not what its record says, or cannot be described; nothing of it is loaded."""


class FeatureSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input column: its name, kind and, for a category, the values in code order."""

    name: str
    kind: FeatureKind = "number"
    values: tuple[str, ...] = ()


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor as the Open Inference Protocol describes it; −1 stands for the number of rows."""

    name: str
    shape: tuple[int, ...]
    datatype: str


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What goes in and what comes out; `classes` are the labels in the order of the scores."""

    task: Task
    features: tuple[FeatureSpec, ...]
    classes: tuple[str, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the artifact: its path relative to the directory, with `/` between parts."""

    path: str
    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `manifest.json`."""

    format: str
    recipe: str
    framework: str
    files: tuple[FileEntry, ...]
    signature: Signature
    created_ms: int
    params: dict[str, Any]
    code_version: str = ""


def make_signature(
    task: Task, features: tuple[FeatureSpec, ...], classes: tuple[str, ...]
) -> Signature:
    """Describe a model that takes float32 (n, d) and gives float32 scores (n, k).

    k is the number of classes, or 1 for a regression.

    Raises:
        ArtifactError: a feature's name occurs twice or none is given, or a classifier has fewer
            than two classes.

    """
    names = [feature.name for feature in features]
    if not names or len(set(names)) != len(names):
        raise ArtifactError(
            f"a signature needs features with distinct names, not {names!r}; "
            "correct the contract's [features]"
        )
    if task != "regression" and len(classes) < 2:
        raise ArtifactError(
            f"a {task} model needs two classes or more, not {list(classes)!r}; "
            "train on rows that hold more than one label"
        )
    scores = 1 if task == "regression" else len(classes)
    return Signature(
        task=task,
        features=features,
        classes=classes,
        inputs=(TensorSpec(name="features", shape=(-1, len(features)), datatype="FP32"),),
        outputs=(TensorSpec(name="scores", shape=(-1, scores), datatype="FP32"),),
    )


def write_manifest(
    directory: Path,
    *,
    recipe: str,
    framework: str,
    signature: Signature,
    params: Mapping[str, Any],
    created_ms: int,
    code_version: str = "",
) -> str:
    """Hash every file under `directory`, write `manifest.json` last, and return the digest.

    Raises:
        ArtifactError: the directory is empty, already has a manifest, or holds what an artifact
            may not hold (links, special files, odd names, too much).

    """
    if (directory / MANIFEST_NAME).exists():
        raise ArtifactError(
            f"{directory} already has a {MANIFEST_NAME}; an artifact never changes, "
            "write the new one into an empty directory"
        )
    found = dict(_regular_files(directory))
    if not found:
        raise ArtifactError(f"{directory} holds no files; the recipe's fit must save its model")
    entries = tuple(
        FileEntry(path=name, size_bytes=size, sha256=_hash_file(directory / name, size))
        for name, size in sorted(found.items())
    )
    manifest = Manifest(
        format=FORMAT,
        recipe=recipe,
        framework=framework,
        files=entries,
        signature=signature,
        created_ms=created_ms,
        params=dict(params),
        code_version=code_version,
    )
    content = _canonical(manifest)
    if len(content) > MAX_MANIFEST_BYTES:
        raise ArtifactError(
            f"the manifest would be {len(content)} bytes, the limit is {MAX_MANIFEST_BYTES}; "
            "keep what is large in a file of the artifact, not in its parameters"
        )
    temporary = directory.parent / f".{directory.name}.manifest"
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / MANIFEST_NAME)
    return hashlib.sha256(content).hexdigest()


def artifact_digest(directory: Path) -> str:
    """Return the SHA-256 of the manifest; it says nothing about the files until verified.

    Raises:
        ArtifactError: there is no readable manifest.

    """
    return hashlib.sha256(_read_manifest(directory)).hexdigest()


def verify_artifact(
    directory: Path, sha256: str, *, max_total_bytes: int = MAX_TOTAL_BYTES
) -> Manifest:
    """Check that `directory` is exactly the artifact with this digest, and return its manifest.

    Every listed file must be there with its size and hash, and nothing else may be.

    Raises:
        ArtifactError: the digest is malformed or differs; the manifest is not canonical or of an
            unknown format; a file is missing, altered, unknown, a link or a special file; a path
            leaves the directory; or the sizes exceed the limits.

    """
    if not _SHA256.fullmatch(sha256):
        raise ArtifactError(
            f"{sha256!r} is not a SHA-256; give the 64 lower-case hexadecimal digits of the digest"
        )
    content = _read_manifest(directory)
    actual = hashlib.sha256(content).hexdigest()
    if actual != sha256:
        raise ArtifactError(
            f"the manifest in {directory} has digest {actual}, the record says {sha256}; "
            "restore the artifact from where it was built, or register this one anew"
        )
    manifest = _parse_manifest(content, directory)
    _check_entries(manifest, directory, max_total_bytes)
    found = dict(_regular_files(directory))
    found.pop(MANIFEST_NAME, None)
    listed = {entry.path for entry in manifest.files}
    unknown = sorted(found.keys() - listed)
    if unknown:
        raise ArtifactError(
            f"{directory} holds files that its manifest does not list: {', '.join(unknown[:5])}; "
            "remove them or rebuild the artifact"
        )
    missing = sorted(listed - found.keys())
    if missing:
        raise ArtifactError(
            f"{directory} lacks files that its manifest lists: {', '.join(missing[:5])}; "
            "restore the artifact from where it was built"
        )
    for entry in manifest.files:
        if found[entry.path] != entry.size_bytes or (
            _hash_file(directory / entry.path, entry.size_bytes) != entry.sha256
        ):
            raise ArtifactError(
                f"{entry.path} in {directory} is not the file that was hashed; "
                "restore the artifact from where it was built"
            )
    return manifest


def misfits(signature: Signature, contract: Contract) -> list[str]:
    """Say where a signature does not fit a contract; nothing when it does.

    What the contract leaves open (no features, no classes) fits everything. A model may know fewer
    classes than the contract, but none beyond it.
    """
    found = []
    if signature.task != contract.task:
        found.append(f"it is a {signature.task} model, and the contract's task is {contract.task}")
    if contract.features:
        found += _feature_misfits(signature.features, contract)
    classes = contract.prediction.classes
    beyond = [name for name in signature.classes if classes and name not in classes]
    if beyond:
        found.append(f"it answers {_named(beyond)}, which is not among the contract's classes")
    positive = contract.prediction.positive
    if positive is not None and signature.classes and positive not in signature.classes:
        found.append(f"it never answers {positive}, the contract's positive class")
    return found


def _feature_misfits(specs: tuple[FeatureSpec, ...], contract: Contract) -> list[str]:
    found = []
    kinds = {spec.name: spec.kind for spec in specs}
    unknown = [name for name in kinds if name not in contract.features]
    if unknown:
        found.append(f"it takes {_named(unknown)}, which the contract does not declare")
    missing = [
        name for name, feature in contract.features.items() if feature.input and name not in kinds
    ]
    if missing:
        found.append(
            f"it does not take {_named(missing)}, which the contract gives to the model "
            "(input = false says that a feature is only watched)"
        )
    for name, kind in kinds.items():
        declared = contract.features.get(name)
        if declared is not None and declared.kind != kind:
            found.append(f"it takes {name} as a {kind}, and the contract's is a {declared.kind}")
    return found


def _named(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def artifact_bytes(manifest: Manifest) -> int:
    """Return the sum of the files' sizes in bytes."""
    return sum(entry.size_bytes for entry in manifest.files)


def _canonical(manifest: Manifest) -> bytes:
    return msgspec.json.encode(manifest, order="deterministic")


def _read_manifest(directory: Path) -> bytes:
    path = directory / MANIFEST_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be opened ({error.strerror}); give the directory of a built artifact"
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ArtifactError(f"{path} is not a regular file; rebuild the artifact")
        content = file.read(MAX_MANIFEST_BYTES + 1)
    if len(content) > MAX_MANIFEST_BYTES:
        raise ArtifactError(
            f"{path} is larger than {MAX_MANIFEST_BYTES} bytes; it is not a manifest trimtab wrote"
        )
    return content


def _parse_manifest(content: bytes, directory: Path) -> Manifest:
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except msgspec.MsgspecError as error:
        raise ArtifactError(
            f"the manifest in {directory} cannot be read ({error}); "
            "it may come from a newer trimtab: upgrade, or rebuild the artifact"
        ) from error
    if manifest.format != FORMAT:
        raise ArtifactError(
            f"the manifest in {directory} has format {manifest.format!r}, this trimtab reads "
            f"{FORMAT!r}; upgrade, or rebuild the artifact"
        )
    if _canonical(manifest) != content:
        raise ArtifactError(
            f"the manifest in {directory} is not in canonical form; rebuild the artifact"
        )
    return manifest


def _check_entries(manifest: Manifest, directory: Path, max_total_bytes: int) -> None:
    paths = [entry.path for entry in manifest.files]
    if len(paths) > MAX_FILES or len(set(paths)) != len(paths) or MANIFEST_NAME in paths:
        raise ArtifactError(
            f"the manifest in {directory} lists {len(paths)} files, some of them twice, itself or "
            f"more than {MAX_FILES}; rebuild the artifact"
        )
    for entry in manifest.files:
        _check_path(entry.path)
        if entry.size_bytes < 0 or not _SHA256.fullmatch(entry.sha256):
            raise ArtifactError(
                f"the manifest's entry of {entry.path} has no valid size and hash; "
                "rebuild the artifact"
            )
    total = artifact_bytes(manifest)
    if total > max_total_bytes:
        raise ArtifactError(
            f"the artifact in {directory} has {total} bytes, the limit is {max_total_bytes}; "
            "train a smaller model or raise the limit"
        )


def _check_path(path: str) -> None:
    parts = path.split("/")
    if len(parts) > MAX_DEPTH or not all(_SEGMENT.fullmatch(part) for part in parts):
        raise ArtifactError(
            f"{path!r} is no path an artifact may hold: at most {MAX_DEPTH} parts of letters, "
            "digits, dot, underscore and hyphen, none starting with a dot; rename the file"
        )


def _regular_files(directory: Path) -> Iterator[tuple[str, int]]:
    """Yield (relative path, size) of each file; refuse links and special files."""
    pending = [("", directory)]
    count = 0
    while pending:
        prefix, folder = pending.pop()
        try:
            children = list(os.scandir(folder))
        except OSError as error:
            raise ArtifactError(
                f"{folder} cannot be listed ({error.strerror}); give a built artifact's directory"
            ) from error
        for child in children:
            name = f"{prefix}{child.name}"
            _check_path(name)
            status = child.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                pending.append((f"{name}/", folder / child.name))
            elif stat.S_ISREG(status.st_mode):
                count += 1
                if count > MAX_FILES + 1:
                    raise ArtifactError(
                        f"{directory} holds more than {MAX_FILES} files; pack them into fewer"
                    )
                yield name, status.st_size
            else:
                raise ArtifactError(
                    f"{name} in {directory} is a link or a special file; an artifact holds plain "
                    "files only: copy what it points to"
                )


def _hash_file(path: Path, size_bytes: int) -> str:
    """Hash at most one byte more than `size_bytes`, so that a growing file ends."""
    digest = hashlib.sha256()
    left = size_bytes + 1
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be opened ({error.strerror}); make it readable to this process"
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()
