"""The right to use a raw image, for several VIO servers that each open it by themselves.

The locks of an image (`hostfile`) belong to an open file, so there is one for the lock alone, and every image that is
opened with it keeps a copy of that descriptor. The paths of one disk share it; everybody else, QEMU too, finds the
image in use until the last of them has closed it: nobody gets it while a server may still be at work on it. A copy can
be handed to another process.
"""

from __future__ import annotations

import os

from powervio.errors import LocalError
from powervio.storage.image import SECTOR, Image, open_image


class ImageShare:
    """A raw image, locked, to be opened any number of times."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        create_size: int | None = None,
        wait: float = 0.0,
    ) -> None:
        """See `open_image`. Raises `LocalError`, `ImageBusy`."""
        self._holder = open_image(path, read_only=read_only, create_size=create_size, wait=wait)

    @property
    def size(self) -> int:
        """Of the image when it was locked, in bytes."""
        return self._holder.size

    def open(self, *, direct: bool = False) -> Image:
        """Another open file of the image: see `open_shared`."""
        holder = self._holder
        return open_shared(holder.path, holder.fileno(), read_only=holder.read_only, direct=direct)

    def fileno(self) -> int:
        """The descriptor of the open file that has the lock."""
        return self._holder.fileno()

    def close(self) -> None:
        """Give it up; images that are still open keep the lock until they are closed. A second call does nothing."""
        self._holder.close()


def open_shared(path: str | os.PathLike[str], lock: int, *, read_only: bool, direct: bool) -> Image:
    """Another open file of an image that is locked by the open file `lock`, perhaps of another process.

    With `direct` the unit of the medium has to be a sector: a write of part of a unit reads the rest and writes it
    back, and would undo what another server wrote there in between. Raises `LocalError`.
    """
    image = open_image(path, read_only=read_only, direct=direct, share=lock)
    if direct and image.block_size > SECTOR and not image.read_only:
        unit = image.block_size
        image.close()
        raise LocalError(
            f"image {image.path}: direct I/O works in units of {unit} bytes there, and two VIO servers could"
            f" write parts of one at a time; several can serve it without direct"
        )
    return image
