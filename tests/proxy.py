"""A real nginx for the tests, in a folder and on a port of its own."""

import os
import shutil
import signal
import socket
import subprocess
from contextlib import suppress

from conftest import eventually
from wire import free_port

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
HOW_TO_GET_IT = "nginx is not installed: apt-get install nginx-light"

CONFIGURATION = """
daemon off;
master_process off;
pid nginx.pid;
events {{ }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {http}
}}
"""


class Nginx:
    """nginx, with these lines in its block http, of which one listens on 127.0.0.1:PORT."""

    def __init__(self, folder, http):
        self.output = folder / "error.log"
        self.port = free_port()
        http = http.replace("PORT", str(self.port))
        (folder / "nginx.conf").write_text(CONFIGURATION.format(http=http))
        command = [NGINX, "-p", folder, "-c", "nginx.conf", "-e", "error.log"]
        self.process = subprocess.Popen(command, cwd=folder, start_new_session=True)
        eventually(self._listens)

    def _listens(self):
        assert self.process.poll() is None, self.said
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port)).close()
            return True

    @property
    def said(self):
        return self.output.read_text()

    def kill(self):
        """End all of it at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
