"""Laws of tone mapping: the curves and matrices are those of the recommendations, the table holds what they say."""

import numpy as np
import pytest
from scipy.interpolate import CubicHermiteSpline

from dit_video.video import tone
from dit_video.video.tone import Gamut, Transfer

# Of colour-science 0.4.6: eotf_inverse_ST2084, eotf_BT2100_HLG (peak 1000 cd/m2, black 0), and matrix_RGB_to_RGB to
# BT.709 with its transform "Bradford".
PQ = {0: 0.0, 0.01: 0.021486, 1: 0.149946, 100: 0.508078, 203: 0.580689, 1000: 0.751827, 4000: 0.902572, 10_000: 1.0}
HLG = {
    (0.2, 0.4, 0.7): (7.378164, 29.512657, 114.060376),
    (0.9, 0.5, 0.1): (425.655077, 60.964188, 2.438568),
    (0.75, 0.75, 0.75): (203.152146,) * 3,
    (1.0, 1.0, 1.0): (1000.0,) * 3,
}
TO_BT709 = {
    Gamut.BT709: np.eye(3),
    Gamut.BT2020: [[1.660491, -0.587641, -0.07285], [-0.12455, 1.1329, -0.008349], [-0.018151, -0.100579, 1.11873]],
    Gamut.DCI_P3: [[1.157516, -0.154962, -0.002554], [-0.0415, 1.045568, -0.004068], [-0.01805, -0.078578, 1.096628]],
    Gamut.DISPLAY_P3: [[1.22494, -0.22494, 0], [-0.042057, 1.042057, 0], [-0.019638, -0.078636, 1.098274]],
}


def test_pq_and_hlg_are_those_of_bt2100():
    nits, signals = np.array(list(PQ), float), np.array(list(PQ.values()))
    np.testing.assert_allclose(tone.pq_encoded(nits), signals, atol=2e-6)
    np.testing.assert_allclose(tone.pq_decoded(tone.pq_encoded(nits)), nits, rtol=1e-9, atol=1e-9)
    assert tone.pq_encoded(-1.0) == tone.pq_encoded(0.0)
    assert tone.pq_decoded(np.zeros(1)) == 0
    np.testing.assert_allclose(tone.hlg_decoded(np.array(list(HLG))), list(HLG.values()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gamut", Gamut)
def test_matrices_between_gamuts_are_those_of_their_chromaticities(gamut):
    matrix = tone._between(gamut, Gamut.BT709)
    np.testing.assert_allclose(matrix, TO_BT709[gamut], atol=2e-6)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("peak", [400, 1000, 4000])
def test_highlights_follow_the_hermite_spline_of_bt2390(peak):
    """In PQ signals of which the peak is 1: slope 1 at the knee, 0 at the end, which is SDR white."""
    nits = np.geomspace(1, peak, 100)
    white = float(tone.pq_encoded(203) / tone.pq_encoded(peak))
    knee = 1.5 * white - 0.5
    spline = CubicHermiteSpline([knee, 1], [knee, white], [1, 0])
    signal = tone.pq_encoded(nits) / tone.pq_encoded(peak)
    expected = np.where(signal < knee, signal, spline(signal)) * tone.pq_encoded(peak)
    np.testing.assert_allclose(tone.rolled_off(nits, peak), tone.pq_decoded(expected), rtol=1e-9)
    assert tone.rolled_off(np.array([2.0 * peak]), peak)[0] == pytest.approx(203)


@pytest.mark.parametrize("peak", [100, 203])
def test_what_is_no_brighter_than_sdr_white_is_kept(peak):
    nits = np.linspace(0, peak, 5)
    np.testing.assert_array_equal(tone.rolled_off(nits, peak), nits)


def test_hdr_keeps_hues_and_white_is_one():
    """All three channels are scaled as the brightest is, in the gamut of the file."""
    nits = np.array([[800.0, 400.0, 40.0], [203.0, 203.0, 203.0], [0.0, 0.0, 0.0], [900.0, 900.0, 900.0]])
    scale = tone.rolled_off(nits.max(axis=1), 1000) / np.maximum(nits.max(axis=1), 1) / 203
    for gamut in Gamut:
        expected = (nits * scale[:, None]) @ np.array(TO_BT709[gamut]).T
        linear = tone.to_linear(tone.pq_encoded(nits), Transfer.PQ, gamut, 1000)
        np.testing.assert_allclose(linear, expected, atol=1e-5)
    grey = tone.to_linear(np.full((1, 3), 0.5), Transfer.SDR, Gamut.BT2020, 1000)
    np.testing.assert_allclose(grey, 0.5**2.4)
    faint = tone.to_linear(np.full((1, 3), tone.pq_encoded(1e-3)), Transfer.PQ, Gamut.BT709, 1000)
    np.testing.assert_allclose(faint, 1e-3 / 203, rtol=1e-6)


def test_light_is_coded_by_asinh_and_comes_back():
    linear = np.array([-0.5, -0.1, 0.0, 0.1, 0.5, 1.0])
    # (asinh(x / 0.3) / asinh(1 / 0.3) + 1) / 2.15
    expected = (np.arcsinh(linear / 0.3) / np.arcsinh(1 / 0.3) + 1) / 2.15
    np.testing.assert_allclose(tone.coded(linear), expected, rtol=1e-12)
    np.testing.assert_allclose(tone.decoded(tone.coded(linear)), linear, atol=1e-12)
    assert tone.coded(np.array([-5.0, 5.0])).tolist() == [0, 1]
    np.testing.assert_allclose(tone.displayed(np.array([-1, 0, 0.5, 1, 2])), [0, 0, 0.5 ** (1 / 2.4), 1, 1])


def test_grey_levels_come_back_from_sixteen_bits():
    levels = np.arange(256)
    values = np.rint(65535 * tone.coded((levels / 255) ** 2.4)).astype(int)
    kept = tone.grey_levels()
    assert (kept.shape, kept.dtype) == ((65536,), np.uint8)
    np.testing.assert_array_equal(kept[values][8:], levels[8:])
    assert np.abs(kept[values].astype(int) - levels).max() <= 3
    # Where the middle between two levels is, the next one begins.
    between = 65535 * tone.coded(((levels[50:250] + 0.5) / 255) ** 2.4)
    np.testing.assert_array_equal(kept[np.ceil(between).astype(int)], levels[51:251])
    np.testing.assert_array_equal(kept[np.floor(between).astype(int)], levels[50:250])


def test_the_table_is_a_cube_with_red_fastest():
    lines = tone.cube(Transfer.PQ, Gamut.BT2020, 1000).decode().splitlines()
    assert lines[0] == "LUT_3D_SIZE 41"
    assert len(lines) == 1 + 41**3
    for row, signal in {
        0: (0, 0, 0),
        20: (0.5, 0, 0),
        40: (1, 0, 0),
        40 * 41: (0, 1, 0),
        41**3 - 41: (0, 1, 1),
    }.items():
        expected = tone.coded(tone.to_linear(np.array(signal, float), Transfer.PQ, Gamut.BT2020, 1000))
        np.testing.assert_allclose(np.array(lines[1 + row].split(), float), expected, atol=1e-6)
