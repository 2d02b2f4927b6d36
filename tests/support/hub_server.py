"""A stand-in for the Hugging Face Hub: enough of its HTTP API that huggingface_hub itself reads and writes a dataset.

    repositories, branches, commits, trees          in memory; a commit names its parent, or is refused
    large files by the LFS protocol                 PUT once; a repetition is told that they are there
    resolve, with ranges                            302 to another address, as the Hub does
    buckets: listed, looked up, resolved            what is uploaded to them goes by Xet, which is not here

Written from the requests that huggingface_hub makes. It is not the Hub: what only a live one can show is not tested.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_a_secret_of_the_test"
WHEN = "2026-01-02T03:04:05.000Z"


@dataclass
class Repository:
    """Branches and commits; a tree is {path: content}."""

    visibility: str
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    trees: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {".gitattributes": b"* text=auto\n"}})
    messages: list[str] = field(default_factory=list)

    def tree(self, revision: str) -> dict[str, bytes]:
        return self.trees[self.branches.get(revision, revision)]


class Hub:
    """The state of the server, and its address."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.buckets: dict[str, dict[str, bytes]] = {}
        self.puts: list[str] = []
        self.on_put: Callable[[int], None] = lambda count: None
        hub = self

        class Handler(_Handler):
            state = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> "Hub":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/blob/([0-9a-f]{64})", path):
            return self._content(self.state.blobs[found[1]])
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            repository = self._repository(found[1], found[2] or "main")
            if repository:
                sha = repository.branches.get(found[2] or "main", found[2] or "")
                self._json({"id": found[1], "sha": sha, "private": repository.visibility == "private", "siblings": []})
        elif found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", path):
            repository = self._repository(found[1], found[2])
            if repository:
                prefix = f"{found[3]}/" if found[3] else ""
                files = {p: d for p, d in repository.tree(found[2]).items() if p.startswith(prefix)}
                if prefix and not files:
                    return self._refuse(404, "EntryNotFound")
                self._json([self._entry(p, d) for p, d in files.items()])
        elif found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repository = self._repository(found[1], found[2])
            if repository:
                self._resolve(repository.tree(found[2]).get(found[3]))
        elif found := re.fullmatch(r"(?:/api)?/buckets/([^/]+/[^/]+)(?:/(tree|resolve)(?:/(.*))?)?", path):
            self._bucket(found[1], found[2], found[3] or "")
        else:
            self._refuse(404, "RepoNotFound")

    def do_PUT(self) -> None:
        data = self._body()
        found = re.fullmatch(r"/upload/([0-9a-f]{64})", urlsplit(self.path).path)
        assert found and _sha256(data) == found[1]
        self.state.blobs[found[1]] = data
        self.state.puts.append(found[1])
        self.state.on_put(len(self.state.puts))
        self._json({})

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            known = self.state.repositories.setdefault(name, made := Repository(wanted.get("visibility", "public")))
            self._json({"url": f"{self.state.endpoint}/datasets/{name}"}, 200 if known is made else 409)
        elif found := re.fullmatch(r"/api/buckets/([^/]+/[^/]+)/paths-info", path):
            files = self.state.buckets.get(found[1], {})
            self._json([_bucket_entry(p, files[p]) for p in json.loads(body)["paths"] if p in files])
        elif path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            self._json({"warnings": [], "errors": []})
        elif found := re.fullmatch(r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            wanted = json.loads(body)["objects"]
            upload = {o["oid"]: {"upload": {"href": f"{self.state.endpoint}/upload/{o['oid']}?sig=1"}} for o in wanted}
            missing = [{**o, "actions": upload[o["oid"]]} for o in wanted if o["oid"] not in self.state.blobs]
            self._json({"objects": [*missing, *(o for o in wanted if o["oid"] in self.state.blobs)]})
        elif found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/(branch|preupload|commit|paths-info)/(.+)", path):
            repository = self._repository(found[1], "main" if found[2] == "branch" else found[3])
            if repository:
                getattr(self, f"_{found[2].replace('-', '_')}")(repository, found[3], body)
        else:
            self._refuse(404, "RepoNotFound")

    def _bucket(self, name: str, what: str | None, path: str) -> None:
        files = self.state.buckets.get(name)
        if files is None:
            return self._refuse(404, "RepoNotFound")
        if what == "resolve":
            return self._resolve(files.get(path))
        if what == "tree":
            return self._json([_bucket_entry(p, d) for p, d in files.items() if p.startswith(path)])
        size = sum(map(len, files.values()))
        counts = {"createdAt": WHEN, "size": size, "totalFiles": len(files)}
        self._json({"id": name, "private": True, **counts})

    def _resolve(self, data: bytes | None) -> None:
        if data is None:
            return self._refuse(404, "EntryNotFound")
        self.state.blobs.setdefault(_sha256(data), data)
        self.send_response(302)
        self.send_header("Location", f"{self.state.endpoint}/blob/{_sha256(data)}?X-Amz-Signature=secret")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _branch(self, repository: Repository, name: str, body: bytes) -> None:
        repository.branches[name] = repository.branches["main"]
        self._json({})

    def _preupload(self, repository: Repository, revision: str, body: bytes) -> None:
        def mode(file: Any) -> str:
            return "regular" if file["path"].endswith((".json", ".md", ".part")) else "lfs"

        files = [{"path": f["path"], "uploadMode": mode(f), "shouldIgnore": False} for f in json.loads(body)["files"]]
        self._json({"files": files})

    def _paths_info(self, repository: Repository, revision: str, body: bytes) -> None:
        tree = repository.tree(revision)
        self._json([self._entry(p, tree[p]) for p in parse_qs(body.decode())["paths"] if p in tree])

    def _commit(self, repository: Repository, branch: str, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        head, name = repository.branches[branch], "/".join(self.path.split("/")[3:5])
        if lines[0]["value"].get("parentCommit") not in (None, head):
            return self._refuse(412, "")
        tree = dict(repository.trees[head])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                tree[value["path"]] = self.state.blobs[value["oid"]]
            else:
                del tree[value["path"]]
        made = hashlib.sha1(head.encode() + body).hexdigest()
        repository.trees[made], repository.branches[branch] = tree, made
        repository.messages.append(lines[0]["value"]["summary"])
        self._json({"commitUrl": f"{self.state.endpoint}/datasets/{name}/commit/{made}", "commitOid": made})

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if not path.endswith((".json", ".md", ".part")):
            entry["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": 134}
        return entry

    def _repository(self, name: str, revision: str) -> Repository | None:
        repository = self.state.repositories.get(name)
        private = repository is not None and repository.visibility == "private"
        if repository is None or (private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self._refuse(404, "RepoNotFound")
            return None
        if revision not in repository.branches and revision not in repository.trees:
            self._refuse(404, "RevisionNotFound")
            return None
        return repository

    def _content(self, data: bytes) -> None:
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if found:
            first = int(found[1]) if found[1] else max(0, len(data) - int(found[2]))
            part = data[first : int(found[2]) + 1] if found[1] and found[2] else data[first:]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        else:
            part = data
            self.send_response(200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _json(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _bucket_entry(path: str, data: bytes) -> dict[str, Any]:
    return {
        "type": "file",
        "path": path,
        "size": len(data),
        "xetHash": _sha256(data),
        "uploadedAt": WHEN,
        "mtime": WHEN,
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
