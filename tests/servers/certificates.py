"""A certificate authority that exists for one test."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    file: Path
    key: Path
    authority: Path
    """Who signed it."""


class Authority:
    """Signs by the openssl program; skips the test where there is none."""

    def __init__(self, directory: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not on the PATH")
        directory.mkdir(parents=True)
        self._directory = directory
        self.file = directory / "ca.pem"
        _openssl("req", "-x509", *_NEW_KEY, directory / "ca.key", "-out", self.file, "-subj", "/CN=test CA")

    def sign(self, name: str) -> Certificate:
        """For 127.0.0.1, for servers and clients alike."""
        made = Certificate(
            file=self._directory / f"{name}.pem", key=self._directory / f"{name}.key", authority=self.file
        )
        request, extension = self._directory / f"{name}.csr", self._directory / "san"
        extension.write_text("subjectAltName=IP:127.0.0.1\n")
        _openssl("req", *_NEW_KEY, made.key, "-out", request, "-subj", f"/CN={name}")
        _openssl(
            *("x509", "-req", "-in", request, "-out", made.file, "-extfile", extension),
            *("-CA", self.file, "-CAkey", self._directory / "ca.key", "-CAcreateserial"),
        )
        return made


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout")


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=20)
