"""The classroom as a web page of this machine: who may ask, and what the browser may load."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from nnrepair.classroom import page, view
from nnrepair.classroom.material import Material
from nnrepair.classroom.sessions import Room
from nnrepair.errors import InvalidInput, NNRepairError
from nnrepair.extras import needed

with needed("classroom", "The classroom needs NiceGUI"):
    from nicegui import Client, app, ui
    from starlette.middleware.trustedhost import TrustedHostMiddleware

#: Seconds that a lesson is kept when a connection breaks, for the browser to come back.
COME_BACK = 60.0
#: Seconds in which a tab connects once it has the page.
CONNECT = 30.0
#: A browser loads, and connects to, nothing but this server; NiceGUI's page compiles its own templates.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
LOOPBACK = ("localhost", "127.0.0.1")


def serve(
    material: Material, *, host: str, port: int, show: bool, say: Callable[[str], object] = lambda line: None
) -> None:
    """Serve the classroom until it is interrupted.

    Args:
        material: what the class works with.
        host, port: where to listen; port 0 takes one that is free.
        show: open the page in this machine's browser.
        say: takes the lines to tell, such as `print`.

    Raises:
        InvalidInput: host or port cannot be used; the message says why.
    """
    port = _free(host, port)
    where = f"[{host}]" if ":" in host else host
    room = Room(material)

    @ui.page("/")
    async def _(client: Client) -> None:
        try:
            await client.connected(CONNECT)
        except TimeoutError:  # a program that only asked for the page, not a tab that shows it
            return
        ui.add_css(view.styles())
        try:
            lesson = room.enter()
        except NNRepairError as error:
            ui.label(str(error)).classes("full")
            return
        client.on_delete(lambda: room.leave(lesson))
        client.on_exception(lambda error: ui.notify(page.BROKEN, type="warning", position="top"))
        page.Desk(lesson)

    if _is_loopback(host):
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, where], www_redirect=False)

    @app.middleware("http")
    async def _(request: Any, answer: Any) -> Any:
        response = await answer(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    app.on_startup(lambda: say(f"The classroom is open at http://{where}:{port}/  (Ctrl+C closes it)"))
    if not _is_loopback(host):
        say(f"Everyone who reaches port {port} of this machine can use the classroom: it listens on {host}.")
    with suppress(KeyboardInterrupt):  # that is how it ends
        ui.run(
            host=host,
            port=port,
            show=show,
            reload=False,
            title="Repair a network",
            favicon="🔧",
            dark=None,
            reconnect_timeout=COME_BACK,
            language="en-US",
            tailwind=False,
            show_welcome_message=False,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _free(host: str, port: int) -> int:
    """Return the port, or one that is free for 0, once it is clear that it can be listened on."""
    if port not in range(2**16):
        raise InvalidInput(f"Cannot listen on {host}, port {port}: ports are 0 to {2**16 - 1}. Choose another --port.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
            found: int = tried.getsockname()[1]
            return found
    except OSError as error:
        why = error.strerror or error
        raise InvalidInput(f"Cannot listen on {host}, port {port}: {why}. Choose another --port or --host.") from error
