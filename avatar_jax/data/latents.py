"""Encoded clips on disk: ArrayRecord shards of latents and sound, and the training windows cut from them.

A record holds one clip of one identity: latents [1 + 3n, h, w, C] whose first is the reference image (also the VAE's
first frame, as in a stream), and of the 12n video frames that follow it log-mel features [12n, audio_width], or those
of an ear with layers [12n, layers, audio_width], and driving signals ("signal.<name>", [12n, width], deviations from
rest). A clip with a twin holds what differs in it under "twin.". Where the model reads text there are also the
rows of a caption ("text", [n, text_width]).
"""

import contextlib
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import grain
import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from safetensors.numpy import load, save
from scipy.ndimage import maximum_filter1d

from avatar_jax.core.config import TrainingConfig
from avatar_jax.io.errors import InputError

Record = dict[str, np.ndarray]
Batch = dict[str, Any]
SIGNAL = "signal."  # prefix of a signal's name in a record
TWIN = "twin."  # prefix of what the twin of a clip has instead
PERFORMED = "performed"  # whether a clip's signals move through their range, and are to be shown
HUSHED = 0.5  # share of windows whose pauses become digital silence
RESTED = 4  # video frames before and after, in which the mouth rests too


def shard_path(folder: pathlib.Path, shard: int) -> pathlib.Path:
    """Where a shard lies."""
    return folder / f"clips-{shard:05d}.array_record"


def write_shard(path: pathlib.Path, records: Iterable[Record]) -> None:
    """Writes a shard whole: a killed writer leaves nothing under the final name. Raises InputError on a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    try:
        for record in records:
            writer.write(save({name: np.ascontiguousarray(value) for name, value in record.items()}))
        _close(writer, path)
    except BaseException:
        with contextlib.suppress(RuntimeError):
            writer.close()
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


def _close(writer: ArrayRecordWriter, path: pathlib.Path) -> None:
    """Ends a shard: what could not be written is found out here."""
    try:
        writer.close()
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be written, free some space and run again ({error})") from error


def read_shard(path: pathlib.Path) -> Iterator[Record]:
    """The records of a shard, in order."""
    source: Any = grain.sources.ArrayRecordDataSource([str(path)])
    for index in range(len(source)):
        yield load(source[index])


class _Window(grain.transforms.RandomMap):
    """Cuts a random run of blocks out of a clip.

    Before the clip's start the sound's left context is silence; where nobody knows its features, the first ones again.
    """

    def __init__(self, cfg: TrainingConfig, silence: np.ndarray | None, *, twins: bool):
        self._cfg, self._silence, self._twins = cfg, silence, twins

    def random_map(self, element: bytes, rng: np.random.Generator) -> Mapping[str, Any]:
        cfg, record = self._cfg, load(element)
        latents, sound = record["latent"], record["features"]
        length = cfg.stream.block_latents
        spare = len(latents) - 1 - cfg.window_latents
        first = int(rng.integers(spare // length + 1))
        context = cfg.stream.audio_context
        hushed, silence = (
            rng.random() < HUSHED,
            sound[0] if self._silence is None else self._silence.astype(sound.dtype),
        )
        if hushed and self._silence is not None:
            sound = np.where(pauses(record)[:, None], silence, sound)
        heard = np.concatenate([np.repeat(silence[None], context, 0), sound])
        heard = heard.reshape(len(heard), cfg.dit.audio_layers, -1)
        start, frames = first * cfg.block_frames, cfg.window_latents * cfg.vae.temporal_stride

        def moving(prefix: str) -> Batch:
            rows = {s.name: record[prefix + SIGNAL + s.name] for s in cfg.dit.signals}
            return {
                "latent": record[prefix + "latent"][1 + first * length :][: cfg.window_latents],
                "signals": {name: each[None, start : start + frames] for name, each in rows.items()},
            }

        window = moving("") | {
            "reference": latents[:1],
            "features": heard[None, start : start + context + frames],
            "performed": np.array([bool(record.get(PERFORMED, False))]),
        }
        twin = {"twin": moving(TWIN)} if self._twins and TWIN + "latent" in record else {}
        return window | twin | caption(record, cfg)


def caption(record: Record, cfg: TrainingConfig) -> dict[str, np.ndarray]:
    """A clip's text as every window has it, filled up with rows of zeros; empty where the model reads none."""
    if not cfg.dit.text_width:
        return {}
    missing = cfg.dit.text_tokens - len(record["text"])
    return {"text": np.pad(record["text"], ((0, missing), (0, 0)))}


def pauses(record: Record) -> np.ndarray:
    """Video frames in which a clip's mouth rests, and has rested and will rest a little, bool [T].

    Nobody speaks there, whatever the recording's noise: the sound may as well be digital silence. Where nobody knows
    the mouth there are none.
    """
    if SIGNAL + "mouth" not in record:
        return np.zeros(len(record["features"]), bool)
    return np.logical_not(maximum_filter1d(record[SIGNAL + "mouth"][:, 0] != 0.0, 2 * RESTED + 1))


def beside(batch: Batch) -> Batch:
    """Pairs of windows as one picture each, the second on the right, both speakers in it; B becomes B / 2."""
    axes = {"latent": 3, "reference": 3, "features": 1, "signals": 1, "performed": 1}

    def join(axis: int, rows: Any) -> Any:
        return jax.tree.map(lambda each: np.concatenate([each[::2], each[1::2]], axis), rows)

    wide = {name: join(axes[name], rows) for name, rows in batch.items() if name in axes}
    return wide | ({"twin": beside(batch["twin"])} if "twin" in batch else {})


def paired(batches: grain.MapDataset, every: int) -> grain.MapDataset:
    """Batches of which every so many hold pairs of pictures `beside` each other; 0: none do."""
    return batches.map_with_index(lambda i, given: given if (i + 1) % every else beside(given)) if every else batches


def _check(shard: str, cfg: TrainingConfig) -> None:
    """ValueError unless the shard's clips have the text and the signals that `cfg` wants."""
    source: Any = grain.sources.ArrayRecordDataSource([shard])
    record = load(source[0])
    if cfg.dit.text_width and "text" not in record:
        raise ValueError(f"{shard}: its clips hold no text, which this model reads; make them with train.prepare")
    for signal in cfg.dit.signals:
        found = record.get(SIGNAL + signal.name)
        if found is None or found.shape[1] != signal.width:
            what = f"no signal {signal.name!r}" if found is None else f"{found.shape[1]} numbers of {signal.name!r}"
            wanted = f"config.dit.signals wants {signal.width}; run train.latents again with another --workdir"
            raise ValueError(f"{shard}: its clips hold {what}, where {wanted}")


def weighted(text: str) -> dict[pathlib.Path, float]:
    """Folders with their weights as a command names them: "runs/a", or "runs/a=3,runs/b=1" (1 where none is said).

    Raises ValueError for a weight that is no positive number, or a folder named twice.
    """
    folders: dict[pathlib.Path, float] = {}
    for part in text.split(","):
        name, said, weight = part.strip().partition("=")
        try:
            folder, value = pathlib.Path(name), float(weight) if said else 1.0
        except ValueError as error:
            raise ValueError(f"--latents: {part!r} has a weight that is no number; write folder=3") from error
        if not name or folder in folders or not 0.0 < value < float("inf"):
            raise ValueError(f"--latents: {part!r} must be a folder named once, with a weight above 0")
        folders[folder] = value
    return folders


def _shuffled(folder: pathlib.Path, cfg: TrainingConfig) -> tuple[grain.MapDataset, bool]:
    """Endless shuffled records of a folder, and whether they have twins. Raises ValueError."""
    shards = sorted(str(path) for path in folder.glob("clips-*.array_record"))
    if not shards:
        raise ValueError(f"no encoded clips in {folder}; run train.latents with the same --workdir first")
    for shard in shards if cfg.dit.signals or cfg.dit.text_width else []:
        _check(shard, cfg)
    source: Any = grain.sources.ArrayRecordDataSource(shards)
    return grain.MapDataset.source(source).seed(cfg.data.seed).shuffle().repeat(), TWIN + "latent" in load(source[0])


def _mixed(parts: list[tuple[grain.MapDataset, float]]) -> tuple[grain.MapDataset, float]:
    """Datasets with their weights as one, with the sum of them."""
    (data, _), weights = parts[0], [weight for _, weight in parts]
    return data if len(parts) == 1 else grain.MapDataset.mix([data for data, _ in parts], weights), sum(weights)


def window_dataset(
    folder: pathlib.Path | Mapping[pathlib.Path, float],
    cfg: TrainingConfig,
    *,
    silence: np.ndarray | None,
    batch: int,
    twins: bool = False,
) -> grain.MapDataset:
    """Endless shuffled batches of windows: latent [B, F, h, w, C], reference [B, 1, ...], features [B, S, A, l, W].

    With them "signals", each of `cfg.dit.signals` by name, [B, S, 4F, width], "performed" [B, S], and where the model
    reads it "text" [B, text_tokens, text_width]. S speakers: one (`paired` makes two). Of several folders, each gives
    windows in proportion to its weight, and shuffles and repeats by itself.

    With `twins`, folders whose clips have them give batches of their own: half as many windows, and as many more under
    "twin", their latents and signals.

    Args:
      folder: where the shards are.
      cfg: the run.
      silence: features of digital silence [W], or None for an ear that has none.
      batch: windows of a batch.
      twins: whether to give twins.

    Raises:
      ValueError: no shards in a folder, or shards without that text or those signals.
    """
    weights = {folder: 1.0} if isinstance(folder, pathlib.Path) else folder
    alone, twinned = [], []
    for part, weight in weights.items():
        records, has_twins = _shuffled(part, cfg)
        (twinned if twins and has_twins else alone).append((records, weight))
    window = _Window(cfg, silence, twins=twins)
    sizes = ((alone, batch), (twinned, batch // 2))
    batches = [(_mixed(parts), size) for parts, size in sizes if parts]
    return _mixed([(data.random_map(window).batch(size), weight) for (data, weight), size in batches])[0]
