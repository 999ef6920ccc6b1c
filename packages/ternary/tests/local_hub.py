"""A small HTTP server that speaks the parts of the Hugging Face Hub and of GitHub's releases that uploads use.

It keeps files and releases in memory and checks tokens, digests and sizes as the real ones do.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse

TOKEN = "hf_local"


class Server(ThreadingHTTPServer):
    """The server and all that it was given.

    Attributes:
        files: content by repository and path, as of the last commit.
        commits: per repository, how many files each commit had.
        releases: by number.
        upload_mode: "regular" or "lfs", what the hub asks for.
        fail_upload: an asset whose upload is refused.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, list[int]] = {}
        self.objects: dict[str, bytes] = {}
        self.releases: dict[int, dict] = {}
        self.assets: dict[str, bytes] = {}
        self.upload_mode = "regular"
        self.fail_upload = ""

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, status: int, body: object = None, headers: dict[str, str] | None = None) -> None:
        """Send JSON, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/octet-stream" if isinstance(body, bytes) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle_any(self) -> None:
        """Find what was asked."""
        path = unquote(urlparse(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        writes = self.command not in ("GET", "HEAD")
        if writes and not path.startswith("/objects/") and TOKEN not in (self.headers.get("Authorization") or ""):
            return self.answer(401, {"error": "Invalid username or password.", "message": "Bad credentials"})
        for method, pattern, run in ROUTES:
            found = re.fullmatch(pattern, path)
            if method == self.command and found:
                return run(self, body, *found.groups())
        return self.answer(404, {"error": f"no route for {self.command} {path}", "message": "Not Found"})

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = handle_any

    # The hub.

    def create(self, body: bytes) -> None:
        """POST /api/repos/create."""
        given = json.loads(body)
        name = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
        address = f"{self.server.address}/{name}"
        if name in self.server.files:
            return self.answer(409, {"error": "You already created this model repo", "url": address})
        self.server.files[name] = {}
        return self.answer(200, {"url": address, "name": name, "id": name})

    def info(self, _: bytes, name: str) -> None:
        """GET /api/models/NAME[/revision/main]."""
        if name not in self.server.files:
            return self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        siblings = [{"rfilename": f} for f in self.server.files[name]]
        return self.answer(200, {"id": name, "modelId": name, "sha": "0" * 40, "siblings": siblings, "private": False})

    def preupload(self, body: bytes, name: str) -> None:
        """Which files are sent in the commit, and which before it."""
        mode = self.server.upload_mode
        files = [{"path": f["path"], "uploadMode": mode, "shouldIgnore": False} for f in json.loads(body)["files"]]
        self.answer(200 if name in self.server.files else 404, {"files": files})

    def batch(self, body: bytes, _: str) -> None:
        """Git LFS: where to put each object."""
        made = []
        for wanted in json.loads(body)["objects"]:
            address = f"{self.server.address}/objects/{wanted['oid']}"
            made.append({**wanted, "authenticated": True, "actions": {"upload": {"href": address}}})
        self.answer(200, {"transfer": "basic", "objects": made})

    def put(self, body: bytes, oid: str) -> None:
        """An LFS object, refused if it is not what its name says."""
        if hashlib.sha256(body).hexdigest() != oid:
            return self.answer(400, {"error": "digest"})
        self.server.objects[oid] = body
        return self.answer(200)

    def commit(self, body: bytes, name: str) -> None:
        """All files of a commit at once."""
        added = {}
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                added[value["path"]] = self.server.objects[value["oid"]]
        self.server.files[name] |= added
        self.server.commits.setdefault(name, []).append(len(added))
        address = f"{self.server.address}/{name}/commit/{'0' * 40}"
        self.answer(200, {"success": True, "commitUrl": address, "commitOid": "0" * 40})

    def resolve(self, _: bytes, name: str, file: str) -> None:
        """A download."""
        content = self.server.files.get(name, {}).get(file)
        if content is None:
            return self.answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        digest = hashlib.sha256(content).hexdigest()
        return self.answer(200, content, {"ETag": f'"{digest}"', "X-Repo-Commit": "0" * 40})

    # GitHub.

    def repository(self, _: bytes, name: str) -> None:
        """GET /repos/NAME."""
        if name.endswith("/none"):
            return self.answer(404, {"message": "Not Found"})
        return self.answer(200, {"full_name": name, "name": name, "url": f"{self.server.address}/api/v3/repos/{name}"})

    def release(self, body: bytes, name: str) -> None:
        """A new release."""
        number = len(self.server.releases) + 1
        here = f"{self.server.address}/api/v3/repos/{name}/releases/{number}"
        made = json.loads(body) | {"id": number, "url": here, "assets": []}
        made |= {"upload_url": here + "/assets{?name,label}", "html_url": f"{self.server.address}/{name}/{number}"}
        self.server.releases[number] = made
        self.answer(201, made)

    def asset(self, body: bytes, _: str, number: str) -> None:
        """A file of a release."""
        name = parse_qs(urlparse(self.path).query)["name"][0]
        if name == self.server.fail_upload:
            return self.answer(422, {"message": "Validation Failed"})
        self.server.assets[name] = body
        made = {"id": len(self.server.assets), "name": name, "size": len(body), "state": "uploaded"}
        self.server.releases[int(number)]["assets"].append(made)
        return self.answer(201, made)

    def update(self, body: bytes, _: str, number: str) -> None:
        """A change of a release."""
        self.server.releases[int(number)] |= json.loads(body)
        self.answer(200, self.server.releases[int(number)])


NAME = "([^/]+/[^/]+)"
API = "/api/v3/repos/"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("GET", f"/api/models/{NAME}(?:/revision/main)?", Handler.info),
    ("POST", f"/api/models/{NAME}/preupload/main", Handler.preupload),
    ("POST", f"/{NAME}\\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/objects/([0-9a-f]{64})", Handler.put),
    ("POST", f"/api/models/{NAME}/commit/main", Handler.commit),
    ("HEAD", f"/{NAME}/resolve/main/(.+)", Handler.resolve),
    ("GET", f"/{NAME}/resolve/main/(.+)", Handler.resolve),
    ("GET", f"/{NAME}/resolve/{'0' * 40}/(.+)", Handler.resolve),
    ("GET", f"{API}{NAME}", Handler.repository),
    ("POST", f"{API}{NAME}/releases", Handler.release),
    ("POST", f"{API}{NAME}/releases/([0-9]+)/assets", Handler.asset),
    ("PATCH", f"{API}{NAME}/releases/([0-9]+)", Handler.update),
]


def start() -> Server:
    """A running server; stop it with `stop`."""
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


def stop(server: Server) -> None:
    """End it and free its port."""
    server.shutdown()
    server.server_close()
