"""Starts the web page."""

import socket
import sys
from pathlib import Path

from agr_lightning.inference.predictor import Predictor
from agr_lightning.messages import UserError, needs

# Largest file that can be dropped on the page, 10^6 bytes.
_MAX_MEGABYTES = 25


def serve(named: str | None, address: str, port: int, browser: bool) -> None:
    """Serves the page until it is interrupted.

    Args:
        named: the network, see ``Predictor.load``.
        address: to listen on.
        port: likewise.
        browser: open one.

    Raises:
        UserError: when the network cannot be had, the port is taken, or Streamlit is not installed.
    """
    try:
        from starlette.formparsers import MultiPartParser
        from streamlit import net_util
        from streamlit.web import cli
    except ImportError:
        raise UserError(f"app {needs('streamlit', 'app')}.") from None
    if not 1 <= port <= 65535:
        raise UserError(f"--port {port} must be 1 to 65535.")
    _check_free(address, port)
    Predictor.load(named)  # what is wrong with it is said here, and not on the page
    options = {
        "server.address": address,
        "server.port": port,
        "server.headless": not browser,
        "server.maxUploadSize": _MAX_MEGABYTES,
        "server.fileWatcherType": "none",
        "server.showEmailPrompt": False,
        "browser.gatherUsageStats": False,
        "logger.hideWelcomeMessage": True,
        "client.toolbarMode": "viewer",
        "theme.base": "light",
    }
    # Streamlit would write larger uploads to disk, and ask a server for this machine's address.
    MultiPartParser.spool_max_size = (_MAX_MEGABYTES + 1) * 2**20
    net_util.get_external_ip = lambda: None
    print(f"The page is at http://{address}:{port} until Ctrl-C.", flush=True)
    page = Path(__file__).with_name("app.py")
    sys.argv = ["streamlit", "run", str(page), *(f"--{name}={_typed(value)}" for name, value in options.items())]
    sys.argv += ["--", *([] if named is None else [named])]
    cli.main()


def _check_free(address: str, port: int) -> None:
    try:
        with socket.create_server((address, port)):
            pass
    except OSError as error:
        raise UserError(
            f"--address {address} --port {port} cannot be listened on "
            f"({str(error.strerror).partition(' (')[0]}): choose another port."
        ) from None


def _typed(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
