"""A Hugging Face hub on the loopback: enough of its HTTP API for the real client libraries.

    with hub_server(models={"tiny/gpt2": folder}, datasets={"tiny/alpaca": folder}) as endpoint:
        subprocess.run(..., env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": fresh_folder})

Set the two variables in a new process: the libraries read them at import. `snapshot_download`,
`from_pretrained` and `load_dataset` then run as against the hub, without a word of it patched.
Every repo has one commit, named after its files, and one branch, `main`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import parse_qs, unquote, urlsplit

API = re.compile(r"/api/(models|datasets)/(.+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?/?")
RESOLVE = re.compile(r"/(?:(datasets)/)?(.+?)/resolve/([^/]+)/(.+)")


@dataclass
class Repo:
    """One folder served as a repo."""

    kind: str
    repo_id: str
    folder: Path
    claimed_bytes: Mapping[str, int] = field(default_factory=dict)
    """Sizes that its listing claims for some files, in place of their own."""

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Content by path inside the repo, read once."""
        found = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in found}

    @cached_property
    def commit(self) -> str:
        """40 hex digits that depend on every name and every byte."""
        hasher = hashlib.sha1(repr(sorted(self.files.items())).encode())
        return hasher.hexdigest()

    def info(self) -> dict[str, object]:
        """What `model_info` and `dataset_info` parse."""
        return {
            "id": self.repo_id,
            "sha": self.commit,
            "private": False,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [{"rfilename": path} for path in self.files],
        }

    def entries(self, under: str = "", *, recursive: bool = True) -> list[dict[str, object]]:
        """Files and folders below a folder, as the tree API lists them."""
        prefix = f"{under}/" if under else ""
        inside = {path: content for path, content in self.files.items() if path.startswith(prefix)}
        folders = {parent.as_posix() for path in inside for parent in Path(path).parents}
        paths = [*sorted(path for path in folders - {".", under} if path.startswith(prefix)), *inside]
        return [self.entry(path) for path in paths if recursive or "/" not in path.removeprefix(prefix)]

    def entry(self, path: str) -> dict[str, object]:
        """One line of a tree listing."""
        if path not in self.files:
            return {"type": "directory", "path": path, "oid": git_oid(path.encode()), "size": 0}
        content = self.files[path]
        return {
            "type": "file",
            "path": path,
            "oid": git_oid(content),
            "size": self.claimed_bytes.get(path, len(content)),
        }

    def paths_info(self, paths: Collection[str]) -> list[dict[str, object]]:
        """Lines for those of the named paths that exist."""
        known = {str(line["path"]) for line in self.entries()}
        return [self.entry(path) for path in paths if path in known]


def git_oid(content: bytes) -> str:
    """Name that git gives a blob; the hub's ETag of a small file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Answer:
    """One HTTP response."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    drip: Iterable[object] = ()
    """Each item sends one more header line before the rest."""


def as_json(value: object) -> Answer:
    return Answer(body=json.dumps(value).encode(), headers={"Content-Type": "application/json"})


def as_error(status: int, code: str, message: str, **headers: str) -> Answer:
    """An error as the hub words it: in two headers and a JSON body."""
    told = {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"}
    return Answer(status, json.dumps({"error": message}).encode(), {**told, **headers})


@dataclass
class Hub:
    """What is served, as a plain function from a request to an answer."""

    repos: dict[tuple[str, str], Repo]
    gated: Collection[str]

    def answer(self, target: str, body: bytes, byte_range: str | None) -> Answer:
        url = urlsplit(target)
        path = url.path
        if match := RESOLVE.fullmatch(path):
            kind, repo_id, revision, file = match.groups()
            return self._at(
                kind or "models", repo_id, revision, lambda repo: self._file(repo, unquote(file), byte_range)
            )
        if not (match := API.fullmatch(path)):
            return as_error(404, "EntryNotFound", "no such address")
        kind, repo_id, what, revision, below = match.groups()
        if what == "tree":
            recursive = parse_qs(url.query).get("recursive", ["false"])[0].lower() in ("true", "1")
            return self._at(kind, repo_id, revision, lambda repo: self._tree(repo, unquote(below or ""), recursive))
        if what == "paths-info":
            return self._at(kind, repo_id, revision, lambda repo: as_json(repo.paths_info(asked_paths(body))))
        return self._at(kind, repo_id, revision or "main", lambda repo: as_json(repo.info()))

    def _at(self, kind: str, repo_id: str, revision: str, answer: Callable[[Repo], Answer]) -> Answer:
        repo = self.repos.get((kind, unquote(repo_id)))
        if repo is None:
            return as_error(404, "RepoNotFound", "Repository not found")
        if unquote(revision) not in ("main", repo.commit):
            return as_error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return answer(repo)

    def _tree(self, repo: Repo, under: str, recursive: bool) -> Answer:
        entries = repo.entries(under, recursive=recursive)
        if under and not entries:
            return as_error(404, "EntryNotFound", f"{under} does not exist")
        return as_json(entries)

    def _file(self, repo: Repo, path: str, byte_range: str | None) -> Answer:
        """A file or a part of it. A gated repo shows its description to everybody, its files to few."""
        at_commit = {"X-Repo-Commit": repo.commit}
        if repo.repo_id in self.gated:
            return as_error(403, "GatedRepo", f"Access to {repo.kind} {repo.repo_id} is restricted", **at_commit)
        content = repo.files.get(path)
        if content is None:
            return as_error(404, "EntryNotFound", "Entry not found", **at_commit)
        headers = {
            **at_commit,
            "ETag": f'"{git_oid(content)}"',
            "X-Linked-Size": str(len(content)),
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", byte_range or "")
        if part is None:
            return Answer(200, content, headers)
        first, last = int(part[1]), min(int(part[2] or len(content) - 1), len(content) - 1)
        if first > last:
            return Answer(416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return Answer(206, content[first : last + 1], headers)


def asked_paths(body: bytes) -> list[str]:
    """Paths in the body of a paths-info request: JSON, or a form."""
    text = body.decode()
    paths = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
    return [paths] if isinstance(paths, str) else paths


def handler_of(answer: Callable[[str, bytes, str | None], Answer], log: list[str]) -> type[BaseHTTPRequestHandler]:
    """The request handler class that http.server wants, around a plain function."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _respond(self) -> None:
            log.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            reply = answer(self.path, body, self.headers.get("Range"))
            with suppress(ConnectionError):  # the client may have given up
                self._send(reply)

        def _send(self, reply: Answer) -> None:
            self.send_response(reply.status)
            for _ in reply.drip:
                self.send_header("X-Patience", "please")
                self.flush_headers()
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)

        do_GET = do_HEAD = do_POST = _respond  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean; requests are in `log`."""

    return Handler


@contextmanager
def hub_server(
    models: Mapping[str, Path] | None = None,
    datasets: Mapping[str, Path] | None = None,
    *,
    gated: Collection[str] = (),
    claimed_bytes: Mapping[str, int] | None = None,
    status: int | None = None,
    blocked: int | None = None,
    hang: bool = False,
    drip: bool = False,
    log: list[str] | None = None,
) -> Iterator[str]:
    """Serve local folders as hub repos; yields the endpoint, http://127.0.0.1:PORT.

    Args:
        models, datasets: folder of each repo id; a Parquet dataset keeps its rows in
            data/train-00000-of-00001.parquet.
        gated: ids whose files are refused with 403, while their description is public.
        claimed_bytes: by file name, sizes that listings claim for files that are smaller.
        status: answer everything with this error, as 401 for a bad token or 503 for a broken hub.
        blocked: answer everything with this status and no word of a hub's, as a company's proxy does.
        hang: accept connections and never answer.
        drip: send a header line every half second and never come to an end.
        log: gets one line a request, "METHOD /path".
    """
    repos = {
        (kind, repo_id): Repo(kind, repo_id, Path(folder), claimed_bytes or {})
        for kind, folders in (("models", models), ("datasets", datasets))
        for repo_id, folder in (folders or {}).items()
    }
    closing = Event()
    answer = Hub(repos, gated).answer
    if status is not None:
        answer = lambda *_: as_error(status, "", "Invalid credentials in Authorization header")  # noqa: E731
    if blocked is not None:
        answer = lambda *_: Answer(blocked, b"<h1>Blocked</h1>")  # noqa: E731
    if hang:
        answer = lambda *_: closing.wait() and Answer(503)  # noqa: E731
    if drip:
        answer = lambda *_: Answer(drip=iter(lambda: closing.wait(0.5), True))  # noqa: E731
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(answer, [] if log is None else log))
    server.daemon_threads = True
    server.block_on_close = False
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
