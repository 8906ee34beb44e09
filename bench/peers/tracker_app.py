"""The tracker for other servers than its own. It queues mail, and has nowhere to send it."""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

import tracker

app = tracker.create_app(os.environ["PEER_DATABASE"], smtp="smtp://127.0.0.1:1")
