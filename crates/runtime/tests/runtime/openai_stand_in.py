"""A stand-in for a runtime that speaks the OpenAI API, well or badly, as its first argument says.

usage: openai_stand_in.py MODE PORT MODEL
"""

import http.server
import json
import os
import signal
import subprocess
import sys
import time

MODE, PORT, MODEL = sys.argv[1], int(sys.argv[2]), sys.argv[3]
STARTED = time.monotonic()


class Handler(http.server.BaseHTTPRequestHandler):
    def reply(self, body, status=200):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def loading(self):
        """As llama-server does it, on every route."""
        if MODE != "loading" or time.monotonic() - STARTED > 0.5:
            return False
        self.reply({"error": {"message": "Loading model", "code": 503}}, 503)
        return True

    def do_GET(self):
        if self.loading():
            return
        if self.path == "/health":
            return self.reply({"status": "ok"})
        name = "somebody-elses" if MODE == "other-model" else MODEL
        self.reply({"object": "list", "data": [{"id": name}]})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if MODE == "broken":
            return self.reply({"error": {"message": "CUDA error: illegal memory access"}}, 500)
        if MODE == "empty":
            return self.reply({"choices": []})
        message = {"role": "assistant", "content": "a"}
        self.reply({"choices": [{"message": message}], "usage": {"completion_tokens": 1}})


if MODE == "crash":
    print("loading weights", flush=True)
    sys.exit("RuntimeError: the weights are for another architecture")
if MODE == "silent":
    time.sleep(3600)
if MODE == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if MODE == "escapee":
    # In a session and process group of its own, and its parent will be gone.
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"
    subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
