"""The mail against a real Postfix, on a loopback port and with a folder of its own."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from conftest import DAVE, MAX, Api, eventually, health, settled
from wire import free_port

POSTFIX = shutil.which("postfix", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

pytestmark = [
    pytest.mark.skipif(POSTFIX is None, reason="Postfix is not installed: apt-get install postfix"),
    pytest.mark.skipif(os.geteuid() != 0, reason="Postfix starts as root only"),
]

# Only what takes mail; what it took stays in the queue, as "hold" has it.
MASTER = """
127.0.0.1:{port} inet n - n - - smtpd
cleanup   unix n - n - 0 cleanup
qmgr      unix n - n 300 1 qmgr
rewrite   unix - - n - - trivial-rewrite
bounce    unix - - n - 0 bounce
defer     unix - - n - 0 bounce
trace     unix - - n - 0 bounce
verify    unix - - n - 1 verify
error     unix - - n - - error
retry     unix - - n - - error
proxymap  unix - - n - - proxymap
anvil     unix - - n - 1 anvil
postlog   unix-dgram n - n - 1 postlogd
"""
MAIN = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/log
maillog_file_prefixes = {folder}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mail.example.com
mydestination = example.com
local_recipient_maps = inline:{{ max@example.com=1, dave@example.com=1 }}
alias_maps =
smtpd_recipient_restrictions = reject_non_fqdn_sender, reject_unauth_destination,
    check_recipient_access inline:{{ dave@example.com=REJECT }},
    static:hold
smtpd_relay_restrictions =
smtpd_tls_security_level = none
"""


class Postfix:
    """A Postfix that takes mail for Max, and holds it."""

    def __init__(self, folder, port):
        self.folder, self.url = folder, f"smtp://127.0.0.1:{port}"
        owner = pwd.getpwnam("postfix")
        folder.chmod(0o711)  # its own user must come through
        (folder / "etc").mkdir()
        (folder / "queue").mkdir()
        (folder / "data").mkdir()
        os.chown(folder / "data", owner.pw_uid, owner.pw_gid)
        (folder / "etc/main.cf").write_text(MAIN.format(folder=folder))
        (folder / "etc/master.cf").write_text(MASTER.format(port=port))
        self.run("start")

    def run(self, command):
        done = subprocess.run(
            [POSTFIX, "-c", self.folder / "etc", command],
            capture_output=True,
            text=True,
            env=os.environ | {"MAIL_CONFIG": str(self.folder / "etc")},
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.log

    @property
    def log(self):
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def held(self):
        """The messages that it took."""
        return [
            path.read_bytes() for path in (self.folder / "queue/hold").rglob("*") if path.is_file()
        ]


@pytest.fixture
def postfix():
    # Not below tmp_path: another run of pytest that starts just then closes that to others.
    # Its last processes may end, and still write, after the one that is waited for.
    with tempfile.TemporaryDirectory("", "tracker-postfix-", ignore_cleanup_errors=True) as folder:
        postfix = Postfix(Path(folder), free_port())
        yield postfix
        postfix.run("stop")


@pytest.fixture
def make_api(make_app, postfix):
    def make(sender):
        api = Api(make_app(smtp=postfix.url, sender=sender))
        if not api.get("/users").json:
            api.user("Max")
            api.user("Dave")
            api.user("Yaris", "yaris@elsewhere.example")
            api.project()
        return api

    return make


def test_mail_reaches_postfix_and_a_refused_mailbox_fails_alone(make_api, postfix):
    api = make_api("Tickets <tickets@example.org>")
    api.ticket(title="Fix the \u00dcber-database", assignees=[1, 2])
    api.delete("/users/3")
    yours, other = settled(api)[::-1]
    assert (yours["to"], yours["state"]) == (MAX, "sent")
    assert (other["to"], other["state"]) == (DAVE, "failed")
    assert "Recipient address rejected: Access denied" in other["error"]
    (message,) = postfix.held()
    assert b"tickets@example.org" in message
    assert b"=?utf-8?q?=5BTicket_=231=5D_Fix_the_=C3=9Cber-database?=" in message


def test_a_sender_that_postfix_reports_at_rcpt_pauses_the_queue_until_it_is_right(
    make_api, postfix
):
    api = make_api("tracker@localhost")
    api.ticket(assignees=[1])
    error = eventually(lambda: health(api)["error"])
    assert "504 5.5.2 <tracker@localhost>: Sender address rejected" in error
    assert [(mail["state"], mail["attempts"]) for mail in api.emails()] == [("queued", 0)]
    api.app.close()
    api = make_api("tickets@example.org")
    api.app.start()
    assert [(mail["state"], mail["attempts"]) for mail in settled(api)] == [("sent", 1)]
    assert len(postfix.held()) == 1


def test_a_relay_that_is_denied_is_tried_again_and_health_shows_it(make_api, postfix):
    api = make_api("tickets@example.org")
    api.ticket(assignees=[3, 1])
    denied, sent = eventually(
        lambda: [mail for mail in api.emails()[::-1] if mail["attempts"]][1:] and api.emails()
    )
    assert {denied["state"], sent["state"]} == {"queued", "sent"}
    assert "554 5.7.1" in health(api)["error"]
    assert "Relay access denied" in health(api)["error"]
