"""What a network is: the one description that checkpoints, exported files and results.json carry. Needs no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import NoneType
from typing import Any, Literal, get_args

from agr_lightning.labels import TASKS, Task, check_tasks
from agr_lightning.messages import UserError, did_you_mean

AgeLossName = Literal["l1", "mse", "smooth_l1", "dldl", "mean_variance", "coral"]
AgeReadout = Literal["mean", "median"]

# The types of the values of a stored description: anything else was not written by this project.
_TYPES: dict[str, tuple[type, ...]] = {
    "backbone": (str,),
    "tasks": (list,),
    "age_loss": (str,),
    "age_readout": (str, NoneType),
    "image_size": (int,),
    "dropout": (float, int),
    "grayscale": (bool,),
    "tta_flip": (bool,),
}


@dataclass(frozen=True)
class NetworkConfig:
    """A network, by the options of ``AGRModule`` that decide its form.

    Attributes:
        backbone: name of the shared feature extractor.
        tasks: which heads there are, in the order of ``labels.TASKS``.
        age_loss: what the age head was made to learn, which decides its form.
        age_readout: how an age is read from a distribution or from thresholds; None for the mean.
        image_size: side of the images, pixels, 16 to 1024.
        dropout: probability of dropping a feature before the heads, in training.
        grayscale: whether the colour of the images is left out.
        tta_flip: whether evaluation averages the outputs for an image and its mirror image.

    Raises:
        UserError: for values that no network can have.

    Example:
        >>> config = NetworkConfig(tasks=("race", "age"), age_loss="dldl")
        >>> config.tasks
        ('age', 'race')
        >>> NetworkConfig.from_dict(config.to_dict()) == config
        True
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
        if unknown := [task for task in self.tasks if task not in TASKS]:
            raise UserError(f"--model.tasks {str(unknown[0])[:40]}: expected any of {', '.join(TASKS)}.")
        object.__setattr__(self, "tasks", check_tasks(list(self.tasks)))
        if self.age_loss not in get_args(AgeLossName):
            known = get_args(AgeLossName)
            raise UserError(
                f"no age loss is called '{self.age_loss}'{did_you_mean(self.age_loss, known)}; known: "
                f"{', '.join(known)}."
            )
        if self.age_readout not in (None, *get_args(AgeReadout)):
            raise UserError(f"--model.age_readout {self.age_readout}: expected mean or median.")
        if not 16 <= self.image_size <= 1024:
            raise UserError(f"--data.image_size {self.image_size} must be 16 to 1024.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--model.dropout {self.dropout} must be at least 0 and below 1.")

    @classmethod
    def from_dict(cls, stored: object) -> "NetworkConfig":
        """The description that ``to_dict`` stored.

        Raises:
            UserError: when it is not one.
        """
        if not isinstance(stored, Mapping) or set(stored) != set(_TYPES):
            raise UserError("it does not describe a network of this version of the project.")
        for name, types in _TYPES.items():
            # The length, because a message that holds a stranger's text should not fill the screen.
            if type(stored[name]) not in types or len(str(stored[name])) > 100:
                raise UserError(f"its {name} cannot be {str(stored[name])[:40]!r}.")
        return cls(**{**stored, "tasks": tuple(stored["tasks"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and for checkpoints."""
        return {**asdict(self), "tasks": list(self.tasks)}

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Of the fields, which are options of ``AGRModule`` too."""
        return tuple(field.name for field in fields(cls))
