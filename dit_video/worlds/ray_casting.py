"""Ray casting: pictures of a maze from many camera poses at once, in NumPy.

As in Wolfenstein 3D, a picture has one ray a column. The first wall on a ray is found without a loop over steps: its
crossings with all grid lines of both directions are listed, and the nearest that is solid is taken.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int8, Int32, UInt8, UInt32

from dit_video.worlds.maze import COLOURS, DOOR, FREE, NUM_WALLS

# Half of the angle of view, as a tangent: 77 degrees in all.
_HALF_VIEW = 0.8
_TEXELS = 16
# Distance at which light is half.
_FADE = 6.0
_NEAR = 1e-4
_KEY_SIZE = 0.4
# Levels of light in the palette.
_LIGHTS = 64
# Numbers of textures after those of walls and doors.
_FLOOR, _CEILING = NUM_WALLS + len(COLOURS), NUM_WALLS + len(COLOURS) + 1
_NUM_TEXTURES = _CEILING + 1
# Poses that are rendered at once, so that what lies between stays in caches.
_AT_ONCE = 32

_RGB = {"red": (214, 48, 49), "green": (38, 190, 90), "blue": (45, 106, 227)}
_WALL_RGB = ((176, 92, 60), (128, 132, 140), (196, 168, 96), (104, 78, 140))


class Key(NamedTuple):
    """A key that lies in the maze: its colour, and the middle of its square."""

    colour: int
    x: float
    y: float


def render(
    cells: Int8[np.ndarray, "n n"], keys: list[Key], poses: Float32[np.ndarray, "N 3"], size: int
) -> UInt8[np.ndarray, "N size size 3"]:
    """Pictures of a maze.

    Args:
        keys: those that lie there.
        poses: x (columns), y (rows), angle in radians, from x towards y.
    """
    chunks = [_render(cells, keys, poses[at : at + _AT_ONCE], size) for at in range(0, len(poses), _AT_ONCE)]
    return np.concatenate(chunks) if chunks else np.zeros((0, size, size, 3), np.uint8)


def _render(cells: np.ndarray, keys: list[Key], poses: np.ndarray, size: int) -> UInt8[np.ndarray, "N size size 3"]:
    poses = poses.astype(np.float32)
    origin, angle = poses[:, :2], poses[:, 2]
    ahead = np.stack([np.cos(angle), np.sin(angle)], 1)
    side = np.stack([-ahead[:, 1], ahead[:, 0]], 1) * np.float32(_HALF_VIEW)
    across = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1)[None, :, None]
    # Not of unit length: distances along a ray are depths, so that walls are not bent.
    rays = ahead[:, None] + across * side[:, None]
    depth, kind, along, shaded = _first_walls(cells, origin, rays)
    texels = _floor_and_ceiling(origin, rays, size)
    on_wall, of_walls = _walls(depth, kind, along, shaded, size)
    colours = _PALETTE[np.where(on_wall, of_walls, texels)]
    picture = np.ascontiguousarray(colours.view(np.uint8).reshape(*colours.shape, 4)[..., :3])
    for key in keys:
        _draw_key(picture, key, origin, ahead, side, depth)
    return picture


def _first_walls(cells: np.ndarray, origin: np.ndarray, rays: np.ndarray):
    """Depth, kind, place along the wall in [0, 1) and whether it stands across x, of each ray's first wall [N W]."""
    num = len(cells)
    # Crossings with lines of x, and with those of y: [2 N W].
    origin = np.stack([origin, origin[:, ::-1]])[:, :, None]
    rays = np.stack([rays, rays[..., ::-1]])
    direction = rays[..., 0]
    direction = np.where(np.abs(direction) < _NEAR, np.float32(_NEAR), direction)
    forwards = direction > 0
    first = np.floor(origin[..., 0]) + forwards
    step = np.where(forwards, np.float32(1), np.float32(-1))
    lines = first[..., None] + step[..., None] * np.arange(num, dtype=np.float32)
    depth = (lines - origin[..., :1]) / direction[..., None]
    place = origin[..., 1:] + depth * rays[..., 1:]
    # What lies outside counts as the rim: its crossings are farther than that of the rim itself.
    behind = _within(lines.astype(np.int32) - ~forwards[..., None], num)
    beside = _within(place.astype(np.int32), num)
    axis = np.arange(2, dtype=np.int32)[:, None, None, None]
    found = np.stack([cells.T, cells]).ravel()[(axis * num + behind) * num + beside]
    hit = (found != FREE).argmax(-1) + np.arange(found[..., 0].size).reshape(found.shape[:-1]) * num
    (depth_x, depth_y), (kind_x, kind_y), (place_x, place_y) = (a.ravel()[hit] for a in (depth, found, place))
    across_x = depth_x < depth_y
    along = np.where(across_x, place_x, place_y)
    return np.minimum(depth_x, depth_y), np.where(across_x, kind_x, kind_y), along - np.floor(along), across_x


def _within(numbers: np.ndarray, num: int) -> np.ndarray:
    return np.minimum(np.maximum(numbers, 0), num - 1)


def _light(depth: np.ndarray) -> np.ndarray:
    return 1 / (1 + depth / np.float32(_FADE))


def _of_palette(light: np.ndarray, kind: np.ndarray | int) -> np.ndarray:
    """Number in the palette of the first texel of a texture in this light."""
    return ((light * (_LIGHTS - 1)).astype(np.int32) * _NUM_TEXTURES + kind) * _TEXELS**2


def _floor_and_ceiling(origin: np.ndarray, rays: np.ndarray, size: int) -> Int32[np.ndarray, "N size size"]:
    half = size // 2
    # A row below the middle shows the floor where its depth is this: the eye is half a wall high.
    depth = np.float32(size / (4 * _HALF_VIEW)) / (np.arange(half, dtype=np.float32) + 0.5)
    at = (origin[:, None, None] + depth[:, None, None] * rays[:, None]) * np.float32(_TEXELS)
    at = at.astype(np.int32) & (_TEXELS - 1)
    texels = at[..., 1] * _TEXELS + at[..., 0] + _of_palette(_light(depth), _FLOOR)[:, None]
    ceiling = texels[:, ::-1] + (_CEILING - _FLOOR) * _TEXELS**2
    return np.concatenate([ceiling, texels], axis=1)


def _walls(depth: np.ndarray, kind: np.ndarray, along: np.ndarray, shaded: np.ndarray, size: int):
    """Which pixels show a wall, and the number of its texel in the palette [N size W]."""
    height = np.float32(size / (2 * _HALF_VIEW)) / np.maximum(depth, np.float32(0.05))
    light = _light(depth) * np.where(shaded, np.float32(0.75), np.float32(1))
    texture = np.where(kind >= DOOR, kind - DOOR + NUM_WALLS, kind - 1)
    rows = np.arange(size, dtype=np.float32)[None, :, None] + np.float32(0.5 - size / 2)
    # From 0 at a wall's top to the number of texels at its foot.
    down = (rows / height[:, None] + np.float32(0.5)) * np.float32(_TEXELS)
    column = np.minimum((along * _TEXELS).astype(np.int32), _TEXELS - 1)
    first = _of_palette(light, texture) + column
    return (down >= 0) & (down < _TEXELS), first[:, None] + down.astype(np.int32) * _TEXELS


def _draw_key(picture, key: Key, origin, ahead, side, depth) -> None:
    """Draws a key as a picture that lies on the floor and always faces the camera, behind nearer walls."""
    size = picture.shape[1]
    to = np.array([key.x, key.y], np.float32) - origin
    far = (to * ahead).sum(1)
    across = (to * side).sum(1) / np.float32(_HALF_VIEW**2)
    for frame in np.flatnonzero((far > 0.15) & (np.abs(across) < far + 1)):
        a_square = size / (2 * _HALF_VIEW) / far[frame]
        width = _KEY_SIZE * a_square
        left = (across[frame] / far[frame] + 1) * size / 2 - width / 2
        top = size / 2 + a_square / 2 - width
        columns = np.arange(max(0, int(left)), min(size, int(np.ceil(left + width))))
        rows = np.arange(max(0, int(top)), min(size, int(np.ceil(top + width))))
        columns = columns[depth[frame, columns] > far[frame]]
        v, u = (((places + 0.5 - at) / width * _TEXELS).astype(int) for places, at in ((rows, top), (columns, left)))
        seen = _KEY_SHAPE[np.clip(v, 0, _TEXELS - 1)[:, None], np.clip(u, 0, _TEXELS - 1)[None]]
        r, c = np.nonzero(seen)
        colour = np.array(_RGB[COLOURS[key.colour]], np.float32) * (0.4 + 0.6 * _light(far[frame : frame + 1]))
        picture[frame, rows[r], columns[c]] = colour.astype(np.uint8)


def _textures() -> Float32[np.ndarray, "kinds 16 16 3"]:
    """Textures of walls, then of doors, floor and ceiling; the same in every maze."""
    rng = np.random.default_rng(20)
    v, u = np.mgrid[0:_TEXELS, 0:_TEXELS]
    shifted = (u + 4 * ((v // 4) % 2)) % 8
    patterns = (
        np.where((v % 4 == 0) | (shifted == 0), 0.55, 1.0),  # bricks
        np.where(((v // 8) + (u // 8)) % 2, 0.75, 1.0),  # slabs
        np.where(u % 4 == 0, 0.6, 1.0),  # boards
        np.where((u + v) % 8 < 2, 0.6, 1.0),  # diagonals
    )
    walls = [
        pattern[..., None] * np.array(colour) * (0.9 + 0.1 * rng.random((_TEXELS, _TEXELS, 1)))
        for pattern, colour in zip(patterns, _WALL_RGB, strict=True)
    ]
    frame = (u < 2) | (u >= _TEXELS - 2) | (v < 2)
    knob = (abs(u - 11) < 1) & (abs(v - 9) < 2)
    doors = [np.where((frame | knob)[..., None], 40.0, np.array(_RGB[colour], float)) for colour in COLOURS]
    squares = np.where(((v // 8) + (u // 8)) % 2, 0.65, 1.0)[..., None]
    return np.stack([*walls, *doors, squares * (96, 88, 80), squares * (70, 86, 110)]).astype(np.float32)


def _palette() -> UInt32[np.ndarray, "colours"]:
    """Every texel in every light: its red, green and blue in the bytes of a number."""
    lit = np.linspace(0, 1, _LIGHTS)[:, None, None, None, None] * _textures()
    four = np.zeros((*lit.shape[:-1], 4), np.uint8)
    four[..., :3] = lit.astype(np.uint8)
    return four.reshape(-1, 4).view(np.uint32)[:, 0]


def _key_shape() -> np.ndarray:
    """Which texels of the picture of a key are seen: a ring, a shaft, and two teeth."""
    v, u = np.mgrid[0:_TEXELS, 0:_TEXELS] + 0.5
    radius = np.hypot(v - 8, u - 4)
    ring = (radius < 3.6) & (radius > 1.4)
    shaft = (abs(v - 8) < 1.1) & (u > 7)
    teeth = (v > 8) & (v < 11.5) & ((abs(u - 15) < 1.1) | (abs(u - 12) < 1.1))
    return ring | shaft | teeth


_PALETTE = _palette()
_KEY_SHAPE = _key_shape()
