# SPDX-License-Identifier: Apache-2.0
"""Holds requests and answers against the OpenAPI document that thawd prints: a validator of the part
of JSON Schema which the document uses. An unknown keyword is an error, so nothing goes unchecked."""
import json
import re
import subprocess

KNOWN = {"type", "properties", "required", "additionalProperties", "items", "maxItems", "enum", "pattern",
         "minimum", "maximum", "maxLength", "format", "description", "default", "$ref"}
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}


class Document:
    def __init__(self, thawd):
        self.doc = json.loads(subprocess.run([thawd, "--openapi"], stdout=subprocess.PIPE, check=True).stdout)
        self.routes = [(re.compile("".join("[^/]+" if p.startswith("{") else re.escape(p)
                                           for p in re.split(r"(\{[a-z]+\})", path))), ops)
                       for path, ops in self.doc["paths"].items()]

    def operation(self, method, path):
        for pattern, ops in self.routes:
            if pattern.fullmatch(path.split("?")[0]) and method.lower() in ops:
                return ops[method.lower()]
        return None

    def check(self, schema, v, where="body"):
        """Raises AssertionError if v is not what the schema says."""
        assert not set(schema) - KNOWN, f"{where}: keywords {set(schema) - KNOWN}"
        if "$ref" in schema:
            v_schema = self.doc["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
            self.check(v_schema, v, where)
            return
        kind = schema.get("type")
        if kind:
            assert isinstance(v, TYPES[kind]) and (kind == "boolean" or not isinstance(v, bool)), \
                f"{where}: {v!r} is no {kind}"
        if "enum" in schema:
            assert v in schema["enum"], f"{where}: {v!r} is none of {schema['enum']}"
        if "pattern" in schema:
            assert re.search(schema["pattern"], v), f"{where}: {v!r} is not {schema['pattern']}"
        if schema.get("format") == "date-time":
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", v), f"{where}: {v!r}"
        if "maxLength" in schema:
            assert len(v.encode()) <= schema["maxLength"], f"{where}: too long"
        if "minimum" in schema:
            assert v >= schema["minimum"], f"{where}: {v} is too small"
        if "maximum" in schema:
            assert v <= schema["maximum"], f"{where}: {v} is too large"
        if kind == "array":
            assert len(v) <= schema.get("maxItems", len(v)), f"{where}: too many"
            for i, item in enumerate(v):
                self.check(schema["items"], item, f"{where}[{i}]")
        if kind == "object":
            self.check_object(schema, v, where)

    def check_object(self, schema, v, where):
        fields, other = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name in schema.get("required", ()):
            assert name in v, f"{where}: no {name}"
        for name, value in v.items():
            if name in fields:
                self.check(fields[name], value, f"{where}.{name}")
            elif isinstance(other, dict):
                self.check(other, value, f"{where}.{name}")
            else:
                assert other, f"{where}: {name} is not in the document"

    def check_answer(self, method, path, status, headers, body):
        op = self.operation(method, path)
        assert re.fullmatch(r"[\w.:=+/-]{1,64}", headers.get("X-Request-Id", "")), f"{method} {path}: {headers}"
        kind = headers.get("Content-Type", "")
        if status >= 400 or not op:
            # A clone request of which all failed has the clones beside the error.
            if kind == "application/json" and body and not (op and op["operationId"].endswith("clone_POST")):
                self.check(self.doc["components"]["schemas"]["Error"], json.loads(body))
            return
        assert str(status) in op["responses"], f"{method} {path}: {status} is not in the document"
        tagged = "ETag" in op["responses"][str(status)].get("headers", {}) and "Idempotent-Replayed" not in headers
        assert tagged == ("ETag" in headers) or status == 304, f"{method} {path}: {headers}"
        content = op["responses"][str(status)].get("content", {})
        if body and kind == "application/json":
            self.check(content[kind]["schema"], json.loads(body), f"{method} {path}")
        elif body and kind == "application/x-ndjson":
            for line in body.splitlines():
                self.check(content[kind]["schema"], json.loads(line), f"{method} {path}")

    def check_request(self, method, path, status, code, body):
        """What was taken, the document allows; what it has no field for, it does not."""
        op = self.operation(method, path)
        content = op.get("requestBody", {}).get("content", {}) if op else {}
        schema = content.get("application/json", {}).get("schema")
        try:
            v = json.loads(body) if body else {}
        except (ValueError, RecursionError):
            return
        if not schema or not isinstance(v, dict):
            return
        if status < 300:
            self.check(schema, v, f"{method} {path}")
        elif code in ("missing_field", "wrong_type") or (code == "unknown_field" and "?" not in path):
            try:
                self.check(schema, v)
            except AssertionError:
                return
            raise AssertionError(f"{method} {path}: refused by {code}, allowed by the document: {v}")
