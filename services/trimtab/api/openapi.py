"""`schemas/openapi.json`: the API's description, from the routes themselves."""

import json
from typing import Any

import msgspec
from litestar import Litestar

from trimtab.api.app import create_app
from trimtab.api.problems import MEDIA_TYPE, Problem
from trimtab.settings import Settings, StoreSettings
from trimtab.store.engine import open_store


def openapi() -> dict[str, str]:
    """Return `openapi.json` with its text. Touches no database."""
    store = open_store("sqlite://")
    app: Litestar = create_app(store, Settings(store=StoreSettings(url="sqlite://")))
    schema = _with_problems(app.openapi_schema.to_schema())
    store.close()
    return {"openapi.json": json.dumps(schema, indent=2, sort_keys=True) + "\n"}


def _with_problems(schema: dict[str, Any]) -> dict[str, Any]:
    """Describe errors as they are sent: problem+json, and 401 where a key is needed."""
    _, shapes = msgspec.json.schema_components(
        [Problem], ref_template="#/components/schemas/{name}"
    )
    schema["components"]["schemas"] |= shapes
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for operations in schema["paths"].values():
        for operation in operations.values():
            responses = operation["responses"]
            for status in [code for code in responses if code >= "400"]:
                responses[status] = {"description": "A problem.", "content": content}
            if operation.get("security"):
                responses["401"] = {"description": "No valid API key.", "content": content}
                responses["403"] = {
                    "description": "Beyond the key's role or scope.",
                    "content": content,
                }
    return schema
