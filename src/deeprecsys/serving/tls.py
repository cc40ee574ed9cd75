"""Certificates: what the server shows, and by whom its clients' must be signed.

The same files for HTTP and gRPC. They can be read again while connections are open: those keep
what they have, new ones get the new. Knows no protocol.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deeprecsys.core import UserError

if TYPE_CHECKING:
    import grpc


@dataclass(slots=True)
class Certificates:
    """PEM files. client_ca: clients must show a certificate that one of these signed; None: they
    need none."""

    certificate: str
    private_key: str | None = None
    client_ca: str | None = None
    _context: ssl.SSLContext | None = field(default=None, init=False)
    _shown: tuple[bytes, bytes, bytes | None] = field(default=(b"", b"", None), init=False)
    _changed: bool = field(default=False, init=False)

    def context(self) -> ssl.SSLContext:
        """Of HTTP; the same one each time. UserError where the files are not what they should."""
        if self._context is None:
            self._context = self._made()
        return self._context

    def credentials(self) -> grpc.ServerCredentials:
        """Of gRPC, which asks for what is to be shown at each connection."""
        import grpc

        self.context()  # whose errors say what is wrong
        self._shown = self._files()

        def configuration() -> grpc.ServerCertificateConfiguration:
            certificate, private_key, client_ca = self._shown
            return grpc.ssl_server_certificate_configuration(
                [(private_key, certificate)], client_ca
            )

        def asked() -> grpc.ServerCertificateConfiguration | None:
            changed, self._changed = self._changed, False
            return configuration() if changed else None

        return grpc.dynamic_ssl_server_credentials(
            configuration(), asked, require_client_authentication=self.client_ca is not None
        )

    def reload(self) -> None:
        """Reads the files anew. UserError, and nothing is changed, where they do not belong
        together. Over HTTP whoever signed clients' certificates before is trusted until the server
        ends: OpenSSL's contexts forget nobody."""
        self._made()  # a context that takes a certificate without its key is of no use any more
        context = self.context()
        context.load_cert_chain(self.certificate, self.private_key)
        if self.client_ca is not None:
            context.load_verify_locations(self.client_ca)
        self._shown, self._changed = self._files(), True

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.private_key)
        except (OSError, ssl.SSLError) as error:
            raise UserError(f"cannot use the certificate {self.certificate}: {error}") from error
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ssl.SSLError) as error:
                why = "no certificates there" if isinstance(error, ssl.SSLError) else error.strerror
                raise UserError(
                    f"cannot read --tls-client-ca {self.client_ca}: {why}; give a PEM file"
                ) from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _files(self) -> tuple[bytes, bytes, bytes | None]:
        ca = Path(self.client_ca).read_bytes() if self.client_ca is not None else None
        certificate = Path(self.certificate).read_bytes()
        return certificate, Path(self.private_key or self.certificate).read_bytes(), ca


__all__ = ["Certificates"]
