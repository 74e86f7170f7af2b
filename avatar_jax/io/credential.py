"""C2PA content credentials of finished videos: signed metadata that says a model made them. Offline.

Needs c2pa-python (`pip install avatar_jax[provenance]`). Without a certificate of one's own a chain is made once, an
authority and a leaf below it, and kept where only its owner reads; readers call it valid but not trusted, as nobody
has vouched for it. A copy of the streams (`ffmpeg -c copy`) drops the credential: the watermark is what stays.
"""

import contextlib
import datetime
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avatar_jax import __version__
from avatar_jax.io.errors import InputError

MISSING = "c2pa-python is not installed; pip install 'avatar_jax[provenance]'"
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"  # IPTC's word for generated
YEARS, CHAIN, KEY = 10, "chain.pem", "key.pem"
UNTRUSTED = "signingCredential.untrusted"


def available() -> bool:
    """Whether videos can be signed here."""
    return importlib.util.find_spec("c2pa") is not None


def _library() -> Any:
    if not available():
        raise InputError(MISSING)
    import c2pa  # type: ignore[import-not-found]

    return c2pa


def _certificate(name: str, key: Any, issuer: Any, issuer_key: Any) -> Any:
    """An authority (without issuer), or a leaf that may sign content (C2PA 2.1, section 14.5.1)."""
    from cryptography import x509  # type: ignore[import-not-found]
    from cryptography.hazmat.primitives import hashes  # type: ignore[import-not-found]
    from cryptography.x509 import oid  # type: ignore[import-not-found]

    names = [(oid.NameOID.ORGANIZATION_NAME, "avatar_jax, self-made"), (oid.NameOID.COMMON_NAME, name)]
    subject = x509.Name([x509.NameAttribute(*pair) for pair in names])
    now, root = datetime.datetime.now(datetime.UTC), issuer is None
    uses = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    uses += ["key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]
    granted = {"key_cert_sign", "crl_sign"} if root else {"digital_signature"}
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject if root else issuer.subject)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=365 * YEARS))
    builder = builder.add_extension(x509.BasicConstraints(ca=root, path_length=None), critical=True)
    builder = builder.add_extension(x509.KeyUsage(**{use: use in granted for use in uses}), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = builder.add_extension(authority, critical=False)
    if not root:
        mail = x509.ExtendedKeyUsage([oid.ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(mail, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def make_chain(folder: Path) -> tuple[Path, Path]:
    """A self-made certificate chain and its key (ES256) in a folder, made where there are none.

    Raises:
      InputError: c2pa-python is not installed, or the folder cannot be written.
    """
    chain, secret = folder / CHAIN, folder / KEY
    if chain.exists() and secret.exists():
        return chain, secret
    _library()
    from cryptography.hazmat.primitives import serialization  # type: ignore[import-not-found]
    from cryptography.hazmat.primitives.asymmetric import ec  # type: ignore[import-not-found]

    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _certificate("authority of this machine", root_key, None, root_key)
    leaf = _certificate("signer of this machine", key, root, root_key)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making") as made:  # 0700
            whole = Path(made) / folder.name
            whole.mkdir(mode=0o700)
            (whole / KEY).touch(mode=0o600)
            (whole / KEY).write_bytes(private)
            (whole / CHAIN).write_bytes(leaf.public_bytes(pem) + root.public_bytes(pem))
            os.rename(whole, folder)
    except OSError as error:
        if not chain.exists():  # else somebody else has made one at the same time
            raise InputError(f"{folder}: cannot keep a certificate ({error.strerror}); name one of your own") from error
    return chain, secret


def manifest(title: str, about: dict[str, Any]) -> dict[str, Any]:
    """What is signed: that a model made it, with what, and facts of ours. `about`: what JSON can hold."""
    created = {"action": "c2pa.created", "digitalSourceType": SOURCE}
    return {
        "claim_generator_info": [{"name": "avatar_jax", "version": __version__}],
        "title": title,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
            {"label": "org.avatar-jax.generated", "data": about},
        ],
    }


@contextlib.contextmanager
def _boundary(path: Path) -> Iterator[None]:
    """The library's dozen error types become InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: cannot be signed or read ({' '.join(str(error).split())})") from error


def sign(path: Path, chain: Path, key: Path, about: dict[str, Any]) -> None:
    """Signs a finished .mp4 in place, at once.

    Raises:
      InputError: c2pa-python is not installed, or certificate, key or video cannot be used.
    """
    c2pa = _library()
    with _boundary(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".signing") as folder:
        info = c2pa.C2paSignerInfo(b"es256", chain.read_bytes(), key.read_bytes(), None)
        signed = Path(folder) / "signed.mp4"
        said = json.dumps(manifest(path.name, about))
        with (
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder(said) as builder,
            open(path, "rb") as source,
            open(signed, "w+b") as target,
        ):
            builder.sign(signer, "video/mp4", source, target)
        os.replace(signed, path)


def verify(path: Path) -> dict[str, Any] | None:
    """What a video's credential says; None for one without.

    Returns:
      "state" ("Valid" or "Invalid"), "problems" (codes of the C2PA specification, but that nobody vouches for a
      self-made certificate), "trusted", and "about", what was signed of ours.

    Raises:
      InputError: c2pa-python is not installed, or the video cannot be read.
    """
    c2pa = _library()
    with _boundary(path), open(path, "rb") as file:
        reader = c2pa.Reader.try_create("video/mp4", file)
        if reader is None:
            return None
        with reader:
            store, state = json.loads(reader.json()), reader.get_validation_state()
    codes = [status.get("code", "") for status in store.get("validation_status", [])]
    active = store["manifests"][store["active_manifest"]]
    ours = [entry["data"] for entry in active.get("assertions", []) if entry["label"].startswith("org.avatar-jax")]
    return {
        "state": str(state),
        "problems": [code for code in codes if code != UNTRUSTED],
        "trusted": UNTRUSTED not in codes,
        "about": ours[0] if ours else None,
    }
