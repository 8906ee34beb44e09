"""TLS on the way to the mail server, with real certificates and real handshakes.

The servers take no mail without TLS, so what arrives was encrypted.
"""

import ssl
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from aiosmtpd.smtp import AuthResult
from conftest import Api, MailServer, eventually, own_address

pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")


class Guard:
    """Knows the password, and keeps whatever was tried."""

    def __init__(self):
        self.tried = []

    def __call__(self, server, session, envelope, mechanism, data):
        self.tried.append(data.password)
        return AuthResult(success=data.password == b"secret", handled=False)


@pytest.fixture
def trusted(ca, tmp_path, monkeypatch):
    """The system trusts the certificates of our CA, and no others."""
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


@pytest.fixture
def guard():
    return Guard()


@pytest.fixture
def make_server(guard):
    """Starts mail servers: make_server(certificate, scheme, asks for a password)."""
    servers = []

    def make(certificate, scheme="smtp", password=False, host="127.0.0.1"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        settings = {"require_starttls": True, "tls_context": context}
        if scheme == "smtps":  # aiosmtpd offers the login only after STARTTLS, unless told
            settings = {"ssl_context": context, "auth_require_tls": False}
        if password:
            settings |= {"authenticator": guard, "auth_required": True}
        servers.append(MailServer(host=host, **settings))
        login = "max:secret@" if password else ""
        servers[-1].url = f"{scheme}://{login}{host}:{servers[-1].port}"
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def mail_max(make_app):
    """Has one mail to Max queued by an app with this mail server; returns the client."""

    def mail(server):
        api = Api(make_app(smtp=server.url, sender="tracker@example.com"))
        api.user("Max")
        api.project()
        api.ticket(assignees=[1])
        return api

    return mail


CERTIFICATES = {
    "good": lambda ca: ca.issue_cert("127.0.0.1"),
    "of an unknown CA": lambda ca: trustme.CA().issue_cert("127.0.0.1"),
    "for another name": lambda ca: ca.issue_cert("mail.example.com"),
    "expired": lambda ca: ca.issue_cert(
        "127.0.0.1", not_after=datetime.now(UTC) - timedelta(days=1)
    ),
}
BAD = [name for name in CERTIFICATES if name != "good"]


@pytest.mark.parametrize("certificate", CERTIFICATES)
def test_without_a_password_starttls_takes_any_certificate(
    ca, trusted, make_server, mail_max, certificate
):
    server = make_server(CERTIFICATES[certificate](ca))
    mail_max(server)
    eventually(lambda: server.to("max@example.com"))


@pytest.mark.parametrize("password", [False, True])
@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_mail_goes_to_a_server_whose_certificate_is_verified(
    ca, trusted, make_server, mail_max, guard, scheme, password
):
    server = make_server(CERTIFICATES["good"](ca), scheme, password)
    api = mail_max(server)
    eventually(lambda: api.emails(state="sent"))
    assert len(server.to("max@example.com")) == 1
    assert guard.tried == [b"secret"] * password


@pytest.mark.parametrize("certificate", BAD)
@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_a_password_is_kept_from_a_server_that_cannot_be_verified(
    ca, trusted, make_server, mail_max, guard, scheme, certificate
):
    server = make_server(CERTIFICATES[certificate](ca), scheme, password=True, host=own_address())
    api = mail_max(server)
    (email,) = eventually(lambda: [mail for mail in api.emails() if mail["error"]])
    assert email["state"] == "queued"
    assert "certificate" in email["error"]
    assert "certificate" in api.get("/health").json["mail"]["error"]
    assert (guard.tried, server.messages) == ([], [])


@pytest.mark.parametrize("certificate", BAD)
@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_to_this_machine_a_password_goes_under_any_certificate(
    ca, trusted, make_server, mail_max, guard, scheme, certificate
):
    server = make_server(CERTIFICATES[certificate](ca), scheme, password=True)
    api = mail_max(server)
    eventually(lambda: api.emails(state="sent"))
    assert len(server.to("max@example.com")) == 1
    assert guard.tried == [b"secret"]


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_a_key_log_that_cannot_be_written_is_as_a_server_that_cannot_be_reached(
    ca, trusted, make_server, mail_max, guard, scheme, tmp_path, monkeypatch
):
    server = make_server(CERTIFICATES["good"](ca), scheme)
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "missing" / "keys"))
    api = mail_max(server)
    (email,) = eventually(lambda: [mail for mail in api.emails() if mail["error"]])
    assert (email["state"], email["attempts"]) == ("queued", 1)
    assert "No such file" in email["error"]
    assert api.get("/health").json["mail"]["error"] == email["error"]
    monkeypatch.delenv("SSLKEYLOGFILE")
    api.post("/emails/1/retry", status=202)
    eventually(lambda: api.emails(state="sent"))
    assert len(server.to("max@example.com")) == 1
