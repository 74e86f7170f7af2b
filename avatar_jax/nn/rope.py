"""Three-axis rotary positions with interleaved pairs; phases are computed from positions, never from a table.

Angles of numpy positions are float64 on the host, so a stream's block ten million is as exact as its first: only
their sine and cosine enter the program. Channels split as in Wan: with K/2 pairs, rows and columns take K/2 // 3
pairs each and time the rest (live_avatar.md section 1.5).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Positions = jax.Array | np.ndarray


class Phase(NamedTuple):
    """Cosine and sine of every token's angles, float32 [S, K/2] or [B, S, K/2]."""

    cos: jax.Array | np.ndarray
    sin: jax.Array | np.ndarray


def pairs(head_size: int) -> tuple[int, int, int]:
    """Complex channels of time, rows and columns."""
    space = head_size // 2 // 3
    return head_size // 2 - 2 * space, space, space


def _angles(positions: Positions, channels: int, theta: float) -> Positions:
    """Position times theta^(-j / channels). positions: [...] -> [..., channels]."""
    frequency = theta ** (-np.arange(channels) / channels)
    if isinstance(positions, np.ndarray):
        return positions.astype(np.float64)[..., None] * frequency
    return positions[..., None] * jnp.asarray(frequency, jnp.float32)


def axis_phase(positions: Positions, channels: int, theta: float) -> Phase:
    """Phases along one axis, [...] -> [..., channels]; numpy for exact host phases, jax inside a program."""
    xp, angles = np if isinstance(positions, np.ndarray) else jnp, _angles(positions, channels, theta)
    return Phase(xp.cos(angles).astype(np.float32), xp.sin(angles).astype(np.float32))


def box(time: Phase, row: Phase, column: Phase) -> Phase:
    """Phases of the tokens of a box, frame-major, then row, then column.

    [..., F, a], [h, b] and [w, c] to [..., F h w, a + b + c]: each axis turns channels of its own.
    """

    def fill(time: Positions, row: Positions, column: Positions) -> Positions:
        xp = np if isinstance(time, np.ndarray) else jnp
        full = (*time.shape[:-1], len(row), len(column))
        parts = (time[..., None, None, :], row[:, None], column[None])
        spread = [xp.broadcast_to(part, (*full, part.shape[-1])) for part in parts]
        return xp.concatenate(spread, -1).reshape(*time.shape[:-2], np.prod(full[-3:]), -1)

    return Phase(*(fill(*sides) for sides in zip(time, row, column, strict=True)))


def phase_at(times: Positions, rows: np.ndarray, columns: np.ndarray, *, head_size: int, theta: float) -> Phase:
    """Phases of the tokens of a box.

    Args:
      times: latent-frame positions, [F] or [B, F]; numpy for exact host phases, jax inside a program.
      rows: row positions, [h].
      columns: column positions, [w].
      head_size: channels of a head.
      theta: base of the frequencies.
    """
    axes = zip((times, rows, columns), pairs(head_size), strict=True)
    return box(*(axis_phase(positions, channels, theta) for positions, channels in axes))


def grid_phase(times: Positions, grid: tuple[int, int], *, head_size: int, theta: float) -> Phase:
    """`phase_at` over whole frames of `grid` rows and columns."""
    return phase_at(times, np.arange(grid[0]), np.arange(grid[1]), head_size=head_size, theta=theta)


def join(*phases: Phase) -> Phase:
    """Phases of token sequences put one after the other; those without a batch are the same in all of it."""
    xp = np if all(isinstance(phase.cos, np.ndarray) for phase in phases) else jnp
    batch = np.broadcast_shapes(*(phase.cos.shape[:-2] for phase in phases))
    wide = [[xp.broadcast_to(side, (*batch, *side.shape[-2:])) for side in phase] for phase in phases]
    return Phase(*(xp.concatenate(side, -2) for side in zip(*wide, strict=True)))


def rotate(x: jax.Array, phase: Phase) -> jax.Array:
    """Rotates interleaved pairs (2i, 2i + 1) by each token's angles. x: [B, S, N, K] -> same, in x's dtype."""
    cos, sin = phase.cos[..., None, :], phase.sin[..., None, :]
    real, imaginary = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    turned = jnp.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], -1)
    return turned.reshape(x.shape).astype(x.dtype)
