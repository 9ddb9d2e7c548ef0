#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What /v1 promises against what it is: scripts/stability.py THAWD [--update].

tests/golden/openapi.json is the interface as of the last release. Each thing in it that is gone or narrower in
`THAWD --openapi` is printed, and the exit status is 1 (docs/stability.md). What is new is fine; --update adds it to
the file, at a release, and refuses where something is broken."""
import json
import os
import subprocess
import sys

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../tests/golden/openapi.json")


class Comparison:
    def __init__(self, old, new):
        self.old, self.new, self.broken, self.seen = old, new, [], set()

    def say(self, where, what):
        self.broken.append(f"{where}: {what}")

    @staticmethod
    def resolve(doc, schema):
        while "$ref" in schema:
            schema = doc["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
        return schema

    def schema(self, where, old, new, request):
        """request: clients send it, so it must take what it took; else they read it, so it must say what it said."""
        key = (old.get("$ref"), new.get("$ref"), request)
        if "$ref" in old and key in self.seen:
            return
        self.seen.add(key)
        old, new = self.resolve(self.old, old), self.resolve(self.new, new)
        for word in ("type", "format", "const"):
            if old.get(word) != new.get(word) and (word in old or (request and word in new)):
                self.say(where, f"{word} was {old.get(word)}, is {new.get(word)}")
        if request and "default" in old and old["default"] != new.get("default"):
            self.say(where, f"default was {old['default']}, is {new.get('default')}")
        self.range(where, old, new, request)
        self.words(where, old, new, request)
        self.properties(where, old, new, request)
        for word in ("items", "additionalProperties"):
            a, b = old.get(word), new.get(word)
            if isinstance(a, dict) and isinstance(b, dict):
                self.schema(f"{where}[]", a, b, request)
            elif a != b and (isinstance(a, dict) or (request and b is False)):
                self.say(where, f"{word} changed")
        for word in ("oneOf", "anyOf", "allOf"):
            if len(old.get(word, [])) > len(new.get(word, [])) or (word in new and word not in old):
                self.say(where, f"{word} changed")
            for i, (a, b) in enumerate(zip(old.get(word, []), new.get(word, []))):
                self.schema(f"{where}.{word}{i}", a, b, request)

    def range(self, where, old, new, request):
        """Of requests it may not shrink. An answer's is a description."""
        for word, least in (("minimum", True), ("minLength", True), ("minItems", True), ("maximum", False),
                            ("maxLength", False), ("maxItems", False), ("pattern", None)):
            a, b = old.get(word), new.get(word)
            if a == b:
                continue
            if least is None:
                narrower = b is not None
            elif a is None or b is None:
                narrower = a is None
            else:
                narrower = b > a if least else b < a
            if narrower and request:
                self.say(where, f"{word} was {a}, is {b}")

    def words(self, where, old, new, request):
        """Requests may take more words. Answers may have more as well: clients have to expect that."""
        if "enum" in old:
            gone = [w for w in old["enum"] if w not in new.get("enum", old["enum"])]
            for w in gone:
                self.say(where, f"{w!r} is gone")
        elif request and "enum" in new:
            self.say(where, "only some words are allowed now")

    def properties(self, where, old, new, request):
        a, b = old.get("properties", {}), new.get("properties", {})
        for name, schema in a.items():
            if name not in b:
                self.say(f"{where}.{name}", "the field is gone")
            else:
                self.schema(f"{where}.{name}", schema, b[name], request)
        was, now = set(old.get("required", [])), set(new.get("required", []))
        for name in sorted(now - was if request else was - now):
            self.say(f"{where}.{name}", "it is required now" if request else "it may be absent now")

    def content(self, where, old, new, request):
        for kind, of in old.items():
            if kind not in new:
                self.say(where, f"no {kind} any more")
            elif "schema" in of:
                self.schema(where, of["schema"], new[kind].get("schema", {}), request)

    def parameters(self, where, old, new):
        def by(op):
            return {(p["in"], p["name"].lower()): p for p in op.get("parameters", [])}
        a, b = by(old), by(new)
        for key, p in a.items():
            if key not in b:
                self.say(where, f"{key[0]} parameter {key[1]} is gone")
            else:
                self.schema(f"{where} {key[1]}", p["schema"], b[key]["schema"], True)
        for key, p in b.items():
            if p.get("required") and not a.get(key, {}).get("required"):
                self.say(where, f"{key[0]} parameter {key[1]} is required now")

    def operation(self, where, old, new):
        if old["operationId"] != new["operationId"]:
            self.say(where, "another operationId")
        self.parameters(where, old, new)
        a, b = old.get("requestBody"), new.get("requestBody")
        if a and not b:
            self.say(where, "takes no body any more")
        elif b and b.get("required") and not (a or {}).get("required"):
            self.say(where, "needs a body now")
        if a and b:
            self.content(f"{where} body", a["content"], b["content"], True)
        for status, r in old["responses"].items():
            if status not in new["responses"]:
                self.say(where, f"status {status} is gone")
                continue
            now = new["responses"][status]
            for h in r.get("headers", {}):
                if h not in now.get("headers", {}):
                    self.say(f"{where} {status}", f"header field {h} is gone")
            self.content(f"{where} {status}", r.get("content", {}), now.get("content", {}), False)

    def run(self):
        for path, ops in self.old["paths"].items():
            for method, op in ops.items():
                new = self.new["paths"].get(path, {}).get(method)
                where = f"{method.upper()} {path}"
                if new is None:
                    self.say(where, "the route is gone")
                else:
                    self.operation(where, op, new)
        for name in self.old["components"]["schemas"]:
            if name not in self.new["components"]["schemas"]:
                self.say(name, "the schema has no such name any more")
        codes = {c["code"]: c["status"] for c in self.new["x-error-codes"]}
        for c in self.old["x-error-codes"]:
            if codes.get(c["code"]) != c["status"]:
                self.say(f"error {c['code']}", f"status was {c['status']}, is {codes.get(c['code'])}")
        return self.broken


def promised(v, named=False):
    """Without what is for people. named: the keys of v are names, not words of the document."""
    if isinstance(v, list):
        return [promised(x) for x in v]
    if not isinstance(v, dict):
        return v
    return {k: promised(x, k in ("properties", "schemas", "headers") and not named) for k, x in v.items()
            if named or k not in ("description", "summary", "cause", "remedy")}


def main():
    thawd, update = sys.argv[1], sys.argv[2:] == ["--update"]
    new = json.loads(subprocess.run([thawd, "--openapi"], stdout=subprocess.PIPE, check=True).stdout)
    with open(GOLDEN, encoding="utf-8") as f:
        broken = Comparison(json.load(f), new).run()
    for line in broken:
        print(line)
    if update and not broken:
        with open(GOLDEN, "w", encoding="utf-8") as f:
            json.dump(promised(new), f, indent=1, sort_keys=True, ensure_ascii=False)
            f.write("\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
