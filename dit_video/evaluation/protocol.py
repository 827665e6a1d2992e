"""Choices that belong to the protocol of an FVD: values measured with different ones cannot be compared."""

import enum

USUAL_NUM_CLIPS = 2048
"""Clips of each set in most published values; FVD is biased, by an amount that depends on the number."""


class ResizeRule(enum.StrEnum):
    """Resize rule to 224x224: bilinear without antialiasing, with source coordinates as below.

    Logits differ between the two by far more than rounding, so the rule belongs to the protocol of an FVD.
    """

    TF1 = "tf1"
    """i * in/out: TF1 `resize_bilinear`, which the published FVD uses."""
    HALF_PIXEL = "half_pixel"
    """(i + 1/2) * in/out - 1/2: what the PyTorch ports use."""
