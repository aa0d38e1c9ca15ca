"""The OpenAPI document beyond what ninja can know: headers, links, and of what media type a refusal is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ninja.openapi.schema import OpenAPISchema
from ninja.responses import NinjaJSONEncoder
from pydantic import BaseModel

from .refusals import PROBLEM

KEY = "A key that `manage.py mail_key create` or the admin made. Whoever has it can send mail as the site."

_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same request under the same key is done once, and gets the same answer: ask again with it when "
    "none came. It belongs to the client and the path, and is known for a day at least.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
    "examples": {"order": {"value": "order-4711"}},
}
_RETRY_AFTER = {"description": "In how many seconds to ask again", "schema": {"type": "integer", "minimum": 1}}
_HEADERS: Mapping[int, Mapping[str, Any]] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}}},
    409: {"Retry-After": {**_RETRY_AFTER, "description": "Only where the same request under its key is under way"}},
    429: {"Retry-After": {**_RETRY_AFTER, "required": True}},
    503: {"Retry-After": {**_RETRY_AFTER, "required": True}},
}
_LOCATION = {"description": "Where to look it up", "schema": {"type": "string", "format": "uri-reference"}}
_LINKS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "createMessages": ("$response.body#/id", {"getMessage": "message_id", "cancelMessage": "message_id"}),
    "createJob": (
        "$response.body#/id",
        {"getJob": "job_id", "pauseJob": "job_id", "resumeJob": "job_id", "cancelJob": "job_id"},
    ),
    "sendEmail": ("$response.body#/messageId", {"getEmailStatus": "message_id"}),
    "sendMail": ("$response.body#/tracking-ids/0", {"getEmailStatus": "message_id"}),
}
"""By operation: where its answer has an id, and the parameters of others that take it."""
_WITH_LOCATION = ("createMessages", "createJob")


def with_files(mail: type[BaseModel]) -> dict[str, Any]:
    """What the operation that takes such a mail has to say of forms."""
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    properties = {
        "message": {"$ref": f"#/components/schemas/{mail.__name__}"},
        "attachment": files,
        "inline": {**files, "description": "Images that the HTML shows by cid: and their file name"},
    }
    schema = {"type": "object", "required": ["message"], "properties": properties, "additionalProperties": False}
    encoding = {"message": {"contentType": "application/json"}}
    return {"requestBody": {"content": {"multipart/form-data": {"schema": schema, "encoding": encoding}}}}


def complete(document: OpenAPISchema) -> OpenAPISchema:
    """The document, completed in place."""
    for operations in document["paths"].values():
        for method, operation in operations.items():
            if method == "post":
                operation["parameters"].append(_IDEMPOTENCY_KEY)
            for status, response in operation["responses"].items():
                _complete_response(response, status, operation["operationId"])
    _leave_out_unused(document)
    return document


def _leave_out_unused(document: OpenAPISchema) -> None:
    """ninja lists the models of parameters, too, which its operations say in full."""
    used, schemas = json.dumps(document, cls=NinjaJSONEncoder), document["components"]["schemas"]
    for name in [name for name in schemas if f'"#/components/schemas/{name}"' not in used]:
        del schemas[name]


def _complete_response(response: dict[str, Any], status: int, operation: str) -> None:
    content = response.get("content", {})
    if content.get("application/json", {}).get("schema", {}).get("$ref", "").endswith("/Problem"):
        content[PROBLEM.content_type] = content.pop("application/json")
    if status in _HEADERS:
        response["headers"] = dict(_HEADERS[status])
    if status >= 300:
        return
    if operation in _WITH_LOCATION:
        response["headers"] = {"Location": _LOCATION}
    if operation in _LINKS:
        place, targets = _LINKS[operation]
        response["links"] = {
            target: {"operationId": target, "parameters": {name: place}} for target, name in targets.items()
        }
