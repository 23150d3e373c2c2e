"""Marks of origin: the comment, XMP and a C2PA manifest, in whole files that play as before."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import av
import numpy as np
import pytest

from helpers.cli import error_line, run
from helpers.media import number_of, numbered_image, write_numbered, write_wav
from lipstream import LipSync, RuntimeSettings, SyncSettings
from lipstream.bundled import sample
from lipstream.encoding_settings import EncodingSettings
from lipstream.errors import OutputError, SettingsError
from lipstream.media.audio import probe_speech
from lipstream.media.c2pa_manifest import CERTIFICATE_VARIABLE, KEY_VARIABLE, signing_from
from lipstream.media.origin import Origin
from lipstream.media.reader import probe, read_frames
from lipstream.media.writer import VideoWriter
from lipstream.media.xmp import embed_xmp
from lipstream.scale.segments import sync_in_segments

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"


def write(path: Path, origin: Origin, source: Path | None = None, n_frames: int = 30) -> Path:
    speech = probe_speech(write_wav(path.parent / "speech.wav", np.zeros(16000, np.int16), 16000))
    with VideoWriter(
        path,
        width=192,
        height=32,
        color=None,
        speech=speech,
        n_frames=n_frames,
        encoding=EncodingSettings(x264_preset="ultrafast"),
        source=source,
        origin=origin,
    ) as writer:
        for i in range(n_frames):
            writer.write(numbered_image(i))
    return path


def packet_in(path: Path) -> ElementTree.Element:
    content = path.read_bytes()
    assert content.count(b"<x:xmpmeta") == 1
    begin = content.index(b"<x:xmpmeta")
    return ElementTree.fromstring(content[begin : content.index(b"</x:xmpmeta>") + 12])


def top_level(path: Path) -> list[str]:
    content, at, kinds = path.read_bytes(), 0, []
    while at < len(content):
        size, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8].decode()
        if kind == "uuid":
            kind = "xmp" if content[at + 8 :].startswith(bytes.fromhex("be7acfcb97a942e89c71999491e3afac")) else "c2pa"
        kinds.append(kind)
        at += size
    assert at == len(content)
    return kinds


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "OUT.MOV"])
@pytest.mark.parametrize("has_tags", [False, True])
def test_xmp_says_how_the_picture_came_about(name: str, has_tags: bool, tmp_path: Path) -> None:
    source = write_numbered(tmp_path / "in.mp4", range(30), Fraction(1, 25)) if has_tags else None
    path = write(tmp_path / name, Origin("a <small> & new one"), source)
    xmp = packet_in(path)
    assert xmp.find(f".//{IPTC}DigitalSourceType").text == SOURCE_TYPE
    assert "a <small> & new one" in xmp.find(f".//{IPTC}AISystemUsed").text
    assert [number_of(frame.image) for frame in read_frames(path)] == [*range(30)]
    assert probe_speech(path).duration_s == pytest.approx(1.2, abs=0.05)
    kinds = top_level(path)
    assert kinds.index("moov") < kinds.index("mdat")
    assert ("xmp" in kinds) == (path.suffix == ".mp4")
    with av.open(str(path)) as container:
        assert "Made with AI" in container.metadata["comment"]


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="Debian's libimage-exiftool-perl is not installed")
@pytest.mark.parametrize("name", ["out.mp4", "out.mov"])
def test_exiftool_finds_the_xmp(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, Origin("tiny"))
    done = subprocess.run(
        ["exiftool", "-j", "-validate", "-warning", "-a", "-G1", path], capture_output=True, check=True
    )
    tags = json.loads(done.stdout)[0]
    everything = json.loads(subprocess.run(["exiftool", "-j", "-G1", path], capture_output=True, check=True).stdout)[0]
    assert everything["XMP-iptcExt:DigitalSourceType"] == SOURCE_TYPE
    assert "Made with AI" in everything["XMP-dc:Description"]
    assert tags["ExifTool:Validate"] == "OK", tags


def test_a_movie_without_user_data_gets_some(tmp_path: Path) -> None:
    path = tmp_path / "out.mov"
    with VideoWriter(
        path,
        width=192,
        height=32,
        color=None,
        speech=None,
        n_frames=3,
        encoding=EncodingSettings(x264_preset="ultrafast"),
    ) as writer:
        for i in range(3):
            writer.write(numbered_image(i))
    path.write_bytes(path.read_bytes().replace(b"udta", b"free"))
    embed_xmp(path, b'<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>', is_quicktime=True)
    assert packet_in(path).tag == "{adobe:ns:meta/}xmpmeta"
    assert [number_of(frame.image) for frame in read_frames(path)] == [0, 1, 2]


HAS_C2PA = all(find_spec(name) for name in ("c2pa", "cryptography"))
c2pa_installed = pytest.mark.skipif(not HAS_C2PA, reason="needs the extra c2pa")


def manifest_of(path: Path, chain: bytes) -> dict[str, object]:
    """Validate with the library's own reader, which trusts the last certificate of the chain alone."""
    import c2pa

    anchor = "-----BEGIN" + chain.decode().split("-----BEGIN")[-1]
    context = c2pa.Context.from_dict({"trust": {"trust_anchors": anchor}, "verify": {"verify_trust": True}})
    with c2pa.Reader(str(path), context=context) as reader:
        assert reader.get_validation_state() == "Trusted", reader.get_validation_results()
        return dict(reader.get_active_manifest())


def actions_of(manifest: dict[str, object]) -> list[dict[str, object]]:
    assertions = {one["label"]: one["data"] for one in manifest["assertions"]}
    return assertions["c2pa.actions.v2"]["actions"]


@c2pa_installed
@pytest.mark.parametrize("name", ["out.mp4", "out.mov"])
def test_the_librarys_reader_validates_the_manifest(name: str, tmp_path: Path) -> None:
    source = write_numbered(tmp_path / "filmed.mp4", range(30), Fraction(1, 25))
    signing = signing_from(RuntimeSettings(c2pa_certificate="test"))
    assert signing is not None
    path = write(tmp_path / name, Origin("tiny", source, signing), source)
    manifest = manifest_of(path, signing.chain)
    assert [action["action"] for action in actions_of(manifest)] == ["c2pa.opened", "c2pa.edited"]
    assert actions_of(manifest)[1]["digitalSourceType"] == SOURCE_TYPE
    assert [(one["title"], one["relationship"]) for one in manifest["ingredients"]] == [("filmed.mp4", "parentOf")]
    assert "TEST" in manifest["signature_info"]["issuer"]
    assert packet_in(path).find(f".//{IPTC}DigitalSourceType").text == SOURCE_TYPE
    assert [number_of(frame.image) for frame in read_frames(path)] == [*range(30)]
    kinds = top_level(path)
    assert kinds.index("c2pa") < kinds.index("moov") < kinds.index("mdat")
    assert sorted(child.name for child in tmp_path.iterdir()) == sorted([name, "filmed.mp4", "speech.wav"])
    assert probe(path).width == 192


@c2pa_installed
def test_a_signed_source_keeps_its_own_manifest(tmp_path: Path) -> None:
    signing = signing_from(RuntimeSettings(c2pa_certificate="test"))
    first = write(tmp_path / "first.mp4", Origin("tiny", None, signing))
    second = write(tmp_path / "second.mp4", Origin("tiny", first, signing), first)
    assert [action["action"] for action in actions_of(manifest_of(first, signing.chain))] == ["c2pa.created"]
    manifest = manifest_of(second, signing.chain)
    assert manifest["ingredients"][0]["active_manifest"] == manifest_of(first, signing.chain)["label"]


@c2pa_installed
def test_a_changed_file_no_longer_validates(tmp_path: Path) -> None:
    import c2pa

    path = write(tmp_path / "out.mp4", Origin("tiny", None, signing_from(RuntimeSettings(c2pa_certificate="test"))))
    content = bytearray(path.read_bytes())
    content[content.index(b"mdat") + 100] ^= 1
    path.write_bytes(content)
    with c2pa.Reader(str(path)) as reader:
        assert reader.get_validation_state() == "Invalid"


@c2pa_installed
def test_what_cannot_be_signed_leaves_nothing(tmp_path: Path) -> None:
    signing = signing_from(RuntimeSettings(c2pa_certificate="test"))
    own_only = replace(signing, chain=b"-----BEGIN CERTIFICATE-----\n\n-----END CERTIFICATE-----\n")
    with pytest.raises(OutputError, match=r"cannot be signed .* --no-c2pa"):
        write(tmp_path / "out.mp4", Origin("tiny", None, own_only))
    assert [child.name for child in tmp_path.iterdir()] == ["speech.wav"]


@c2pa_installed
def test_certificates_come_from_settings_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = signing_from(RuntimeSettings(c2pa_certificate="test"))
    certificate, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.write_bytes(made.chain)
    key.write_bytes(made.key)
    assert signing_from(RuntimeSettings()) is None
    assert signing_from(RuntimeSettings(c2pa_certificate=certificate, c2pa_key=key)) == made
    monkeypatch.setenv(CERTIFICATE_VARIABLE, str(certificate))
    with pytest.raises(SettingsError, match="its key is missing"):
        signing_from(RuntimeSettings())
    monkeypatch.setenv(KEY_VARIABLE, str(key))
    assert signing_from(RuntimeSettings()) == made
    assert signing_from(RuntimeSettings(no_c2pa=True)) is None
    assert "BEGIN" not in repr(made).replace(repr(made.chain), "")


@c2pa_installed
def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def pem(key: object) -> bytes:
        return key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    made = signing_from(RuntimeSettings(c2pa_certificate="test"))
    good, text, other = tmp_path / "chain.pem", tmp_path / "text.pem", tmp_path / "other.pem"
    good.write_bytes(made.chain)
    text.write_text("no certificate")
    other.write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    for certificate, key, message in (
        (None, other, "there is no certificate to it"),
        (tmp_path / "none.pem", other, r"none\.pem: --c2pa-certificate: cannot be read"),
        (text, other, r"text\.pem: not a certificate"),
        (good, text, r"text\.pem: not a private key"),
        (good, other, "is not the key of"),
    ):
        with pytest.raises(SettingsError, match=message) as caught:
            signing_from(RuntimeSettings(c2pa_certificate=certificate, c2pa_key=key))
        assert caught.value.exit_code == 2


@pytest.fixture(scope="module")
def tiny() -> Iterator[LipSync]:
    with LipSync.load("tiny", device="cpu", detector="mediapipe", threads=1) as sync:
        yield sync


@c2pa_installed
def test_runs_sign_what_they_write(tiny: LipSync, tmp_path: Path) -> None:
    """A plain run and one in segments; with --strip-metadata nothing is said about the source."""
    runtime = replace(tiny.runtime, c2pa_certificate="test")
    sync = LipSync(tiny.model, tiny.detector, runtime)
    chain = signing_from(runtime).chain
    speech = write_wav(tmp_path / "speech.wav", np.zeros(9600, np.int16), 16000)
    plain, joined, stripped = (tmp_path / f"{name}.mp4" for name in ("plain", "joined", "stripped"))
    sync(sample.VIDEO, speech, plain)
    sync_in_segments([sync], sample.VIDEO, speech, joined)
    sync(sample.VIDEO, speech, stripped, SyncSettings(strip_metadata=True))
    for path in (plain, joined):
        assert manifest_of(path, chain)["ingredients"][0]["title"] == sample.VIDEO.name
        assert packet_in(path).find(f".//{IPTC}DigitalSourceType").text == SOURCE_TYPE
    assert "ingredients" not in manifest_of(stripped, chain)
    with pytest.raises(OutputError, match=r"a \.mkv file cannot hold"):
        sync(sample.VIDEO, speech, tmp_path / "out.mkv")
    with pytest.raises(OutputError, match=r"a \.mkv file cannot hold"):
        sync_in_segments([sync], sample.VIDEO, speech, tmp_path / "out.mkv")


def test_the_command_line_refuses_before_it_works(tmp_path: Path) -> None:
    words = ("sync", sample.VIDEO, sample.SPEECH, "-o")
    if HAS_C2PA:
        line = error_line(run(*words, "out.mp4", "--c2pa-certificate", "none.pem", cwd=tmp_path), 2)
        assert "--c2pa-key" in line
        line = error_line(run(*words, "out.mkv", "--c2pa-certificate", "test", cwd=tmp_path), 6)
        assert "--no-c2pa" in line
    else:
        line = error_line(run(*words, "out.mp4", "--c2pa-certificate", "test", cwd=tmp_path), 2)
        assert "lipstream[c2pa]" in line
    assert list(tmp_path.iterdir()) == []
