"""A C2PA manifest in the written file: what was done to which source, signed with the user's certificate.

The library is c2pa-python, the extra `c2pa`. Nothing is fetched from a network.
"""

from __future__ import annotations

import datetime
import json
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from lipstream.engines.extras import needs
from lipstream.errors import OutputError, SettingsError
from lipstream.media.output_file import create_hidden, forget
from lipstream.media.xmp import DIGITAL_SOURCE_TYPE
from lipstream.settings import RuntimeSettings
from lipstream.version import __version__

CERTIFICATE_VARIABLE, KEY_VARIABLE = "LIPSTREAM_C2PA_CERTIFICATE", "LIPSTREAM_C2PA_KEY"
TEST = "test"
"""In place of a certificate's file: one is made on the spot, which nobody has a reason to trust."""

MEDIA_TYPES = {".mp4": "video/mp4", ".mov": "video/quicktime"}
_SOURCE_TYPES = MEDIA_TYPES | {".m4v": "video/x-m4v", ".avi": "video/avi"}
_UNKNOWN_TYPE = "application/octet-stream"
_NO_NETWORK = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
_TEST_OWNER = "lipstream TEST certificate - not trusted"
_TEST_DAYS = 30


@dataclass(frozen=True)
class Signing:
    """What a manifest is signed with: the chain in PEM, the signer's own certificate first; its key; the algorithm."""

    chain: bytes
    key: bytes = field(repr=False)
    algorithm: str


def signing_from(runtime: RuntimeSettings) -> Signing | None:
    """Return what the settings, or else the environment, say to sign with; None where they say nothing.

    Raises SettingsError: one of certificate and key is missing, cannot be read, is not PEM, or belongs to another.
    """
    certificate = runtime.c2pa_certificate or os.environ.get(CERTIFICATE_VARIABLE) or None
    key = runtime.c2pa_key or os.environ.get(KEY_VARIABLE) or None
    if runtime.no_c2pa or (certificate is None and key is None):
        return None
    needs("c2pa", "c2pa", "signing with C2PA")
    needs("cryptography", "c2pa", "signing with C2PA")
    if certificate is None:
        raise SettingsError("--c2pa-key: there is no certificate to it", fix="name it with --c2pa-certificate")
    if str(certificate) == TEST:
        return _test_signing()
    if key is None:
        raise SettingsError("--c2pa-certificate: its key is missing", fix="name it with --c2pa-key")
    return _read(Path(certificate), Path(key))


def check_signable(output: Path) -> None:
    """Raise OutputError where a file of this kind cannot hold a manifest."""
    if output.suffix.lower() not in MEDIA_TYPES:
        raise OutputError(
            f"a {output.suffix} file cannot hold a C2PA manifest", file=output, fix="name it .mp4 or .mov, or --no-c2pa"
        )


def sign(file: Path, output: Path, target: Path, signing: Signing, model: str, source: Path | None) -> None:
    """Replace a finished hidden file beside `target` by the same with a manifest.

    output: its name in errors and, without folders, in the manifest. source: the video that it was made of, which
    becomes an ingredient with its own manifest, if it has one; None leaves out everything about it. Raises OutputError.
    """
    import c2pa

    media_type = MEDIA_TYPES[output.suffix.lower()]
    signed = create_hidden(output, target)
    try:
        context = c2pa.Context.from_dict(_NO_NETWORK)
        with c2pa.Builder(_manifest(output.name, media_type, model, source is not None), context=context) as builder:
            if source is not None:
                ingredient = {"title": source.name, "relationship": "parentOf", "label": "source"}
                with source.open("rb") as stream:
                    kind = _SOURCE_TYPES.get(source.suffix.lower(), _UNKNOWN_TYPE)
                    builder.add_ingredient(json.dumps(ingredient), kind, stream)
            info = c2pa.C2paSignerInfo(signing.algorithm, signing.chain, signing.key, None)
            with c2pa.Signer.from_info(info) as signer, file.open("rb") as made, signed.open("w+b") as stream:
                builder.sign(signer, media_type, made, stream)
        signed.replace(file)
    except c2pa.C2paError as error:
        fix = "use a certificate for C2PA signing with its whole chain, or --no-c2pa"
        raise OutputError(f"cannot be signed ({' '.join(str(error).split())})", file=output, fix=fix) from error
    finally:
        signed.unlink(missing_ok=True)
        forget(signed)


def _manifest(title: str, media_type: str, model: str, has_source: bool) -> dict[str, Any]:
    made = {
        "digitalSourceType": DIGITAL_SOURCE_TYPE,
        "softwareAgent": {"name": "lipstream", "version": __version__},
        "description": f"Lip movements generated with the model {model}.",
    }
    actions: list[dict[str, Any]] = [{"action": "c2pa.created", **made}]
    if has_source:
        opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": ["source"]}}
        actions = [opened, {"action": "c2pa.edited", **made}]
    return {
        "claim_generator_info": [{"name": "lipstream", "version": __version__}],
        "title": title,
        "format": media_type,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
    }


def _read(certificate: Path, key: Path) -> Signing:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    chain, private = _content(certificate, "--c2pa-certificate"), _content(key, "--c2pa-key")
    try:
        own = x509.load_pem_x509_certificates(chain)[0].public_key()
    except ValueError as error:
        raise SettingsError("not a certificate in PEM", file=certificate, fix="name the chain as PEM") from error
    try:
        loaded = serialization.load_pem_private_key(private, None)
    except (ValueError, TypeError) as error:  # the second where a passphrase is missing
        fix = "name it as PEM without a passphrase"
        raise SettingsError("not a private key that can be read", file=key, fix=fix) from error
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if loaded.public_key().public_bytes(*form) != own.public_bytes(*form):
        fix = "put the signer's own certificate first in the chain"
        raise SettingsError(f"it is not the key of {certificate}", file=key, fix=fix)
    pkcs8 = loaded.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Signing(chain, pkcs8, _algorithm(loaded, key))


def _content(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{option}: cannot be read ({error.strerror})", file=path, fix="check the path") from error


def _algorithm(key: Any, file: Path) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in curves:
        return curves[key.curve.name]
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    raise SettingsError("C2PA does not sign with this kind of key", file=file, fix="use P-256, RSA or Ed25519")


@lru_cache(maxsize=1)
def _test_signing() -> Signing:
    """Return a certificate of an authority made for it; both say in their names that they are for tests."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509 import oid

    def name(text: str) -> x509.Name:
        parts = ((oid.NameOID.ORGANIZATION_NAME, _TEST_OWNER), (oid.NameOID.COMMON_NAME, text))
        return x509.Name([x509.NameAttribute(kind, value) for kind, value in parts])

    now = datetime.datetime.now(datetime.timezone.utc)
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def certificate(subject: str, public: ec.EllipticCurvePublicKey, *, is_authority: bool) -> bytes:
        usage = x509.KeyUsage(not is_authority, False, False, False, False, is_authority, is_authority, False, False)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("TEST authority"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=_TEST_DAYS))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        )
        if not is_authority:
            purposes = x509.ExtendedKeyUsage([oid.ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(purposes, critical=False)
        return builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    chain = certificate("TEST signer", key.public_key(), is_authority=False)
    chain += certificate("TEST authority", authority.public_key(), is_authority=True)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Signing(chain, private, "es256")
