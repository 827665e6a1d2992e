"""Tone mapping of HDR (PQ, HLG) and wide colours to BT.709 SDR, as a 3-D table for FFmpeg's lut3d filter.

Sources: PQ and HLG, ITU-R BT.2100-2 tables 4 and 5; roll-off of highlights, BT.2390-10 section 5.4.1 (EETF) on
max(R, G, B), so that hues stay; reference white at 203 cd/m2, BT.2408; display gamma 2.4, BT.1886.
"""

import enum
import functools

import numpy as np
from jaxtyping import Float, UInt8

Values = Float[np.ndarray, "*shape"]
RGB = Float[np.ndarray, "*shape 3"]

SDR_WHITE = 203.0
"""Luminance of SDR white in cd/m2 (BT.2408)."""
# Of a file that does not say how bright it was mastered; also what HLG is shown at (BT.2100 table 5).
USUAL_PEAK = 1000
# Points of an edge of the table; between them lut3d interpolates in tetrahedra.
_SIZE = 41
# What the table holds is linear light, negative where a colour lies outside of BT.709, coded so that it bends
# nowhere sharply (asinh); the last step, clipping and display gamma, is exact.
_BEND, _LEAST, _MOST = 0.3, -1.0, 1.15
_GAMMA = 2.4


class Transfer(enum.StrEnum):
    """Transfer function that a file names: SDR stands for all that displays of gamma 2.4 show as they are."""

    SDR = "SDR"
    PQ = "PQ"
    HLG = "HLG"


class Gamut(enum.StrEnum):
    """Primaries that differ visibly from those of BT.709."""

    BT709 = "BT.709"
    BT2020 = "BT.2020"
    DCI_P3 = "DCI-P3"
    DISPLAY_P3 = "Display P3"


# Chromaticities x, y of red, green, blue and white.
_CHROMATICITIES = {
    Gamut.BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), (0.3127, 0.3290)),
    Gamut.BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), (0.3127, 0.3290)),
    Gamut.DCI_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    Gamut.DISPLAY_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3127, 0.3290)),
}
_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
_HLG_A, _HLG_B, _HLG_C = 0.17883277, 0.28466892, 0.55991073


def pq_encoded(nits: np.ndarray | float | int) -> np.ndarray | np.floating:
    """PQ signal 0..1 of a luminance in cd/m2 (inverse EOTF of BT.2100)."""
    y = (np.maximum(nits, 0) / 10_000) ** _M1
    return ((_C1 + _C2 * y) / (1 + _C3 * y)) ** _M2


def pq_decoded(signal: np.ndarray) -> np.ndarray:
    """Luminance in cd/m2 of a PQ signal 0..1 (EOTF of BT.2100)."""
    v = signal ** (1 / _M2)
    return 10_000 * (np.maximum(v - _C1, 0) / (_C2 - _C3 * v)) ** (1 / _M1)


def hlg_decoded(signal: RGB) -> RGB:
    """Luminances in cd/m2 of HLG signals 0..1 on a display of 1000 cd/m2 (inverse OETF and OOTF of BT.2100)."""
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - _HLG_C) / _HLG_A) + _HLG_B) / 12)
    luminance = scene @ np.array([0.2627, 0.6780, 0.0593])
    return USUAL_PEAK * scene * luminance[..., None] ** 0.2


def rolled_off(nits: np.ndarray, peak: float | int) -> np.ndarray:
    """Luminances 0..peak compressed into 0..SDR_WHITE: kept below the knee, a Hermite spline above it (BT.2390)."""
    source = pq_encoded(peak)
    most = pq_encoded(SDR_WHITE) / source
    if most >= 1:
        return nits
    signal = np.minimum(pq_encoded(nits) / source, 1)
    knee = 1.5 * most - 0.5
    t = (signal - knee) / (1 - knee)
    t2, t3 = t**2, t**3
    spline = (2 * t3 - 3 * t2 + 1) * knee + (t3 - 2 * t2 + t) * (1 - knee) + (3 * t2 - 2 * t3) * most
    return pq_decoded(np.where(signal < knee, signal, spline) * source)


def to_linear(signal: RGB, transfer: Transfer, gamut: Gamut, peak: float | int) -> RGB:
    """Linear light in BT.709, SDR white at 1, of RGB signals 0..1 of another transfer function or gamut.

    Args:
        peak: of the file, in cd/m2; what is brighter becomes white.
    """
    if transfer is Transfer.SDR:
        linear = signal**_GAMMA
    else:
        nits = pq_decoded(signal) if transfer is Transfer.PQ else hlg_decoded(signal)
        brightest = nits.max(axis=-1, keepdims=True)
        linear = nits * (rolled_off(brightest, peak) / np.maximum(brightest, 1e-6)) / SDR_WHITE
    return linear @ _between(gamut, Gamut.BT709).T


def displayed(linear: Values) -> Values:
    """SDR signals 0..1, for a display of gamma 2.4, of linear light."""
    return np.clip(linear, 0, 1) ** (1 / _GAMMA)


def _between(source: Gamut, target: Gamut) -> Float[np.ndarray, "3 3"]:
    """Matrix of linear RGB from one gamut to another; white stays white."""
    return np.linalg.inv(_to_xyz(target)) @ _adapted(source, target) @ _to_xyz(source)


def _to_xyz(gamut: Gamut) -> Float[np.ndarray, "3 3"]:
    primaries = np.array([_xyz(*xy) for xy in _CHROMATICITIES[gamut]]).T
    return primaries[:, :3] * np.linalg.solve(primaries[:, :3], primaries[:, 3])


def _xyz(x: float, y: float) -> tuple[float, float, float]:
    return x / y, 1.0, (1 - x - y) / y


def _adapted(source: Gamut, target: Gamut) -> Float[np.ndarray, "3 3"]:
    """Chromatic adaptation from white to white (Bradford)."""
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    white, other = (bradford @ _xyz(*_CHROMATICITIES[gamut][3]) for gamut in (source, target))
    return np.linalg.inv(bradford) @ np.diag(other / white) @ bradford


def coded(linear: Values) -> Values:
    """Linear light as the table holds it, 0..1."""
    return np.clip((np.arcsinh(linear / _BEND) / np.arcsinh(1 / _BEND) - _LEAST) / (_MOST - _LEAST), 0, 1)


def decoded(values: Values) -> Values:
    """Inverse of `coded`."""
    return _BEND * np.sinh((values * (_MOST - _LEAST) + _LEAST) * np.arcsinh(1 / _BEND))


@functools.lru_cache(maxsize=4)
def cube(transfer: Transfer, gamut: Gamut, peak: float | int) -> bytes:
    """The content of a .cube file: `coded` light at the points of a lattice of signals, red fastest."""
    axis = np.linspace(0, 1, _SIZE)
    blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")
    signals = np.stack([red, green, blue], axis=-1).reshape(-1, 3)
    points = coded(to_linear(signals, transfer, gamut, peak))
    rows = "\n".join(f"{r:.6f} {g:.6f} {b:.6f}" for r, g, b in points.tolist())
    return f"LUT_3D_SIZE {_SIZE}\n{rows}\n".encode()


@functools.cache
def grey_levels() -> UInt8[np.ndarray, "65536"]:
    """Grey level 0..255 that is displayed for each value of 16 bits that the table gives."""
    return np.rint(255 * displayed(decoded(np.arange(65536) / 65535))).astype(np.uint8)
