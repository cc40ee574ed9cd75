"""Certificates of the tests' own: an authority, and what it signed."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Authority:
    folder: Path
    ca: str

    def signed(self, name):
        """Certificate and key, PEM: "good" for localhost, "other" for elsewhere.example."""
        return str(self.folder / f"{name}.pem"), str(self.folder / f"{name}.key")


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made with the openssl command, which is not here")
    folder = tmp_path_factory.mktemp("authority")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-days", "2", "-subj", "/CN=tests", "-keyout", "ca.key",
            "-out", "ca.pem")  # fmt: skip
    names = {"good": "DNS:localhost,IP:127.0.0.1", "other": "DNS:elsewhere.example"}
    for name, alternatives in names.items():
        (folder / "extension").write_text(f"subjectAltName={alternatives}\n")
        openssl("req", "-new", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key",
                "-out", "request")  # fmt: skip
        openssl("x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key",
                "-CAcreateserial", "-days", "2", "-extfile", "extension",
                "-out", f"{name}.pem")  # fmt: skip
    return Authority(folder, str(folder / "ca.pem"))
