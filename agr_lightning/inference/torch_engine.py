"""A network of torch behind a ``Predictor``."""

import numpy as np
import torch
from numpy.typing import NDArray

from agr_lightning.inference.answers import Arrays
from agr_lightning.messages import UserError
from agr_lightning.models.network import AGRNetwork


class TorchEngine:
    """Computes with torch, on a GPU where there is one.

    Args:
        network: in evaluation mode.
    """

    def __init__(self, network: AGRNetwork) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = network.to(self._device)

    def __call__(self, images: NDArray[np.uint8]) -> Arrays:
        """See ``Engine``; raises UserError for a batch that the device has no memory for."""
        try:
            with torch.inference_mode():
                return self._network.predict(torch.from_numpy(images).permute(0, 3, 1, 2).to(self._device)).arrays()
        except torch.OutOfMemoryError:
            raise UserError(f"the device has no memory for {len(images)} faces at once: use a smaller batch.") from None
