"""Fail on the words that docs/glossary.md retires, in source, tests, scripts and pages.

python tools/check_vocabulary.py [FILE ...]   (without files: all that git tracks)
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

RETIRED = {
    r"mend(s|ed|ing)?": "fix",
    r"told": "set, given",
    r"hear(s|d|ing)?": "audio features, conditioned on audio",
    r"deaf": "unconditional",
    r"(re)?painted": "generated, repainted region",
    r"sought": "searched for",
    r"anew": "again",
    r"lanes?": "device stream",
    r"ladders?": "precision fallback",
    r"faults? (of ours|in lipstream)": "internal error",
    r"a sync('s)?": "a run",
}
ALLOWED = {"repainted"}
EXEMPT = {"docs/glossary.md", "tools/check_vocabulary.py", "CHANGELOG.md", "LICENSE", "NOTICE"}
SUFFIXES = {".py", ".md", ".toml", ".json", ".yml", ".yaml", ".cff", ".sh", ""}

_PATTERN = re.compile(rf"\b({'|'.join(RETIRED)})\b", re.IGNORECASE)


def main(arguments: list[str]) -> int:
    """Print each retired word with its place; return 1 if there is one."""
    found = 0
    for path in _paths(arguments):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for match in _PATTERN.finditer(line.replace("_", " ")):
                if match[0].lower() in ALLOWED:
                    continue
                found += 1
                print(f"{path}:{number}: {match[0]!r}: write {_replacement(match[0])}")
    return 1 if found else 0


def _paths(arguments: list[str]) -> list[Path]:
    names = arguments or subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True).stdout.split()
    return [
        Path(n) for n in names if n not in EXEMPT and Path(n).suffix in SUFFIXES and not n.startswith("tests/goldens")
    ]


def _replacement(word: str) -> str:
    return next(new for old, new in RETIRED.items() if re.fullmatch(old, word, re.IGNORECASE))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
