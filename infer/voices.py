"""Which voice speaks and which model answers: the flags of every command that talks.

--voice=espeak                        the bundled voice; auto, if left out: where it is installed
--voice=https://api.example.com/v1    any OpenAI-compatible speech service
--speaker=de                          of eSpeak (en, de, en-us+f3, ...) or of the service
--chat=http://localhost:8000/v1 --chat_model=llama    an OpenAI-compatible model that answers

Keys of services are read from AVATAR_SPEECH_KEY and AVATAR_CHAT_KEY, which no command line shows.
"""

import os

from absl import flags

from avatar_jax.io.errors import InputError
from infer.talk import chat, voice

FLAGS = flags.FLAGS


def define() -> None:
    """The flags."""
    known = "espeak, off, or the address of an OpenAI-compatible speech service; auto: espeak where it is installed."
    flags.DEFINE_string("voice", "auto", f"What speaks: {known}")
    flags.DEFINE_string(
        "speaker", None, "One of the voice's: en, de, en-us+f3, ... of eSpeak, alloy, ... of a service."
    )
    flags.DEFINE_string("speech_model", "tts-1", "Model of the speech service.")
    flags.DEFINE_string("chat", None, "Address of an OpenAI-compatible model that answers what is typed.")
    flags.DEFINE_string("chat_model", None, "Its name there.")
    flags.DEFINE_string("system", "Answer in one or two short spoken sentences.", "What the model is told first.")


def make_voice() -> voice.Voice | None:
    """A voice of the flags' kind; None where there is none. Raises InputError."""
    if FLAGS.voice == "off" or (FLAGS.voice == "auto" and not voice.installed()):
        return None
    if FLAGS.voice in ("auto", "espeak"):
        return voice.Espeak(voice=FLAGS.speaker or "en")
    key = os.environ.get("AVATAR_SPEECH_KEY", "")
    return voice.Service(FLAGS.voice, key=key, model=FLAGS.speech_model, voice=FLAGS.speaker or "alloy")


def make_chat() -> chat.Chat | None:
    """A conversation with the flags' model, if one is named. Raises InputError."""
    if FLAGS.chat is None:
        return None
    if not FLAGS.chat_model:
        raise InputError("--chat_model is missing; name a model of the service")
    return chat.Chat(FLAGS.chat, model=FLAGS.chat_model, key=os.environ.get("AVATAR_CHAT_KEY", ""), system=FLAGS.system)
