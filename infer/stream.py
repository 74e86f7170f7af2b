"""A portrait and a recording to a talking video; with a text-to-video configuration, a prompt to a clip.

    python -m infer.stream --image=face.png --audio=speech.wav --output=talk.mp4
    python -m infer.stream --image=pair.png --audio=ann.wav --audio=bob.wav --speakers=left,right --output=talk.mp4
    python -m infer.stream --config=configs/tiny_driven.py --checkpoint=runs/tiny_driven/weights \\
        --image=face.png --drive=actor.mp4 --output=talk.mp4
    python -m infer.stream --config=configs/live_avatar_14b.py --checkpoint=weights/live_avatar \\
        --image=face.png --audio=speech.wav --prompt="She tells a story" --output=talk.mp4
    python -m infer.stream --config=configs/wan_t2v_1b3.py --checkpoint=weights/wan_t2v_1b3 \\
        --prompt="A cat on a boat" --output=cat.mp4

The live engine, fed from a file: sound is pushed block by block and frames are written as they come, in
memory that does not grow with the recording. `talk.partial.mp4` plays even after a kill; the finished video
gets its final name at once, with `talk.json` beside it (speed, lip sync and their conditions). Ctrl-C keeps
what was generated. The pixels say that they are generated (`infer.provenance`). Everything that can be wrong
with the input is checked before JAX is imported.
"""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from avatar_jax.core import check, fields
from avatar_jax.core import config as configs
from avatar_jax.io.audio import AudioStream, mix, open_audio, verify_audio
from avatar_jax.io.errors import InputError
from avatar_jax.io.video import CODECS, VideoWriter
from infer import clip, door, drive, hosts, order, play, provenance, summary

FLAGS = flags.FLAGS
SOUND_HZ = 48_000  # the video keeps the recording's full band; the model hears 16 kHz


@dataclasses.dataclass(frozen=True)
class Request:
    """A checked order: every file exists and can be read, the output can be written."""

    cfg: configs.Config
    audio: list[Path]  # one a speaker
    output: Path
    checkpoint: Path
    portrait: np.ndarray  # uint8 [H, W, 3]
    masks: np.ndarray | None  # [speakers, H, W]
    signals: list[order.Signals]  # of the first speakers
    drive: list[Path]  # their driving videos, where there are no signals
    prompt: str | None
    seconds: float
    overwrite: bool
    vcodec: str

    @property
    def json(self) -> Path:
        """Where the figures go."""
        return self.output.with_suffix(".json")


def define() -> None:
    """The flags."""
    door.define_config("configs/tiny_driven.py")
    flags.declare_key_flag("config")
    flags.DEFINE_string("image", None, "Portrait (PNG, JPEG or WebP); the embedded one if left out.")
    said = "Recording, or a video with sound; the embedded one if left out. Once for each speaker."
    flags.DEFINE_multi_string("audio", None, said)
    shown = "What of the picture each --audio drives: left or right half, or a mask file, white where the speaker is."
    flags.DEFINE_list("speakers", None, shown)
    driven = "Driving signals: an .npz of arrays [video frames, width], named as in config.dit.signals."
    flags.DEFINE_multi_string("signals", None, f"{driven} Once for each --audio, if at all.")
    watched = "Driving video of a drawn face, instead of --signals: what is seen in it and, without --audio, heard."
    flags.DEFINE_multi_string("drive", None, f"{watched} Once for each --audio, if at all.")
    flags.DEFINE_string("prompt", None, "What the video shows, for models that read text.")
    flags.DEFINE_string("negative_prompt", "", "What a clip from a prompt should not look like.")
    flags.DEFINE_string("output", None, "The video to write, an .mp4 name (required).")
    flags.DEFINE_bool("overwrite", False, "Whether an existing output may be replaced.")
    flags.DEFINE_string("checkpoint", None, "Folder with trained weights; the embedded ones if left out.")
    flags.DEFINE_enum("vcodec", "libx264", list(CODECS), "Video codec: H.264 with AAC, or VP9 with Opus.")
    flags.DEFINE_string("compile_cache", None, "Folder of compiled programs; '' for none.")
    hosts.define()
    provenance.define()


def check_request() -> Request:
    """Reads the flags and checks every file. Raises ValueError."""
    cfg = check.validate(FLAGS.config)
    hosts.check()
    provenance.check()
    output = order.check_output(FLAGS.output, overwrite=FLAGS.overwrite)
    image = FLAGS.image if FLAGS.image is not None else door.embedded("portrait.png")
    audio = [Path(path) for path in FLAGS.audio or FLAGS.drive or [door.embedded("speech.wav")]]
    for kind, paths in (("recording", audio), ("driving video", map(Path, FLAGS.drive or []))):
        if output.exists() and any(path.exists() and output.samefile(path) for path in paths):
            raise InputError(f"{FLAGS.output}: is the {kind} itself; choose another --output")
    cfg, portrait = order.check_portrait(image, cfg)
    checkpoint, prompt = order.check_checkpoint(FLAGS.checkpoint, cfg), order.check_prompt(FLAGS.prompt, cfg)
    masks = order.check_speakers(FLAGS.speakers, len(audio), cfg)
    if FLAGS.signals and FLAGS.drive:
        raise InputError("--drive: --signals drives the same speaker; give one of the two")
    signals = order.check_signals(FLAGS.signals or [], len(audio), cfg)
    driving = order.check_drive(FLAGS.drive or [], len(audio), cfg)
    return Request(
        cfg=cfg,
        audio=audio,
        output=output,
        checkpoint=checkpoint,
        portrait=portrait,
        masks=masks,
        signals=signals,
        drive=driving,
        prompt=prompt,
        seconds=max(map(verify_audio, audio)),
        overwrite=FLAGS.overwrite,
        vcodec=FLAGS.vcodec,
    )


def prepare(request: Request) -> tuple[play.Engine, float]:
    """Compiles the engine.

    Returns:
        the engine, and the seconds spent tracing, lowering and compiling (or reading the cache).
    """
    import jax

    compile_s = [0.0]

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        compile_s[0] += duration_secs if event.startswith("/jax/core/compile/") else 0.0

    jax.monitoring.register_event_duration_secs_listener(listen)
    from avatar_jax.stream import prompt, session

    session.devices_of(request.cfg)  # refused before anything is loaded
    cfg, folder, text = request.cfg, request.checkpoint, None
    if cfg.text and request.prompt:  # first: the text encoder is as large as all the rest, and not kept
        (text,) = prompt.encode(folder, [request.prompt], text=cfg.text, length=cfg.dit.text_tokens)
    hearing = session.load_hearing(cfg, folder)
    weights, said = session.load_weights(cfg, folder), {"text": text, "hearing": hearing}
    avatar = session.make_avatar(cfg, weights, request.portrait, masks=request.masks, **said)
    return session.Session(avatar), compile_s[0]


def run(
    engine: play.Engine,
    audio: Sequence[AudioStream],
    sound: Sequence[AudioStream],
    writer: VideoWriter,
    meter: summary.SyncMeter | None,
    progress: Any,
    *,
    drives: Sequence[drive.Drive],
    stamp: provenance.Stamp,
    cfg: configs.Config,
) -> summary.Timing:
    """Feeds recordings to the engine as if they were live and writes what comes out.

    Args:
        engine: the session.
        audio: each speaker's recording at the model's rate.
        sound: the same recordings at the writer's rate, heard together in the video.
        writer: takes frames and sound.
        meter: measures the lip sync, where it can.
        progress: a tqdm bar in seconds of video.
        drives: what else drives each speaker.
        stamp: what the frames go through on their way into the video; the meter sees them without.
        cfg: the run; a block of sound is pushed at a time.
    """
    timing, start = summary.Timing(), time.perf_counter()
    began = start
    for frames in play.frames(play.speak(engine, audio, drives, cfg)):
        timing.first_frame_s = timing.first_frame_s or time.perf_counter() - start
        under = mix([stream.read(len(frames) * SOUND_HZ // writer.fps) for stream in sound])
        writer.write(stamp(frames, writer.video_frames), under)
        timing.block_s.append(time.perf_counter() - began)
        if meter is not None:
            meter.push(frames, under)
        timing.video_frames += len(frames)
        progress.update(len(frames) / writer.fps)
        began = time.perf_counter()
    return timing


def open_drives(request: Request, opened: contextlib.ExitStack) -> list[drive.Drive]:
    """What drives the first speakers beside their sound."""
    seen = [opened.enter_context(drive.open_drive(path, request.cfg)) for path in request.drive]
    return seen or [drive.Drive(iter([rows])) for rows in request.signals]


def make_video(request: Request, engine: play.Engine) -> tuple[summary.Timing, dict[str, Any] | None, tuple[int, int]]:
    """Runs the engine over the recordings into the output.

    Returns:
        the timing, the lip-sync score, and the size shown (rows, columns).
    """
    from tqdm import tqdm

    cfg, style = request.cfg, "{l_bar}{bar}| {n:.1f}/{total:.1f} s [{elapsed}<{remaining}]"
    alone = len(request.audio) == 1  # whose lips would be measured?
    meter = summary.SyncMeter(fps=cfg.video.fps, audio_hz=SOUND_HZ) if cfg.video.drawn and alone else None
    with (
        contextlib.ExitStack() as opened,
        tqdm(total=request.seconds, disable=not sys.stderr.isatty(), bar_format=style, leave=False) as bar,
        VideoWriter(
            request.output,
            height=cfg.video.height,
            width=cfg.video.width,
            fps=cfg.video.fps,
            audio_hz=SOUND_HZ,
            overwrite=request.overwrite,
            vcodec=request.vcodec,
        ) as writer,
    ):
        audio, sound = (
            [opened.enter_context(open_audio(path, audio_hz=hz)) for path in request.audio]
            for hz in (cfg.sound.audio_hz, SOUND_HZ)
        )
        drives = open_drives(request, opened)
        try:
            stamp = provenance.make_stamp(*writer.size, cfg.block_frames)
            timing = run(engine, audio, sound, writer, meter, bar, drives=drives, stamp=stamp, cfg=cfg)
        except KeyboardInterrupt as error:
            if not writer.video_frames:
                raise
            request.json.unlink(missing_ok=True)  # it described the video that this one replaces
            kept = f"interrupted: {request.output} holds the first {writer.seconds:.1f} s"
            raise door.Interrupted(kept) from error
    return timing, meter.score() if meter else None, writer.shown


def follow(request: Request, engine: play.Engine) -> None:
    """What a process does that writes no video: the same ticks on its own devices."""
    cfg = request.cfg
    with contextlib.ExitStack() as opened:
        audio = [opened.enter_context(open_audio(path, audio_hz=cfg.sound.audio_hz)) for path in request.audio]
        for _ in play.frames(play.speak(engine, audio, open_drives(request, opened), cfg)):
            pass


def main() -> None:
    """Checks, generates, reports."""
    if isinstance(FLAGS.config, configs.ClipConfig):
        clip.main()
        return
    start = time.perf_counter()
    request = check_request()
    door.start_jax(FLAGS.compile_cache)
    with hosts.together():
        engine, compile_s = prepare(request)
        startup_s = time.perf_counter() - start
        if not hosts.first():
            follow(request, engine)
            return
        timing, sync, shown = make_video(request, engine)
    timing.startup_s, timing.compile_s = startup_s, compile_s
    figures = summary.report(timing, sync, request.cfg)
    figures["provenance"] = provenance.sign(request.output)
    figures["conditions"] = summary.conditions(request.cfg, request.checkpoint, shown, steps=request.cfg.stream.steps)
    figures["config"] = json.loads(fields.to_json(request.cfg))
    summary.write_json(request.json, figures)
    sys.stdout.write(summary.text(request.output, figures) + "\n")


if __name__ == "__main__":
    door.run(main, define)
