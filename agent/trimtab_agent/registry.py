"""The registry: a projection of trimtab's records for people and tools that look into MLflow.

A version is looked up by its run and its artifact's digest before it is created, because MLflow makes
two when asked twice. The aliases `champion` and `challenger` say what the traffic row says. The
artifact itself lies in trimtab's own store, `<artifacts>/<model>/<version>/`, under its digest.
"""

import hashlib
import os
import shutil
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from trimtab.artifacts import verify_artifact
from trimtab.errors import TrimtabError

TAG_RUN = "trimtab.run"
TAG_SHA256 = "trimtab.artifact_sha256"
TAG_VERSION = "trimtab.version"
TAG_MODEL = "trimtab.model"
"""A digest of the model's name: MLflow's filters know no way to quote a name with quotes in it."""


class RegistryError(TrimtabError):
    """The registry or the artifact store refused; the text says what to look at."""


class Registry(Protocol):
    """Where versions are listed under names and aliases. Versions are trimtab's own names."""

    def ensure_version(
        self,
        model: str,
        version: str,
        run_id: str,
        artifact_uri: str,
        sha256: str,
        tags: Mapping[str, str],
    ) -> str:
        """Find the version of this run and digest, or create it; returns the registry's own number."""
        ...

    def aliases(self, model: str) -> dict[str, str]:
        """Alias → trimtab version; empty for an unknown model."""
        ...

    def set_alias(self, model: str, alias: str, version: str | None) -> None:
        """Point an alias at a version, or remove it; a version the registry lacks changes nothing."""
        ...


# --- artifacts ------------------------------------------------------------------------------------


def local_path(uri: str) -> Path:
    """The local path of a `file:` URI or a plain path. Raises RegistryError for another scheme."""
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme == "file":
        return Path(urllib.request.url2pathname(parts.path))
    if parts.scheme:
        raise RegistryError(
            f"Artifacts are read from local or mounted folders; {uri!r} is not one. "
            "Mount it and give its path."
        )
    return Path(uri)


def install_artifact(source: Path, root: Path, model: str, version: str, sha256: str) -> str:
    """Copy an artifact to `<root>/<model>/<version>/` and return its URI; again changes nothing.

    The copy is verified, synced and renamed into place, so the place holds all of it or nothing.
    Raises ArtifactError when source or copy are not the artifact with this digest.
    """
    target = root.absolute() / urllib.parse.quote(model, safe="") / urllib.parse.quote(version, "")
    if target.exists():
        verify_artifact(target, sha256)
        return target.as_uri()
    verify_artifact(source, sha256)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.parent / f".{target.name}.{uuid4().hex}.part"
    try:
        shutil.copytree(source, part)
        verify_artifact(part, sha256)
        _sync(part)
        part.rename(target)
    except OSError:
        if not target.exists():  # else another owner was faster with the same artifact
            raise
        verify_artifact(target, sha256)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target.as_uri()


def sweep_parts(root: Path) -> int:
    """Remove copies that a killed process left half done; returns how many."""
    parts = [path for path in root.glob("*/.*.part") if path.is_dir()]
    for path in parts:
        shutil.rmtree(path, ignore_errors=True)
    return len(parts)


def _sync(directory: Path) -> None:
    for path in [p for p in directory.rglob("*") if p.is_file()]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _model_tag(model: str) -> str:
    return hashlib.sha256(model.encode()).hexdigest()[:16]


# --- MLflow ---------------------------------------------------------------------------------------


class MlflowRegistry:
    """The MLflow model registry at a tracking URI (SQLite by default). Imports MLflow when first used."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._made: Any = None

    @property
    def _client(self) -> Any:
        if self._made is None:
            from mlflow import MlflowClient

            self._made = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
        return self._made

    def ensure_version(
        self,
        model: str,
        version: str,
        run_id: str,
        artifact_uri: str,
        sha256: str,
        tags: Mapping[str, str],
    ) -> str:
        """See `Registry`. Two agents cannot race here: the caller holds the agent's lease."""
        self._ensure_model(model)
        for found in self._versions(model):
            if found.tags.get(TAG_RUN) == run_id and found.tags.get(TAG_SHA256) == sha256:
                return str(found.version)
        made = self._client.create_model_version(
            name=model,
            source=artifact_uri,
            tags={
                **tags,
                TAG_RUN: run_id,
                TAG_SHA256: sha256,
                TAG_VERSION: version,
                TAG_MODEL: _model_tag(model),
            },
        )
        return str(made.version)

    def aliases(self, model: str) -> dict[str, str]:
        """See `Registry`."""
        from mlflow.exceptions import MlflowException

        try:
            known = self._client.get_registered_model(model)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise
        names = {str(v.version): v.tags.get(TAG_VERSION) for v in self._versions(model)}
        pairs = {alias: names.get(str(number)) for alias, number in known.aliases.items()}
        return {alias: name for alias, name in pairs.items() if name is not None}

    def set_alias(self, model: str, alias: str, version: str | None) -> None:
        """See `Registry`."""
        if self.aliases(model).get(alias) == version:
            return
        if version is None:
            self._client.delete_registered_model_alias(model, alias)
            return
        for found in self._versions(model):
            if found.tags.get(TAG_VERSION) == version:
                self._client.set_registered_model_alias(model, alias, found.version)
                return
        # A champion that a person named was never registered here: no alias rather than a wrong one.
        if alias in self.aliases(model):
            self._client.delete_registered_model_alias(model, alias)

    def _ensure_model(self, model: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _versions(self, model: str) -> list[Any]:
        found: list[Any] = []
        token: str | None = None
        while True:
            page = self._client.search_model_versions(
                f"tags.`{TAG_MODEL}` = '{_model_tag(model)}'", page_token=token
            )
            found.extend(version for version in page if version.name == model)
            token = page.token
            if not token:
                return found
