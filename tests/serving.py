"""A server on this machine, for downloads: whole, cut, refused, changed; and hosts of the network that lead to it."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import requests


class Handler(http.server.BaseHTTPRequestHandler):
    """Serve `server.files`; `server.cuts` are bytes after which the connections of the coming requests break off.

    `server.headers` are those of single files besides the usual ones, `server.redirects` lead from a path to a link, `server.states`
    are answers that refuse.
    """

    def do_GET(self):
        self._answer(body=True)

    def do_HEAD(self):
        self._answer(body=False)

    def _answer(self, *, body):
        server, name = self.server, self.path.partition("?")[0].lstrip("/")
        if body:
            server.asked.append(self.headers.get("Range"))
        if name in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[name])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if name in server.states:
            states = server.states[name]
            self.send_error(states.pop(0) if isinstance(states, list) else states)
            if states == []:
                del server.states[name]
            return
        if name not in server.files:
            self.send_error(404)
            return
        content = server.files[name]
        content = content(self.path) if callable(content) else content
        start = 0
        wanted = self.headers.get("Range")
        if wanted and server.ranges and self.headers.get("If-Range", server.tag) == server.tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        page = name.endswith(".html") or content.lstrip().startswith(b"<")
        usual = {"ETag": server.tag, "Content-Type": "text/html; charset=utf-8" if page else "application/zip"}
        for key, value in {**usual, **server.headers.get(name, {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            cut = server.cuts.pop(0) if server.cuts else len(content)
            self.wfile.write(content[start : start + cut])
        self.close_connection = True

    def log_message(self, *_):
        pass


@contextmanager
def serving() -> Iterator[http.server.ThreadingHTTPServer]:
    """Serve on a free port of this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.files, running.states, running.cuts, running.asked = {}, {}, [], []
        running.headers, running.redirects = {}, {}
        running.tag, running.ranges = '"v1"', True
        running.address = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()


def lead_to(server, monkeypatch):
    """Let `requests` reach every other host on this server: https://HOST/PATH is its file HOST/PATH."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    send = requests.adapters.HTTPAdapter.send

    def redirected(self, request, **keys):
        asked = request.url
        parts = urlsplit(asked)
        if parts.hostname == "127.0.0.1":
            return send(self, request, **keys)
        request.url = f"{server.address}/{parts.hostname}{parts.path}" + (f"?{parts.query}" if parts.query else "")
        try:
            answer = send(self, request, **keys)
        finally:
            request.url = asked
        answer.url = asked
        return answer

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", redirected)
