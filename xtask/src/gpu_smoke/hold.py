"""Holds GPU memory for a while, then frees it and ends.

By PyTorch where it is installed, so that an error has the words of real programs, else by CUDA's
driver API. With --simulated nothing is allocated: the stand-in NVML library counts the process by
the variable RIGOR_SIM_VRAM_MB.
"""

import argparse
import ctypes
import sys
import time


def by_torch(mb: int):
    import torch

    held = torch.empty(mb * 2**20, dtype=torch.uint8, device="cuda")
    held.fill_(1)
    torch.cuda.synchronize()
    return held


def by_driver(mb: int):
    cuda = ctypes.CDLL("libcuda.so.1")

    def checked(code: int, what: str) -> None:
        if code:
            name = ctypes.c_char_p()
            text = ctypes.c_char_p()
            cuda.cuGetErrorName(code, ctypes.byref(name))
            cuda.cuGetErrorString(code, ctypes.byref(text))
            words = (text.value or b"unknown").decode()
            sys.exit(f"CUDA error: {words} ({(name.value or b'?').decode()}) in {what}")

    device, context, held = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    checked(cuda.cuInit(0), "cuInit")
    checked(cuda.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    checked(cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device), "cuCtxCreate")
    checked(cuda.cuMemAlloc_v2(ctypes.byref(held), ctypes.c_size_t(mb * 2**20)), "cuMemAlloc")
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, required=True, help="MiB to hold")
    parser.add_argument("--seconds", type=float, default=4, help="for how long")
    parser.add_argument("--simulated", action="store_true")
    options = parser.parse_args()
    if options.simulated:
        print("SIMULATED: no GPU memory is held", flush=True)
    else:
        try:
            import torch

            has_torch = torch.cuda.is_available()
        except ImportError:
            has_torch = False
        # Referenced until the end, or it would be freed.
        held = by_torch(options.mb) if has_torch else by_driver(options.mb)
        print(f"{options.mb} MiB held by {'PyTorch' if has_torch else 'the driver API'}: {held is not None}", flush=True)
    time.sleep(options.seconds)


main()
