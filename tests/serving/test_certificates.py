"""TLS: certificates that clients must show, and new ones while the server runs."""

import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import grpc
import pytest

from deeprecsys.core import UserError
from deeprecsys.protocol.grpc_schema import SERVICE
from deeprecsys.serving.server import Address
from deeprecsys.serving.tls import Certificates
from serving_fixture import serving
from stub_model import StubModel, StubRuntime

pytestmark = pytest.mark.engine


class Authority:
    """Signs certificates, in a folder of its own."""

    def __init__(self, folder, name):
        if shutil.which("openssl") is None:
            pytest.skip("certificates are made with the openssl command, which is not here")
        self.folder, self.name = folder, name
        self._key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        self._openssl("req", "-x509", *self._key, "-days", "2", "-subj", f"/CN={name}",
                      "-keyout", f"{name}.key", "-out", f"{name}.pem")  # fmt: skip
        self.ca = str(folder / f"{name}.pem")

    def signed(self, who):
        """Certificate and key."""
        (self.folder / "extension").write_text("subjectAltName=IP:127.0.0.1\n")
        self._openssl("req", "-new", *self._key, "-subj", f"/CN={who}", "-keyout", f"{who}.key",
                      "-out", "request")  # fmt: skip
        self._openssl("x509", "-req", "-in", "request", "-CA", f"{self.name}.pem", "-CAkey",
                      f"{self.name}.key", "-CAcreateserial", "-days", "2", "-extfile", "extension",
                      "-out", f"{who}.pem")  # fmt: skip
        return str(self.folder / f"{who}.pem"), str(self.folder / f"{who}.key")

    def _openssl(self, *arguments):
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("authorities")


@pytest.fixture(scope="module")
def ours(folder):
    return Authority(folder, "ours")


@pytest.fixture(scope="module")
def others(folder):
    return Authority(folder, "others")


def connected(server, ours, pair=None):
    """Over TLS, with a certificate of the client's or none."""
    context = ssl.create_default_context(cafile=ours.ca)
    if pair is not None:
        context.load_cert_chain(*pair)
    raw = socket.create_connection(("127.0.0.1", server.http_port), 10)
    return context.wrap_socket(raw, server_hostname="127.0.0.1")


def ready(connection):
    """Is it told so?"""
    connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\n\r\n")
    return connection.recv(1000).startswith(b"HTTP/1.1 200")


def is_served(server, ours, pair=None):
    """In TLS 1.3 the client's side is done before the server has looked at its certificate."""
    try:
        with connected(server, ours, pair) as connection:
            return ready(connection)
    except OSError:  # of TLS, too
        return False


def grpc_is_served(server, ours, pair=None):
    read = [Path(name).read_bytes() for name in (ours.ca, *(pair or ()))]
    certificate, key = (read[1], read[2]) if pair else (None, None)
    credentials = grpc.ssl_channel_credentials(read[0], key, certificate)
    options = [("grpc.use_local_subchannel_pool", 1)]
    target = f"127.0.0.1:{server.grpc_port}"
    with grpc.secure_channel(target, credentials, options) as channel:
        try:
            call = channel.unary_unary(f"/{SERVICE}/ServerMetadata")
            return bool(call(b"", timeout=10))
        except grpc.RpcError:
            return False


def test_a_client_must_show_a_certificate_that_the_authority_signed(ours, others):
    certificate, key = ours.signed("server")
    address = Address("127.0.0.1", 0, 0, certificate, key, client_ca=ours.ca)
    with serving(StubModel(), StubRuntime(), address=address) as server:
        mine, foreign = ours.signed("client"), others.signed("stranger")
        for asked in (is_served, grpc_is_served):
            assert [asked(server, ours, pair) for pair in (mine, None, foreign, mine)] == [
                True, False, False, True,
            ]  # fmt: skip


def shown(connection):
    """Whose certificate the server shows."""
    return dict(pair[0] for pair in connection.getpeercert()["subject"])["commonName"]


def test_new_connections_are_shown_the_new_certificate(ours, folder):
    paths = [str(folder / "live.pem"), str(folder / "live.key")]

    def install(name):
        for source, path in zip(ours.signed(name), paths, strict=True):
            shutil.copy(source, path)

    install("first")
    address = Address("127.0.0.1", 0, 0, *paths)
    with (
        serving(StubModel(), StubRuntime(), address=address) as server,
        connected(server, ours) as old,
    ):
        assert (shown(old), ready(old)) == ("first", True)
        install("second")
        server.certificates.reload()
        assert ready(old)
        with connected(server, ours) as new:
            assert (shown(new), ready(new)) == ("second", True)
        assert grpc_shows(server, "second")
        # Half of a pair: the one before goes on.
        shutil.copy(ours.signed("third")[0], paths[0])
        with pytest.raises(UserError, match="cannot use the certificate"):
            server.certificates.reload()
        with connected(server, ours) as new:
            assert (shown(new), ready(new)) == ("second", True)
        assert grpc_shows(server, "second")
        install("fourth")
        server.certificates.reload()
        with connected(server, ours) as new:
            assert shown(new) == "fourth"
        assert ready(old)


def grpc_shows(server, name):
    """By its port, which asks for the protocol of HTTP/2."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    raw = socket.create_connection(("127.0.0.1", server.grpc_port), 10)
    with context.wrap_socket(raw, server_hostname="127.0.0.1") as connection:
        certificate = connection.getpeercert(binary_form=True)
    done = subprocess.run(["openssl", "x509", "-inform", "DER", "-noout", "-subject"],
                          input=certificate, capture_output=True, check=True)  # fmt: skip
    return done.stdout.decode().strip().endswith(name)


def test_files_that_are_none_are_said(ours, tmp_path):
    certificate, key = ours.signed("server")
    (tmp_path / "empty").touch()
    with pytest.raises(UserError, match=r"cannot read --tls-client-ca .*: no certificates there"):
        Certificates(certificate, key, str(tmp_path / "empty")).context()
    with pytest.raises(UserError, match=r"cannot read --tls-client-ca .*: No such file"):
        Certificates(certificate, key, str(tmp_path / "nowhere")).context()
    with pytest.raises(UserError, match="cannot use the certificate"):
        Certificates(certificate, ours.signed("client")[1]).context()
