"""A small web server beside a run: pages and JSON from a thread, careful about who asks."""

from __future__ import annotations

import errno
import ipaddress
import json
import logging
import math
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from streamwise.streams import UsageError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BusyError", "Server", "html_page", "json_response", "listening"]

_CONNECTIONS = 200
_STOP_WITHIN_SECONDS = 10.0


@dataclass(frozen=True)
class Server:
    """A server at work. url: where it is, without a slash at the end."""

    url: str


class BusyError(RuntimeError):
    """The loop holds its lock for longer than anybody wants to wait."""


def html_page(template: str) -> Callable[[Request], Response]:
    """Return what answers with a page of `templates/`, whose scripts and styles alone a browser may run."""
    from starlette.responses import HTMLResponse

    page = Path(__file__).with_name("templates").joinpath(template).read_text("utf-8")

    def answer(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(page.replace("{{ nonce }}", nonce), headers={"Content-Security-Policy": policy})

    return answer


def json_response(value: Any, status: int = 200) -> Response:
    """Return a response in JSON: ASCII, since what a log holds need not be valid Unicode, and without NaN."""
    from starlette.responses import Response

    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return Response(text, status, media_type="application/json")


def _finite(value: Any) -> Any:
    """Return a value of which numbers that are not finite have become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value


def _application(routes: list[Route], hosts: set[str] | None) -> ASGIApp:
    """Return the application. hosts: the only ones it answers to; None answers to all."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        choice = ", ".join(route.path for route in routes)
        texts = {
            404: f"there is nothing at {request.url.path}; choose from {choice}.",
            405: f"{request.method} is not allowed; use GET.",
        }
        response = json_response({"error": texts.get(error.status_code, error.detail)}, error.status_code)
        response.headers.update(error.headers or {})
        return response

    def busy(request: Request, error: Exception) -> Response:
        return json_response({"error": str(error)}, 503)

    def failed(request: Request, error: Exception) -> Response:
        return json_response({"error": "the server failed; serve.log in the run's directory says how."}, 500)

    application = Starlette(
        routes=routes,
        middleware=[Middleware(_Guard, hosts=hosts)],
        exception_handlers={HTTPException: refused, BusyError: busy, Exception: failed},
    )
    application.router.redirect_slashes = False
    return application


class _Guard:
    """Refuses requests meant for other hosts, and puts headers on every response that keep browsers careful.

    A page of another site can make its own name point to this machine (DNS rebinding); the Host header tells.
    """

    def __init__(self, app: ASGIApp, hosts: set[str] | None) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def careful(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [
                    (b"cache-control", b"no-store"),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                    (b"cross-origin-resource-policy", b"same-origin"),
                ]
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        if self.hosts is not None and (asked := _host_of(scope)) not in self.hosts:
            wrong = json_response(
                {"error": f"this server is not {asked or 'named'}; ask for localhost."}, 421
            )
            await wrong(scope, receive, careful)
        else:
            await self.app(scope, receive, careful)


def _host_of(scope: Scope) -> str | None:
    given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    try:
        return urlsplit(f"//{given[0]}").hostname if len(given) == 1 else None
    except ValueError:
        return None


@contextmanager
def listening(
    directory: Path, flag: str, host: str, port: int, routes: Callable[[], list[Route]]
) -> Iterator[Server]:
    """Serve inside the block, in a thread with an event loop of its own.

    directory: for serve.log. flag: of the command, for errors. routes: called once the libraries are there.
    Raises UsageError if the port cannot be listened on, or a library is missing.
    """
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn
    except ModuleNotFoundError as error:
        raise UsageError(f"--{flag} needs {error.name}; run: pip install 'streamwise[serve]'.") from None

    listener = _listener(flag, host, port)
    with listener, _log_to(directory / "serve.log"):
        hosts = {"localhost", "127.0.0.1", "::1", host.lower()} if _is_loopback(host) else None
        config = uvicorn.Config(
            _application(routes(), hosts),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        # Outside the main thread, uvicorn leaves signals alone; they belong to the run.
        thread = threading.Thread(
            target=server.run, args=([listener],), name=f"streamwise-{flag}", daemon=True
        )
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise OSError("the server did not start; serve.log in the run's directory has more.")
                time.sleep(0.005)
            yield Server(_url(host, listener.getsockname()[1]))
        finally:
            server.should_exit = True
            thread.join(timeout=_STOP_WITHIN_SECONDS)


def _listener(flag: str, host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises UsageError if it cannot."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except socket.gaierror:
        raise UsageError(f"--host {host} is no address of this machine; use 127.0.0.1, or 0.0.0.0.") from None
    except OSError as error:
        texts = {
            errno.EADDRINUSE: f"port {port} of {host} is in use; choose another --{flag}, or 0 for any.",
            errno.EACCES: f"port {port} is not for everybody; choose a --{flag} above 1,023.",
            errno.EADDRNOTAVAIL: f"--host {host} is no address of this machine; use 127.0.0.1, or 0.0.0.0.",
        }
        text = texts.get(error.errno or 0, f"port {port} of {host} cannot be listened on: {error.strerror}.")
        raise UsageError(text) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _url(host: str, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # where from here it is found
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Write what uvicorn warns of to a file, made when there is something, and not to the terminal."""
    logger = logging.getLogger("uvicorn")
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate, logger.level = before
        handler.close()
