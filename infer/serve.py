"""Live calls in a browser: a portrait that speaks what it hears.

    python -m infer.serve
    python -m infer.serve --config.mesh.streams=4 --host=0.0.0.0 --token=... --tls_cert=cert.pem --tls_key=key.pem

Prints the page's address. Everything is compiled before the server says that it is ready. On the loopback address a
token is made up where none is given; another address wants one. SIGTERM lets running calls end and exits with 0; a
second one exits at once. docs/api.md has the routes.
"""

import asyncio
import importlib.util
import ipaddress
import os
import secrets
import signal
import ssl
import sys
from pathlib import Path

from absl import flags, logging

from avatar_jax.core import check
from avatar_jax.io.errors import InputError
from infer import door, order, provenance, voices
from infer.live import push, tongue
from infer.live.call import Limits, Look
from infer.talk import voice

FLAGS = flags.FLAGS
LAST_BLOCKS = 2  # of what is under way are shown while the server drains


def define() -> None:
    """The flags."""
    door.define_config("configs/tiny_driven.py")
    flags.declare_key_flag("config")
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; one that others can reach needs --token.")
    flags.DEFINE_integer("port", 8000, "Port; 0: any free one.")
    flags.DEFINE_multi_string(
        "token", None, "Who may open sessions; also AVATAR_TOKEN. Several callers, several tokens."
    )
    flags.DEFINE_multi_string("origin", [], "Another site that may call, as https://example.org.")
    flags.DEFINE_bool("webrtc", False, "Peers may look on: opens UDP ports on all addresses of this machine.")
    flags.DEFINE_enum("vcodec", "libx264", ["libx264", "libvpx-vp9"], "What is sent: H.264 or VP9, both with Opus.")
    flags.DEFINE_multi_string("push", [], "Where sessions may also go, as NAME=rtmp://...; they ask for a NAME.")
    flags.DEFINE_string("tls_cert", None, "Certificate chain (PEM); microphones need TLS away from localhost.")
    flags.DEFINE_string("tls_key", None, "Its private key.")
    flags.DEFINE_multi_string("image", None, "Portrait to choose from; the embedded ones if left out.")
    flags.DEFINE_string("prompt", None, "What warm-up videos show, for models that read text.")
    flags.DEFINE_string("checkpoint", None, "Folder with trained weights; the embedded ones if left out.")
    flags.DEFINE_string("workdir", "runs/live", "Folder of recordings and the audit log; '' for neither.")
    flags.DEFINE_string("compile_cache", None, "Folder of compiled programs; '' for none.")
    provenance.define()
    voices.define()
    flags.DEFINE_float("drain_s", 20.0, "Seconds that SIGTERM leaves for running calls.")
    flags.DEFINE_float("session_ttl_s", 3600.0, "Seconds that a session's token lasts.")
    for name, text in (
        ("queue", "Calls that may wait for a seat."),
        ("queue_s", "Seconds each may wait."),
        ("jobs", "Jobs that may wait for a seat that nobody live wants."),
        ("resume_s", "Seconds that a lost connection's call is kept."),
        ("idle_s", "Seconds without sound that end a call."),
        ("call_s", "Seconds a call may last."),
        ("keep_s", "Seconds that recordings are kept."),
        ("opened_a_minute", "Calls that one token may open a minute."),
    ):
        default = getattr(Limits, name)
        (flags.DEFINE_integer if isinstance(default, int) else flags.DEFINE_float)(name, default, text)


def check_tokens() -> list[str]:
    """The tokens, one made up for the loopback address. Raises InputError."""
    given = list(FLAGS.token or []) + [one for one in [os.environ.get("AVATAR_TOKEN", "")] if one]
    if any(len(token) < 16 for token in given):
        raise InputError(
            "--token: is shorter than 16 characters; python -c 'import secrets; print(secrets.token_hex())'"
        )
    try:
        loopback = FLAGS.host == "localhost" or ipaddress.ip_address(FLAGS.host).is_loopback
    except ValueError as error:
        raise InputError(f"--host={FLAGS.host}: is no address; 0.0.0.0 is every one of this machine") from error
    if not loopback and not given:
        raise InputError(f"--host={FLAGS.host}: others can reach it, so --token is needed")
    return given or [secrets.token_urlsafe(24)]


def check_tls() -> ssl.SSLContext | None:
    """The certificate, if there is one. Raises InputError."""
    if not FLAGS.tls_cert and not FLAGS.tls_key:
        return None
    if not FLAGS.tls_cert or not FLAGS.tls_key:
        raise InputError("--tls_cert and --tls_key go together; give both")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(FLAGS.tls_cert, FLAGS.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"--tls_cert={FLAGS.tls_cert}: cannot be used ({error}); give a PEM chain and its key"
        ) from error
    return context


def check_voice(audio_hz: int) -> tongue.Talk | None:
    """What says typed text, if anything does. Raises InputError."""
    speaker, model = voices.make_voice(), voices.make_chat()
    if speaker is None:
        if model is not None:
            raise InputError(f"--chat={FLAGS.chat}: nothing would say the answers; name a --voice")
        return None
    if audio_hz != voice.AUDIO_HZ:
        raise InputError(f"--voice: speaks at {voice.AUDIO_HZ} Hz and the model hears {audio_hz}; --voice=off")
    speaker.close()
    return tongue.Talk(lambda: voices.make_voice() or speaker, (lambda: voices.make_chat() or model) if model else None)


def check_webrtc() -> None:
    """Raises InputError where peers are wanted and cannot be had."""
    if FLAGS.webrtc and FLAGS.vcodec != "libx264":
        raise InputError(f"--webrtc: peers are sent H.264, not --vcodec={FLAGS.vcodec}; leave one of them out")
    if FLAGS.webrtc and not importlib.util.find_spec("aiortc"):
        raise InputError("--webrtc: needs aiortc; pip install aiortc")


def limits(seats: int, ahead: int) -> Limits:
    """What callers may have."""
    named = ("queue", "queue_s", "jobs", "resume_s", "idle_s", "call_s", "keep_s", "opened_a_minute")
    given = {name: getattr(FLAGS, name) for name in named}
    return Limits(seats=seats, ahead=ahead, vcodec=FLAGS.vcodec, webrtc=FLAGS.webrtc, **given)


async def serve(desk, app, token: str, tls: ssl.SSLContext | None) -> None:
    """Listens until SIGTERM or Ctrl-C, then drains."""
    from aiohttp import web

    over, loop = asyncio.Event(), asyncio.get_running_loop()

    def stop() -> None:
        if over.is_set():
            os._exit(128 + signal.SIGTERM)  # asked twice
        desk.draining = True  # not ready from now on
        over.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    desk.start()
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2.0)
    await runner.setup()
    site = web.TCPSite(runner, FLAGS.host, FLAGS.port, ssl_context=tls)
    try:
        await site.start()
    except OSError as error:
        raise InputError(f"--port={FLAGS.port}: cannot be listened on ({error.strerror}); choose another") from error
    port = runner.addresses[0][1]
    sys.stdout.write(f"ready: {'https' if tls else 'http'}://{FLAGS.host}:{port}/?token={token}\n")
    sys.stdout.flush()
    await over.wait()
    logging.info("draining")
    await desk.drain(min(LAST_BLOCKS * desk.studio.form.block_s, FLAGS.drain_s / 2))
    await runner.cleanup()


def main() -> None:
    """Checks, compiles, serves."""
    cfg, tokens, tls = check.validate(FLAGS.config), check_tokens(), check_tls()
    provenance.check()
    talk = check_voice(cfg.sound.audio_hz)
    checkpoint = order.check_checkpoint(FLAGS.checkpoint, cfg)
    prompt = order.check_prompt(FLAGS.prompt, cfg)
    images = FLAGS.image or [door.embedded("portrait.png")]
    cfg, first = order.check_portrait(images[0], cfg)
    pictures = {Path(images[0]).stem: first}
    pictures |= {Path(image).stem: order.check_portrait(image, cfg)[1] for image in images[1:]}
    pushes = push.targets(FLAGS.push)
    check_webrtc()
    if pushes and FLAGS.vcodec != "libx264":
        raise InputError(f"--push: takes H.264 to its targets; leave --vcodec={FLAGS.vcodec} out")
    door.start_jax(FLAGS.compile_cache)

    from avatar_jax.stream.live import Live
    from infer.live import app as apps
    from infer.live import audit, desk, encode, keys, studio
    from infer.live.stage import Stage

    if cfg.video.drawn and not FLAGS.image:
        pictures = studio.drawn_portraits(cfg)
    house = studio.Studio(cfg, checkpoint)
    turn_s = max(house.rehearse(Look(name, picture, prompt)) for name, picture in list(pictures.items())[:2])
    door.say(f"warm: {cfg.mesh.streams} seats, {1e3 * turn_s:.0f} ms for {1e3 * house.form.block_s:.0f} ms of video")
    stage = Stage(Live(house.seats, patience_s=1e9, ahead=cfg.mesh.stages + 2), beat_s=house.beat_s(turn_s))
    folder = Path(FLAGS.workdir) if FLAGS.workdir else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    log = audit.Audit(folder / "audit.jsonl" if folder else None)
    log.note("started", **provenance.summary())
    calls = desk.Desk(
        house,
        stage,
        limits(cfg.mesh.streams, cfg.mesh.stages + 1),
        audit=log,
        folder=folder / "recordings" if folder else None,
        retouch=provenance.make_retouch(*encode.shown_size(house.form.height, house.form.width)),
        sign=provenance.sign,
        talk=talk,
    )
    calls.uploads.start()
    app = apps.make_app(
        calls, keys.Keys(tokens, ttl_s=FLAGS.session_ttl_s), studio.Gallery(pictures), origins=tuple(FLAGS.origin)
    )
    calls.pushes = pushes
    asyncio.run(serve(calls, app, tokens[0], tls))
    log.close()


if __name__ == "__main__":
    door.run(main, define)
