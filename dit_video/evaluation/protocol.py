"""Protocols of FVD: the choices that decide the scale of a value, and those that have a published name.

Values measured with different ones cannot be compared.
"""

import dataclasses
import enum

USUAL_NUM_CLIPS = 2048
"""Clips of each set in most published values; FVD is biased, by an amount that depends on the number."""

USUAL_NUM_FRAMES = 16
"""Frames of a clip in most published values."""


class ResizeRule(enum.StrEnum):
    """Resize rule to 224x224: bilinear without antialiasing, with source coordinates as below.

    Logits differ between the two by far more than rounding, so the rule belongs to the protocol of an FVD.
    """

    TF1 = "tf1"
    """i * in/out: TF1 `resize_bilinear`, which the published FVD uses."""
    HALF_PIXEL = "half_pixel"
    """(i + 1/2) * in/out - 1/2: what the PyTorch ports use."""


I3D = "i3d-kinetics-400 logits"
"""The features of a published FVD, as cards name them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedProtocol:
    """What a published FVD fixes, of two sets of clips that are no pairs: I3D's logits, frames cropped to the centre.

    Attributes:
        title: what it is called on a card's line.
        stride: frames from one to the next in the real videos; in those judged it is 1, or as they were trained on.
        otherwise: where a value computed here still differs from the published program, for a card's notes.
    """

    title: str
    num_frames: int
    stride: int
    num_clips: int = USUAL_NUM_CLIPS
    resize: ResizeRule = ResizeRule.HALF_PIXEL
    otherwise: tuple[str, ...] = ()

    def fields(self) -> dict[str, object]:
        """Fields of a card's protocol, with the values that they have under this name."""
        return {
            "features": I3D,
            "resize": self.resize.value,
            "num_clips": self.num_clips,
            "num_frames": self.num_frames,
            "stride": self.stride,
            "crop": "centre",
            "pairs": False,
        }


_OF_STYLEGAN_V = (
    "covariances over N - 1 here, over N there: 0.05 % at N = 2048",
    "their real clips are training videos, one clip of each: --real DIR:train, where it is not",
)
PUBLISHED = {
    "stylegan-v": PublishedProtocol(
        title="FVD16 with the settings of StyleGAN-V", num_frames=16, stride=1, otherwise=_OF_STYLEGAN_V
    ),
    "stylegan-v-128": PublishedProtocol(
        title="FVD128 with the settings of StyleGAN-V", num_frames=128, stride=1, otherwise=_OF_STYLEGAN_V
    ),
    "stylegan-v-128-subsample8": PublishedProtocol(
        title="FVD of 128 frames subsampled by 8 with the settings of StyleGAN-V",
        num_frames=16,
        stride=8,
        otherwise=_OF_STYLEGAN_V,
    ),
    "latte": PublishedProtocol(
        title="FVD16 with the settings of Latte", num_frames=16, stride=3, otherwise=_OF_STYLEGAN_V
    ),
}
"""Published protocols by name.

`stylegan-v` and its kin: Skorokhodov et al., 2112.14683, `fvd2048_16f`, `fvd2048_128f`, `fvd2048_128f_subsample8f`;
`latte`: Ma et al., 2401.03048, whose program is that with every third frame of real videos.
"""
