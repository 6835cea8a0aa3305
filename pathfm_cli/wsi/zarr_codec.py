"""Tiles of slides as chunks of Zarr arrays: the codec `pathfm.tile`.

It is registered by the package's entry point, so any program with zarr-python 3 and this package
installed finds it. Its configuration names a codec of `codecs` and, for JPEG, holds what goes
before the data of each tile; the chunk itself is the tile as it lies in the file.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from typing import Any, Self

from zarr import registry
from zarr.abc import codec as zarr_codec
from zarr.core import array_spec, buffer

from pathfm_cli.wsi import codecs

NAME = "pathfm.tile"


@dataclasses.dataclass(frozen=True)
class TileCodec(zarr_codec.ArrayBytesCodec):
    """Turns one compressed tile into (height, width, 3) uint8; cannot encode."""

    is_fixed_size = False

    codec: str
    prefix: bytes = b""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read it from the metadata of an array.

        Raises:
            ValueError: a configuration of another shape.
        """
        given = data.get("configuration") or {}
        if data.get("name") != NAME or not {"codec"} <= set(given) <= {"codec", "prefix"}:
            raise ValueError(f"{data} is no configuration of {NAME}")
        return cls(given["codec"], base64.b64decode(given.get("prefix", ""), validate=True))

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` reads."""
        prefix = base64.b64encode(self.prefix).decode()
        configuration = {"codec": self.codec} | ({"prefix": prefix} if prefix else {})
        return {"name": NAME, "configuration": configuration}

    async def _decode_single(
        self, chunk_bytes: buffer.Buffer, chunk_spec: array_spec.ArraySpec
    ) -> buffer.NDBuffer:
        height, width, _ = chunk_spec.shape
        pixels = await asyncio.to_thread(
            codecs.decode, chunk_bytes.to_bytes(), self.codec, self.prefix, width, height
        )
        return chunk_spec.prototype.nd_buffer.from_numpy_array(pixels)

    async def _encode_single(
        self, chunk_array: buffer.NDBuffer, chunk_spec: array_spec.ArraySpec
    ) -> buffer.Buffer | None:
        raise ValueError(f"read-only: {NAME} cannot encode")

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: array_spec.ArraySpec) -> int:
        """Unknown: tiles are compressed."""
        raise NotImplementedError("the size of a compressed tile is not known beforehand")


registry.register_codec(NAME, TileCodec)
