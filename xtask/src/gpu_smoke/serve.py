"""An OpenAI-compatible server on PyTorch, for machines that have a GPU and no LLM runtime.

Its model is a small transformer with random weights: what it answers is noise, but the weights lie
in the GPU's memory and each token is computed there.
"""

import argparse
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

WIDTH = 2048
HEADS = 16
# Four matrices of attention and two, four times as wide, of the feed-forward part; bf16.
LAYER_MB = (4 + 8) * WIDTH * WIDTH * 2 // 2**20


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(WIDTH) for _ in range(2))
        self.mix = torch.nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = torch.nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = torch.nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        length = x.shape[0]
        query, key, value = (
            part.view(length, HEADS, WIDTH // HEADS).transpose(0, 1)
            for part in self.mix(self.norms[0](x)).chunk(3, dim=-1)
        )
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(0, 1).reshape(length, WIDTH))
        return x + self.down(torch.nn.functional.gelu(self.up(self.norms[1](x))))


class Model(torch.nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.embed = torch.nn.Embedding(256, WIDTH)
        self.layers = torch.nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return x[-1] @ self.embed.weight.T


@torch.inference_mode()
def generate(model, device, prompt, count):
    tokens = list(prompt.encode())[-512:] or [32]
    first = len(tokens)
    for _ in range(count):
        scores = model(torch.tensor(tokens, device=device)).float()
        # Letters and spaces alone, so that the noise can be read.
        allowed = torch.tensor([32, *range(97, 123)], device=device)
        tokens.append(int(allowed[scores[allowed].argmax()]))
    return bytes(tokens[first:]).decode(), first


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights-mb", type=int, default=2048)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(options.device):
        model = Model(max(1, options.weights_mb // LAYER_MB)).eval()
    slots = threading.Semaphore(options.slots)
    where = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    print(f"{options.model}: random weights on {where}", flush=True)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status, value):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            if self.path == "/v1/models":
                self.answer(200, {"object": "list", "data": [{"id": options.model, "object": "model"}]})
            elif self.path == "/health":
                self.answer(200, {"status": "ok"})
            else:
                self.answer(404, {"error": {"message": f"no route {self.path}"}})

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            if self.path != "/v1/chat/completions":
                return self.answer(404, {"error": {"message": f"no route {self.path}"}})
            prompt = "\n".join(str(message.get("content")) for message in request["messages"])
            with slots:
                text, used = generate(model, options.device, prompt, request.get("max_tokens") or 32)
            self.answer(200, {
                "id": "smoke", "object": "chat.completion", "created": int(time.time()), "model": options.model,
                "choices": [{"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": text}}],
                "usage": {"prompt_tokens": used, "completion_tokens": len(text), "total_tokens": used + len(text)},
            })

    ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


main()
