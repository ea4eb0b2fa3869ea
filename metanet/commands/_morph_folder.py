"""How does a command read a morph's folder where no family knows the network? The plan is done again on the old one."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

from torch import Tensor, nn

from metanet.checkpoint import Architecture
from metanet.checkpoint.factory import FactoryArchitecture
from metanet.errors import CheckpointError, PlanError
from metanet.morph.folder import ARCHITECTURE, FORMAT, MANIFEST, open_folder, restore

__all__ = ["edited_architecture"]


class EditedArchitecture(FactoryArchitecture):
    """The architecture of an edited network: the old one, and the plan in the folder.

    Args:
        folder: of the morph.
        old: the architecture of the network that was edited.

    Raises:
        PlanError: if the plan is for another one.
    """

    def __init__(self, folder: Path, old: Architecture) -> None:
        inputs = old.example_inputs()
        made = restore(old.build().eval(), folder, inputs)

        def edited() -> tuple[nn.Module, tuple[Tensor, ...]]:
            return copy.deepcopy(made), inputs

        super().__init__(edited)
        object.__setattr__(self, "provenance", f"{old.provenance}, edited by the plan in {folder}")


@cache
def edited_architecture(folder: Path, old: Architecture | None) -> Architecture | None:
    """What a folder of a morph holds; nothing for any other path, and where the folder itself says what it holds.

    Args:
        folder: any path.
        old: the architecture of the old network where the user has named it; that in the folder otherwise.

    Raises:
        CheckpointError: if the folder is damaged, or does not say what was edited and the user does not either.
    """
    if not _is_morph(folder) or (old is None and (folder / ARCHITECTURE).is_file()):
        return None
    try:
        opened = open_folder(folder)
        shapes = {name: tuple(tensor.shape) for name, tensor in opened.state.items()}
        if old is not None and dict(old.shapes()) == shapes:
            return old  # the user has named the new network
        old = old or opened.source
        if old is None:
            raise CheckpointError(
                "holds an edited network of a class of the user's own", file=folder, hint="name the old one's --factory"
            )
        return EditedArchitecture(folder, old)
    except PlanError as error:
        raise CheckpointError(error.reason, file=folder, hint=error.hint) from None


def _is_morph(folder: Path) -> bool:
    from metanet.io import read_json

    if not (folder / MANIFEST).is_file():
        return False
    try:
        told = read_json(folder / MANIFEST)
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and told.get("format") == FORMAT
