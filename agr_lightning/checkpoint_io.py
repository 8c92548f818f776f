"""How Lightning writes checkpoints here."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from agr_lightning.files import atomic_write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all: a full disk leaves the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes a checkpoint under its name when all of it is on the disk."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(Path(path)) as file:
            file.write(content.getbuffer())
