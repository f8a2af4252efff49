"""Frames with transparency, composited on white as images are.

VP8 and VP9 store the alpha channel in a separate stream, which FFmpeg's own decoders ignore: hidden content would
become visible.
"""

from functools import cache
from typing import cast

import av
import numpy as np
from av.codec.context import CodecContext
from av.sidedata.sidedata import SideDataContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8
from PIL import Image

_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Google's decoders, which read the alpha channel."""


class NotShown(ValueError):  # noqa: N818 (`container` turns it into Unreadable)
    """The alpha channel of a stream cannot be read: `reason` is a key of `container.REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class Decoder:
    """Decodes the packets of a stream from the current position, with alpha if the container declares it."""

    def __init__(self, stream: VideoStream) -> None:
        self.stream = stream
        said = stream.metadata.get("alpha_mode") == "1"
        self.name = _DECODERS.get(stream.codec_context.codec.canonical_name) if said else None
        self.context: VideoCodecContext | None = None
        self.seen = False

    def __call__(self, packet: av.Packet) -> list[VideoFrame]:
        """The frames of a packet; an empty packet flushes the remaining ones.

        Raises:
            NotShown: if no decoder reads the alpha channel, or transparent frames are rotated by a display matrix.
        """
        if self.name is None:
            return cast(list[VideoFrame], packet.decode())
        if not self.seen:  # only the stream's own decoder gives the display matrix
            for frame in cast(list[VideoFrame], packet.decode()):
                self.seen = True
                beside = SideDataContainer(frame)  # type: ignore[call-arg]  # PyAV's stub has no constructor
                if len(beside) and "DISPLAYMATRIX" in beside:
                    raise NotShown("turned", f"by {frame.rotation} degrees")
        self.context = self.context or self._opened(self.name)
        return self.context.decode(packet if packet.size else None)

    def _opened(self, name: str) -> VideoCodecContext:
        try:
            context = cast(VideoCodecContext, CodecContext.create(name, "r"))
        except ValueError as error:
            raise NotShown("no decoder", f"{name}, which reads what is transparent") from error
        context.thread_type = "NONE"
        context.options = self.stream.codec_context.options
        return context


@cache
def has_alpha(pixels: str) -> bool:
    """Whether a pixel format has an alpha channel."""
    try:
        return pixels == "pal8" or any(part.is_alpha for part in av.VideoFormat(pixels).components)
    except ValueError:  # a format without a name
        return False


def on_white(picture: UInt8[np.ndarray, "H W 4"]) -> UInt8[np.ndarray, "H W 3"]:
    """Composite on white as Pillow does."""
    alpha = picture[..., 3]
    if alpha.min(initial=255) == 255:
        return picture[..., :3]
    image = Image.fromarray(np.ascontiguousarray(picture), "RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))
