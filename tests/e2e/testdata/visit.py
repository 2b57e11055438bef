#!/usr/bin/python3
"""A service of the test of a big root: looks at its neighbours in the guest and writes one line of JSON to the test's port."""

import glob
import json
import pwd
import ssl
import subprocess
import sys
import time
import urllib.request

PORT = "org.plinth.test"
WAIT = 60  # seconds


def until(what):
    """Tries again while there is an error: the others are just starting."""
    end = time.monotonic() + WAIT
    while True:
        try:
            return what()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def port():
    for name in glob.glob("/sys/class/virtio-ports/*/name"):
        with open(name) as f:
            if f.read().strip() == PORT:
                return open("/dev/" + name.split("/")[-2], "w")
    raise OSError("no port " + PORT)


def fetch(url, context=None):
    with urllib.request.urlopen(url, timeout=30, context=context) as r:
        return r.read().decode()


def worker():
    """Names the user of the workers."""
    for status in glob.glob("/proc/[0-9]*/status"):
        with open(status) as f:
            fields = dict(line.split(":", 1) for line in f)
        uid = int(fields["Uid"].split()[0])
        if fields["Name"].strip() == "nginx" and uid:
            return pwd.getpwuid(uid).pw_name
    return ""


def look(said):
    said["ssl"] = subprocess.run([sys.executable, "-c", "import ssl"]).returncode
    said["openssl"] = subprocess.run(["openssl", "version"], capture_output=True, text=True).stdout.strip()
    context = ssl.create_default_context(cafile="/etc/site.crt")
    said["page"] = until(lambda: fetch("https://localhost/page", context))
    said["default"] = fetch("http://127.0.0.1/")
    said["user"] = worker()


said = {}
try:
    look(said)
except Exception as e:  # whatever it is, the test shall see it
    said["error"] = repr(e)
with until(port) as out:
    print(json.dumps(said), file=out)
