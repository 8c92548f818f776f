"""What a network is: the one description that checkpoints, exported files and results.json carry. Needs no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import NoneType
from typing import Any, Literal, get_args

from agr_lightning.labels import TASKS, Task
from agr_lightning.messages import UserError

AgeLossName = Literal["l1", "mse", "smooth_l1", "dldl", "mean_variance", "coral"]
AgeReadout = Literal["mean", "median"]


@dataclass(frozen=True)
class NetworkConfig:
    """A network, by the options of ``AGRModule`` that decide its form; raises UserError for values that none can have.

    Attributes:
        backbone: name of the shared feature extractor.
        tasks: which heads there are, in the order of ``labels.TASKS``.
        age_loss: what the age head was made to learn, which decides its form.
        age_readout: how an age is read from a distribution or from thresholds; None for the mean.
        image_size: side of the images, pixels, 16 to 1024.
        dropout: probability of dropping a feature before the heads, in training.
        grayscale: whether the colour of the images is left out.
        tta_flip: whether evaluation averages the outputs for an image and its mirror image.
    """

    backbone: str = "agr_cnn"
    tasks: tuple[Task, ...] = TASKS
    age_loss: AgeLossName = "l1"
    age_readout: AgeReadout | None = None
    image_size: int = 128
    dropout: float = 0.2
    grayscale: bool = False
    tta_flip: bool = False

    def __post_init__(self) -> None:
        tasks = tuple(task for task in TASKS if task in self.tasks)
        if not tasks or len(tasks) < len(self.tasks):
            raise UserError(f"--model.tasks {list(self.tasks)}: expected any of {', '.join(TASKS)}, each once.")
        object.__setattr__(self, "tasks", tasks)
        for name, known in (("age_loss", get_args(AgeLossName)), ("age_readout", (None, *get_args(AgeReadout)))):
            if (value := getattr(self, name)) not in known:
                raise UserError(f"--model.{name} {str(value)[:40]}: expected any of {', '.join(map(str, known))}.")
        if not 16 <= self.image_size <= 1024:
            raise UserError(f"--data.image_size {self.image_size} must be 16 to 1024.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--model.dropout {self.dropout} must be at least 0 and below 1.")

    def replaced(self, options: Mapping[str, Any]) -> "NetworkConfig":
        """Its own values where those of the same names in ``options`` are None; the others are asked for."""
        asked = {name: options[name] for name in self.to_dict() if options[name] is not None}
        readout = self.age_readout if asked.get("age_loss", self.age_loss) == self.age_loss else None
        return replace(self, **{"age_readout": readout, **asked})  # of another head, which may have none

    @classmethod
    def from_dict(cls, stored: object) -> "NetworkConfig":
        """The description that ``to_dict`` stored; raises UserError when it is not one."""
        types: dict[str, tuple[type, ...]] = {name: (type(value),) for name, value in cls().to_dict().items()}
        types |= {"age_readout": (str, NoneType), "dropout": (float, int)}
        if not isinstance(stored, Mapping) or set(stored) != set(types):
            raise UserError("it does not describe a network of this version of the project.")
        for name, value in stored.items():
            # The length, because a message that holds a stranger's text should not fill the screen.
            if type(value) not in types[name] or len(str(value)) > 100:
                raise UserError(f"its {name} cannot be {str(value)[:40]!r}.")
        return cls(**stored)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and for checkpoints."""
        return {**asdict(self), "tasks": list(self.tasks)}
