"""How the load client presents itself, and whom it trusts: headers and certificates.

The same for HTTP and gRPC, and for asking as for loading. Opens no connection. Whatever is wrong
is a `UserError`; what is wrong with a server's certificate is told by `tls_reason`.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deeprecsys.core import UserError

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_METADATA = re.compile(r"[0-9a-z_.-]+")  # of gRPC, which sends them in small letters
_OURS = ("content-length", "content-type", "transfer-encoding", "connection",
         "inference-header-content-length", "te", "expect")  # fmt: skip
# Where Debian and its like, and Red Hat's, keep in one file whom they trust.
_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
_SECRET = ("--key", "--header")
_CERTIFICATE = "its certificate is not trusted ({}): name who signed it with --ca-file"
_NAME = "its certificate is not for this name ({}): write the URL as the certificate says"
_DATE = "its certificate is out of date ({}): renew it, or set this machine's clock"
_PLAIN = "it speaks no TLS on this port: write http:// or grpc://"
NO_HANDSHAKE = "it does not answer a TLS handshake: if it speaks none on this port, write http://"


@dataclass(frozen=True, slots=True)
class Access:
    """headers: sent with every request, as written. ca_file: PEM certificates to trust instead of
    the system's; None: the system's."""

    headers: tuple[tuple[str, str], ...] = ()
    ca_file: str | None = None

    @classmethod
    def of(
        cls,
        scheme: str,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        key: str | None = None,
        ca_file: str | None = None,
    ) -> Access:
        """UserError for what cannot be sent or read."""
        pairs = [*(headers.items() if isinstance(headers, Mapping) else headers)]
        if key is not None:
            if not (key.isascii() and key.isprintable()):
                raise UserError("a key is printable ASCII, on one line")
            if any(name.lower() == "authorization" for name, _ in pairs):
                raise UserError("give --key or a header Authorization, not both")
            pairs.append(("Authorization", f"Bearer {key}"))
        for name, value in pairs:
            _check_header(scheme, name, value)
        access = cls(tuple(pairs), ca_file)
        if scheme in ("https", "grpcs"):
            access.context()
        elif ca_file is not None:
            raise UserError(f"--ca-file is for https:// and grpcs://, not {scheme}://")
        return access

    @property
    def host(self) -> str | None:
        """Instead of the URL's, as for a server of several names."""
        return next((value for name, value in self.headers if name.lower() == "host"), None)

    @property
    def fields(self) -> tuple[tuple[str, str], ...]:
        """The headers without the host."""
        return tuple(pair for pair in self.headers if pair[0].lower() != "host")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple((name.lower(), value) for name, value in self.fields)

    def context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:  # of TLS, too
            reason = "no certificates there" if isinstance(error, ssl.SSLError) else error.strerror
            raise UserError(
                f"cannot read --ca-file {self.ca_file}: {reason}; give a PEM file"
            ) from error
        # Python 3.13 refuses what its elders, curl and gRPC take: an own authority's certificates
        # seldom have all that RFC 5280 asks for.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.set_alpn_protocols(["http/1.1"])
        return context

    def roots(self) -> bytes | None:
        """PEM, for gRPC, which does not look where the system keeps its own. None: gRPC's own."""
        for file in (self.ca_file, ssl.get_default_verify_paths().cafile, *_BUNDLES):
            if file and Path(file).is_file():
                return Path(file).read_bytes()
        return None


def parse_header(text: str) -> tuple[str, str]:
    """Of `NAME:VALUE`."""
    name, colon, value = text.partition(":")
    if not colon:
        raise UserError(f"--header {text!r}: write NAME:VALUE")
    return name.strip(), value.strip()


def masked(arguments: Sequence[str]) -> list[str]:
    """A command line that may be shown: keys and values of headers are often secrets."""
    shown = list[str]()
    for before, word in zip(["", *arguments], arguments, strict=False):
        option, equals, value = word.partition("=")
        if option in _SECRET and equals:
            shown.append(f"{option}={_hidden(option, value)}")
        else:
            shown.append(_hidden(before, word) if before in _SECRET else word)
    return shown


def _hidden(option: str, value: str) -> str:
    return f"{value.partition(':')[0]}:…" if option == "--header" else "…"


def tls_reason(error: ssl.SSLError) -> str:
    """What is wrong with a server's certificate, or with TLS at all, and how to mend it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return tls_trouble(error.verify_message) or _CERTIFICATE.format(error.verify_message)
    return tls_trouble(f"{error.reason} {error}") or f"TLS failed: {error.reason or error}"


def tls_trouble(text: str) -> str | None:
    """The same of a library's words; None if they are of no trouble with TLS."""
    if re.search("(host ?name|ip address) mismatch|hostname verification|peer name", text, re.I):
        return _NAME.format(text.strip(" .").split(": ")[-1])
    if found := re.search("[^:]*(has expired|not yet valid)", text):
        return _DATE.format(found[0].strip())
    if found := re.search("CERTIFICATE_VERIFY_FAILED:? ?([^:\n]*)", text):
        return _CERTIFICATE.format(found[1].strip() or "it cannot be verified")
    if re.search("WRONG_VERSION_NUMBER|HTTP_REQUEST|RECORD_LAYER_FAILURE", text):
        return _PLAIN
    return None


def _check_header(scheme: str, name: str, value: str) -> None:
    rule = _METADATA if scheme.startswith("grpc") else _TOKEN
    said = name.lower() if scheme.startswith("grpc") else name
    if not rule.fullmatch(said):
        raise UserError(f"{name!r} is no name of a header: write --header NAME:VALUE")
    if not (value.isascii() and value.isprintable()):
        raise UserError(f"header {name}: its value is printable ASCII, on one line")
    reserved = scheme.startswith("grpc") and (said.startswith("grpc-") or said.endswith("-bin"))
    if name.lower() in _OURS or reserved:
        raise UserError(f"header {name} is the client's own to write: leave it out")
