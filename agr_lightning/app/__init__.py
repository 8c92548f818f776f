"""Starts the web page; Streamlit's settings are in .streamlit/config.toml, and the widgets in page.py."""

import logging
from pathlib import Path

from agr_lightning.inference.predictor import Predictor
from agr_lightning.messages import UserError, needs

_log = logging.getLogger(__name__)


def app(ckpt_path: str | None = None, port: int = 8501, address: str = "localhost", no_browser: bool = False) -> None:
    """Serves a page until Ctrl-C: drop photos on it or use the camera, see each face with age, gender and race.

    Photos stay in memory, on this machine, until the page is closed.

    Args:
        ckpt_path: an exported .onnx or .safetensors file, a checkpoint, a run folder, 'best' or 'last', or 'agr' or
            'small' for a network that is shipped with this project; null for 'agr'.
        port: to listen on.
        address: to listen on; 0.0.0.0 lets others in.
        no_browser: do not open a browser.
    """
    try:
        from starlette.formparsers import MultiPartParser
        from streamlit import net_util
        from streamlit.web import cli
    except ImportError:
        raise UserError(f"app {needs('streamlit', 'app')}.") from None
    # What is wrong with it is said here, and not on the page.
    Predictor.load(ckpt_path)
    # Streamlit would write uploads of more than a megabyte to disk, and ask a server for this machine's address.
    MultiPartParser.spool_max_size = 2**30
    net_util.get_external_ip = lambda: None
    _log.info(f"Page         http://{address}:{port} (Ctrl-C ends it)")
    options = [f"--server.address={address}", f"--server.port={port}", f"--server.headless={str(no_browser).lower()}"]
    cli.main(["run", str(Path(__file__).with_name("page.py")), *options, "--", *([ckpt_path] if ckpt_path else [])])
