"""The line of a card for a paper: it says what decides the scale, and borrows no name that it has not earned."""

import pytest

from dit_video.evaluation.citation import latex, markdown, protocol_name
from dit_video.evaluation.i3d import I3DLogits
from dit_video.evaluation.protocol import PUBLISHED

STYLEGAN_V = {
    "content": "706dc7a3f34d",
    "num_clips": 2048,
    "num_frames": 16,
    "fps": 25.0,
    "stride": 1,
    "size": [256, 256],
    "crop": "centre",
    "features": "i3d-kinetics-400 logits",
    "resize": "half_pixel",
    "pairs": False,
}


def card(**changed):
    interval = {"low": 95.04, "high": 105.06, "level": 0.95}
    subject = {"step": 5000, "weights": "ema"}
    return {"metric": "FVD", "value": 100.0, "interval": interval, "protocol": STYLEGAN_V | changed, "subject": subject}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_clips", 2047), ("num_frames", 17), ("resize", "tf1"), ("stride", 2), ("stride", [1]), ("pairs", True),
        ("crop", "random"),        ("features", "mine"),
    ],
)  # fmt: skip
def test_a_published_name_is_earned_in_every_field(field, value):
    assert protocol_name(STYLEGAN_V) == "FVD16 with the settings of StyleGAN-V"
    assert protocol_name(STYLEGAN_V | {field: value}) is None
    assert protocol_name({name: v for name, v in STYLEGAN_V.items() if name != field}) is None
    assert markdown(card(**{field: value})).startswith("FVD = 100 ")


def test_every_published_protocol_is_known_by_its_fields_alone():
    assert {name: protocol_name(p.fields()) for name, p in PUBLISHED.items()} == {
        n: p.title for n, p in PUBLISHED.items()
    }
    assert len({p.title for p in PUBLISHED.values()}) == len(PUBLISHED)
    assert I3DLogits().protocol()["features"] == PUBLISHED["stylegan-v"].fields()["features"]


def test_a_line_says_value_interval_protocol_and_subject():
    line = latex(card())
    assert line.startswith(
        "FVD16 with the settings of StyleGAN-V = 100 [95.04, 105.1] (95 \\% interval, N = 2048, 16 frames of stride 1"
    )
    for said in (
        "25 frames a second",
        "256x256",
        r"half\_pixel resize",
        "real clips 706dc7a3",
        "ema weights of step 5000",
    ):
        assert said in line
    assert "\n" not in line


def test_too_few_clips_are_said_to_be():
    assert "N = 32, too few to quote" in markdown(card(num_clips=32))


def test_names_of_users_stay_text():
    hostile = "a_b%$x#{}\\input{/etc}\n<b>*[x](y)"
    line = latex(card(features=hostile))
    assert r"a\_b\%\$x\#\{\}\textbackslash{}input\{/etc\} \textless{}b\textgreater{}" in line
    assert r"\<b\>\*\[x\](y)" in markdown(card(features=hostile))
