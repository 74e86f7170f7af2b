"""The causal log-mel front end: 16 kHz sound to one feature vector a video frame, streamed or whole.

Every hop sees a Hann window that ENDS at the hop's last sample, with zeros before the recording starts, so no
feature ever waits for sound that has not arrived. The affine normalisation is fixed: there are no utterance
statistics, hence the streamed features equal the offline ones. With the default geometry: 400-sample windows
(25 ms), 160-sample hops (10 ms), 4 hops a video frame of 640 samples (40 ms).

Shapes use `A` audio (video) frames, `G` hops, `R` the tail carried between calls; leading batch axes are
allowed.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core.config import MelConfig

PEAK_LOG10 = 1.5  # log10 mel energy of full-scale speech (measured maximum of recorded speech: 1.0 to 1.5)
SILENCE_VALUE, PEAK_VALUE = -1.0, 1.5  # where digital silence and that peak land after the affine map


@flax.struct.dataclass
class MelState:
    """What the next call needs of the sound before it: the samples its first window reaches back to."""

    tail: jax.Array  # [..., R] float32, R = window_samples - hop_samples


def empty(cfg: MelConfig, batch: tuple[int, ...] = ()) -> MelState:
    """The state before the first sample: silence."""
    return MelState(tail=jnp.zeros((*batch, cfg.window_samples - cfg.hop_samples), jnp.float32))


@functools.lru_cache(maxsize=8)
def _filters(cfg: MelConfig) -> np.ndarray:
    """Slaney mel filters with unit area, [bins, mels] float32."""
    import librosa  # half a second to import, and only the first configuration pays

    bands = librosa.filters.mel(
        sr=cfg.audio_hz,
        n_fft=cfg.fft,
        n_mels=cfg.mels,
        fmin=cfg.low_hz,
        fmax=cfg.high_hz,
        htk=False,
        norm="slaney",
    )
    return np.ascontiguousarray(bands.T, np.float32)


@functools.lru_cache(maxsize=8)
def _window(length: int) -> np.ndarray:
    """Periodic Hann window, [length] float32."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


def _normalise(energy: jax.Array, cfg: MelConfig) -> jax.Array:
    """log10 energy above the floor, mapped so that silence is -1 and the loudest speech about 1.5."""
    lowest = float(np.log10(cfg.floor))
    scale = (PEAK_VALUE - SILENCE_VALUE) / (PEAK_LOG10 - lowest)
    return (jnp.log10(jnp.maximum(energy, cfg.floor)) - lowest) * scale + SILENCE_VALUE


def _frames(samples: int, cfg: MelConfig) -> int:
    if samples % cfg.samples_per_frame:
        raise ValueError(
            f"{samples} samples are not whole video frames: feed multiples of {cfg.samples_per_frame} samples"
        )
    return samples // cfg.samples_per_frame


def step(
    state: MelState,
    samples: jax.Array,  # [..., A * samples_per_frame]
    cfg: MelConfig,
) -> tuple[MelState, jax.Array]:  # [..., A, hops * mels]
    """Features of the next whole video frames, and the state after them.

    Raises ValueError if `samples` is not a whole number of video frames.
    """
    frames = _frames(samples.shape[-1], cfg)
    sound = jnp.concatenate([state.tail, jnp.asarray(samples, jnp.float32)], axis=-1)  # [..., R + samples]
    hops = samples.shape[-1] // cfg.hop_samples
    reach = np.arange(hops)[:, None] * cfg.hop_samples + np.arange(cfg.window_samples)
    windows = sound[..., reach] * _window(cfg.window_samples)  # [..., G, window]
    spectrum = jnp.fft.rfft(windows, n=cfg.fft, axis=-1)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)  # [..., G, bins]
    energy = jnp.matmul(power, _filters(cfg), precision=jax.lax.Precision.HIGHEST)  # [..., G, mels]
    features = _normalise(energy, cfg).reshape(*samples.shape[:-1], frames, cfg.features)
    return MelState(tail=sound[..., samples.shape[-1] :]), features


def whole(samples: jax.Array, cfg: MelConfig) -> jax.Array:  # [..., A * samples_per_frame] -> [..., A, hops * mels]
    """Features of a recording in one call; equals any split of it through `step`."""
    return step(empty(cfg, samples.shape[:-1]), samples, cfg)[1]


def silence(cfg: MelConfig) -> np.ndarray:
    """The features of one video frame of digital silence, [hops * mels] float32."""
    return np.full((cfg.features,), SILENCE_VALUE, np.float32)
