"""What `fit` says of a run before it starts."""

import logging
import platform

import lightning
import torch

from agr_lightning.module import AGRModule

_log = logging.getLogger(__name__)


class Announcement(lightning.Callback):
    """Says what is going to be trained, and warns of what will be slow."""

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, AGRModule)
        if pl_module.device.type == "cpu" and "16" in str(trainer.precision) and not _has_bfloat16_units():
            _log.warning(
                f"this CPU has no units for 16-bit floats: --trainer.precision {trainer.precision} is many times "
                "slower on it than 32-true."
            )
        parameters = sum(parameter.numel() for parameter in pl_module.network.parameters())
        _log.info(
            f"{pl_module.network_options['backbone']}: {parameters / 1e6:.2f} M parameters, "
            f"{pl_module.device.type} x {trainer.world_size}, precision {trainer.precision}"
        )
        if pl_module.teachers is not None:
            _log.info(f"learns from {', '.join(pl_module.hparams['teachers'])} beside the labels")


def _has_bfloat16_units() -> bool:
    """Whether this CPU multiplies bfloat16 numbers itself; where that cannot be asked, it is taken to."""
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return ask is None or platform.machine().lower() not in ("x86_64", "amd64") or bool(ask())
