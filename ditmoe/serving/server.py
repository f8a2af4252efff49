"""The server of the demo page: it listens on 127.0.0.1, answers only its own page, and opens no connections."""

import os
import re
import shutil
import socket
import sys
import tempfile
import time
import webbrowser
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from ditmoe.inference import ModelWords
from ditmoe.outside import files_below, printable, tell
from ditmoe.outside.signals import ENDING, handling
from ditmoe.serving.drawer import Drawer
from ditmoe.serving.form import fields_of

HOST, FIRST_PORT, PORTS = "127.0.0.1", 7860, 100
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Environment variables for Gradio and its dependencies, set before they are imported."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; connect-src 'self'; "
    "worker-src 'self' blob:; frame-src 'self'; frame-ancestors 'self'; base-uri 'self'; form-action 'self'; "
    "object-src 'none'"
)
"""Content-Security-Policy of the page: nothing is loaded from elsewhere, whatever Gradio's scripts request."""
BESIDE = 2**20
"""Most bytes of a request besides a file: a hundred thousand paths in one kept the server from answering others."""
ELSEWHERE = re.compile(r"/(file|proxy)=\s*https?:", re.IGNORECASE)
"""Paths by which Gradio would fetch from another machine and answer with it, after it asked for the address."""
UPLOADS = 16
"""Space for uploads, in files of the largest size; Gradio deletes files after an hour."""
Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def serve(port: int | None, most: int, upload: int, open: bool, **words: Any) -> None:
    """Serve the page of a checkpoint until it is stopped.

    Args:
        port: None: the first free one from 7860 on.
        most: most samples per request.
        upload: largest size of a file, in megabytes.
        open: whether to open the page in the browser.
        words: the checkpoint and options on its model, see `ModelWords`.

    Raises:
        ValueError, OSError: with one line, if the checkpoint cannot be sampled from, or the port is in use.
    """
    models, listening = ModelWords(**words), bound(port)
    with listening, temporary_folder("ditmoe-demo-") as folder:
        drawer = Drawer(models)
        app = make_app(drawer, folder, most, upload)
        address = f"http://{HOST}:{listening.getsockname()[1]}"
        tell(f"{printable(models.checkpoint)} is served at {address} (Ctrl-C stops it)", sys.stdout)
        sys.stdout.flush()
        if open:
            webbrowser.open(address)
        try:
            run(app, listening, drawer.end)
        finally:
            drawer.close()


@contextmanager
def temporary_folder(prefix: str, patience: float = 10) -> Iterator[Path]:
    """A new folder, removed at the end even if a thread of Gradio still writes into it, for so many seconds."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        until = time.monotonic() + patience
        while folder.exists() and time.monotonic() < until:
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.1 if folder.exists() else 0)
        if folder.exists():
            tell(f"note: {printable(folder)} could not be removed")


def bound(port: int | None) -> socket.socket:
    """A listening socket on 127.0.0.1.

    Raises:
        OSError: with one line, if the port is in use.
    """
    for number in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS):
        found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((HOST, number))
            found.listen(64)  # until then another process can still take the port
            return found
        except OSError as error:
            found.close()
            reason = error.strerror
    which = f"port {port}" if port is not None else f"each port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1}"
    raise OSError(f"{which} of {HOST} must be free: {reason}; port=... chooses another")


def make_app(drawer: Drawer, folder: Path, most: int, upload: int) -> Any:
    """The page as an ASGI application.

    Args:
        folder: for all files that it writes.
        most: most samples per request.
        upload: largest size of a file, in megabytes.
    """
    os.environ.update(QUIET | {"GRADIO_TEMP_DIR": str(folder)})
    import gradio as gr
    from fastapi import FastAPI
    from starlette.responses import HTMLResponse, Response

    from ditmoe.serving.page import CSS, Studio, make_page, theme

    studio = Studio(drawer, fields_of(drawer.restored, most), folder)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/drawn/{name}")
    def drawn(name: str) -> Response:
        kept = studio.pages.get(name)
        return Response(status_code=404) if kept is None else HTMLResponse(kept[0])

    gr.mount_gradio_app(
        app, make_page(studio), path="/", server_name=HOST, footer_links=[], run_history=False, show_error=False,
        max_file_size=upload * 10**6, ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False,
        theme=theme(), css=CSS,
    )  # fmt: skip
    return Guard(app, upload * 10**6 + BESIDE, partial(has_room, folder, UPLOADS * upload * 10**6))


def run(app: Any, listening: socket.socket, on_end: Callable[[], None]) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP.

    Args:
        on_end: called on the signal, before the server waits for current requests.
    """
    import uvicorn

    # Open pages keep a request open. It is cut off after a second, which uvicorn logs as an error: hence `critical`.
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1, access_log=False)
    )
    ends = server.handle_exit

    def ended(number: int, frame: Any) -> None:
        on_end()
        ends(number, frame)

    server.handle_exit = ended  # type: ignore[method-assign]
    with handling(ended, *ENDING):  # uvicorn raises those that it handles again later
        server.run(sockets=[listening])


class Guard:
    """ASGI middleware that refuses requests from other sites and sets a Content-Security-Policy.

    Another site in the same browser can send requests to 127.0.0.1, also under its own host name (DNS rebinding). Both
    are refused, as are requests that are too large.

    Args:
        app: the guarded application.
        most: most bytes of an upload; other requests have at most `BESIDE`.
        room: whether there is space for a file of this many bytes.
    """

    def __init__(self, app: Any, most: int, room: Callable[[int], bool] = lambda _: True) -> None:
        self.app, self.most, self.room = app, most, room

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        method, uploads = scope.get("method", "GET"), scope["path"].rstrip("/").endswith("/upload")
        code = self.refused(method, headers, self.most if uploads else min(self.most, BESIDE))
        code = 403 if ELSEWHERE.search(scope["path"]) else code
        if not code and method == "POST" and uploads:
            code = 0 if self.room(int(headers[b"content-length"])) else 507
        if scope["type"] != "http" or code:
            await refuse(code or 403, scope, send)
            return

        async def told(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
                own += (
                    []
                    if scope["path"].startswith("/drawn/")
                    else [(b"content-security-policy", POLICY.encode())]
                )
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        await self.app(scope, receive, told)

    def refused(self, method: str, headers: dict[bytes, str], most: int) -> int:
        """The HTTP status for a refused request of at most so many bytes; 0 if it is allowed."""
        host = headers.get(b"host", "")
        if host.rpartition(":")[0] not in (HOST, "localhost"):
            return 403
        if b"origin" in headers and headers[b"origin"] != f"http://{host}":
            return 403
        length = headers.get(b"content-length")
        if method not in ("GET", "HEAD", "OPTIONS"):
            if length is None or not length.isdigit():
                return 411
            return 413 if int(length) > most else 0
        return 0


def has_room(folder: Path, most: int, more: int) -> bool:
    """Whether all files below a folder, plus `more` bytes, take at most `most` bytes."""
    total = more
    for file in files_below(folder, hidden=True):
        with suppress(OSError):  # deleted in the meantime
            total += file.stat().st_size
    return total <= most


async def refuse(code: int, scope: Scope, send: Send) -> None:
    """Answer with an HTTP status and no body."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    await send({"type": "http.response.start", "status": code, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
