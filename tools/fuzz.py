"""Give damaged files to everything that reads files, and count what happens.

    python tools/fuzz.py CORPUS [--files 10000] [--seed 0]    mutated files, each judged in a process that may die
    python tools/fuzz.py CORPUS --atheris [LIBFUZZER OPTIONS]  guided by coverage; needs `pip install atheris`

CORPUS is a folder of small videos, recordings, pictures and checkpoints. A file is well treated if it is read, or
refused with an error of lipstream's own, within the time limit. Those that are not are kept in fuzz-findings/.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import logging
import multiprocessing
import random
import resource
import signal
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

LIMIT_S = 60
MOST_FRAMES = 40
LARGEST_BYTES = 4_000_000
CHECKPOINTS = {".pt", ".safetensors"}


def read_everything(path: Path) -> str:
    """Read a file in every way that its name suggests; return what became of it. Raises what is not lipstream's own."""
    from lipstream.errors import LipstreamError
    from lipstream.media.audio import probe_speech, read_mono
    from lipstream.media.loop import read_looped
    from lipstream.media.reader import probe

    outcomes = []
    if path.suffix in CHECKPOINTS:
        from lipstream.models.checkpoint import check_archive, read_tensors

        calls = [lambda: read_tensors(path, "state_dict"), lambda: check_archive(path)]
    else:
        calls = [
            lambda: probe(path),
            lambda: sum(frame.image.size for frame in itertools.islice(read_looped(path, MOST_FRAMES), MOST_FRAMES)),
            lambda: probe_speech(path),
            lambda: sum(len(block) for block in itertools.islice(read_mono(path), 5000)),
        ]
    for call in calls:
        try:
            call()
            outcomes.append("read")
        except LipstreamError as error:
            str(error)
            outcomes.append("refused")
    return "read" if "read" in outcomes else "refused"


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Return a copy of a file with a few of the damages that real files have, and some that only an attacker makes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not data:
            break
        place = rng.randrange(len(data)) if rng.random() < 0.6 else rng.randrange(min(len(data), 2048))
        kind = rng.randrange(6)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place : place + 4] = rng.choice((b"\xff" * 4, b"\x7f" + b"\xff" * 3, b"\0" * 4, b"\x80\0\0\0"))
        elif kind == 2:
            data[place : place + rng.randrange(1, 64)] = b""
        elif kind == 3:
            source = rng.randrange(len(data))
            data[place:place] = data[source : source + rng.randrange(1, 256)]
        elif kind == 4:
            data[place : place + 16] = rng.randbytes(16)
        else:
            del data[max(1, place) :]
    return bytes(data)


def work(pipe: Connection) -> None:
    """Read the files whose names come, until None does."""
    logging.disable(logging.CRITICAL)
    while (path := pipe.recv()) is not None:
        signal.alarm(LIMIT_S)
        try:
            outcome = read_everything(Path(path))
        except Exception as error:  # noqa: BLE001 - what must not happen is what is looked for
            outcome = f"{type(error).__name__}: {error}"[:300]
        signal.alarm(0)
        pipe.send((outcome, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


class Reader:
    """A process that reads files, begun again where it dies."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._begin()

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=work, args=(other,), daemon=True)
        self._process.start()
        other.close()

    def read(self, path: Path) -> str:
        self._pipe.send(str(path))
        try:
            outcome, peak_bytes = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            self._begin()
            return "timed out" if code == -signal.SIGALRM else f"died with {code}"
        self.peak_bytes = max(self.peak_bytes, peak_bytes)
        return str(outcome)


def run(corpus: list[Path], n_files: int, seed: int) -> int:
    """Read mutated files; print the outcomes. Returns how many were not well treated."""
    rng, reader = random.Random(seed), Reader()
    outcomes: collections.Counter[str] = collections.Counter()
    findings = Path("fuzz-findings")
    n_bad, slowest_s = 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for index in range(n_files):
            source = rng.choice(corpus)
            path = Path(folder) / f"{index}{source.suffix}"
            path.write_bytes(mutated(source.read_bytes(), rng))
            begun_s = time.monotonic()
            outcome = reader.read(path)
            slowest_s = max(slowest_s, time.monotonic() - begun_s)
            outcomes[outcome] += 1
            if outcome not in ("read", "refused"):
                n_bad += 1
                findings.mkdir(exist_ok=True)
                path.replace(findings / f"{source.stem}-{seed}-{index}{source.suffix}")
                print(f"{source.name} {index}: {outcome}", flush=True)
            else:
                path.unlink()
    print(f"{n_files} files, {n_bad} badly treated; slowest {slowest_s:.1f} s, peak {reader.peak_bytes / 1e6:.0f} MB")
    for outcome, n in outcomes.most_common(20):
        print(f"{n:7} {outcome}")
    return n_bad


def run_atheris(corpus: list[Path], options: list[str]) -> None:
    """Let atheris make the files: the first byte says of which kind one is."""
    import atheris

    with atheris.instrument_imports(include=["lipstream"]):
        import lipstream.media.audio
        import lipstream.media.loop
        import lipstream.media.reader
        import lipstream.models.checkpoint  # noqa: F401
    folder, seeds = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    suffixes = sorted({path.suffix for path in corpus})
    for path in corpus:
        (seeds / path.name).write_bytes(bytes([suffixes.index(path.suffix)]) + path.read_bytes())

    def target(data: bytes) -> None:
        if data:
            path = folder / f"input{suffixes[data[0] % len(suffixes)]}"
            path.write_bytes(data[1:])
            read_everything(path)

    logging.disable(logging.CRITICAL)
    atheris.Setup([sys.argv[0], *options, str(seeds)], target)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true")
    args, options = parser.parse_known_args()
    files = sorted(path for path in args.corpus.iterdir() if path.is_file() and path.stat().st_size < LARGEST_BYTES)
    if args.atheris:
        run_atheris(files, options)
        return 0
    return 1 if run(files, args.files, args.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
