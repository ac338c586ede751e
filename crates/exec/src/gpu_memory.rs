//! Whether a task ran out of GPU memory, by what it printed last.
//!
//! There is no other sign: such a program exits with a code of its own choosing, or aborts.

/// How much of the end of the output is looked through, bytes: a Python traceback with its notes.
pub const TAIL_BYTES: u64 = 16 * 1024;

/// What programs print when GPU memory is short, in lower case; a line that holds one of these says
/// so, whatever the case. Main memory that is short has other words everywhere.
const PATTERNS: [&str; 17] = [
    // PyTorch: `torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate ...`, since 2.5
    // `torch.OutOfMemoryError`; `RuntimeError: CUDA error: out of memory`; CTranslate2 (and so
    // faster-whisper): `RuntimeError: CUDA failed with error out of memory`.
    "cuda out of memory",
    "torch.outofmemoryerror",
    "torch.cuda.outofmemoryerror",
    "cuda error: out of memory",
    "cuda failed with error out of memory",
    // The CUDA runtime's and driver's names of the error: numba, ffmpeg (`CUDA_ERROR_OUT_OF_MEMORY:
    // out of memory`), ONNX Runtime (`CUDA failure 2: out of memory`).
    "cudaerrormemoryallocation",
    "cuda_error_out_of_memory",
    "cuda failure 2: out of memory",
    // ggml: llama.cpp, whisper.cpp.
    "cudamalloc failed: out of memory",
    // Libraries whose workspace does not fit.
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cusolver_status_alloc_failed",
    // JAX and TensorFlow; without the second half it can be a quota of a remote service.
    "resource_exhausted: out of memory",
    "resource_exhausted: failed to allocate",
    "oom when allocating tensor",
    // CuPy.
    "cupy.cuda.memory.outofmemoryerror",
    // ffmpeg's encoder.
    "openencodesessionex failed: out of memory",
];

/// The first line of `output` that says that GPU memory did not suffice.
pub fn shortage(output: &str) -> Option<&str> {
    output.lines().map(str::trim).find(|line| {
        let line = line.to_ascii_lowercase();
        PATTERNS.iter().any(|pattern| line.contains(pattern))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_print_is_known() {
        for line in [
            "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 5.80 GiB total capacity)",
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.",
            "RuntimeError: CUDA error: out of memory",
            "RuntimeError: CUDA failed with error out of memory",
            "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes.",
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 4096.00 MiB on device 0: cudaMalloc failed: out of memory",
            "[h264_nvenc @ 0x55] dl_fn->cuda_dl->cuCtxCreate(&ctx->cu_context_internal, 0, cu_device) failed -> CUDA_ERROR_OUT_OF_MEMORY: out of memory",
            "[h264_nvenc @ 0x55] OpenEncodeSessionEx failed: out of memory (10): (no details)",
            "cupy.cuda.memory.OutOfMemoryError: Out of memory allocating 8,000,000,000 bytes",
        ] {
            let output = format!("loading\n  {line}  \nbye\n");
            assert_eq!(shortage(&output), Some(line));
        }
    }

    #[test]
    fn other_shortages_are_not_of_the_gpu() {
        for line in [
            "MemoryError",
            "OSError: [Errno 12] Cannot allocate memory",
            "bash: fork: Cannot allocate memory",
            "grpc: RESOURCE_EXHAUSTED: Quota exceeded",
            "std::bad_alloc",
            "CUDA error: an illegal memory access was encountered",
            "",
        ] {
            assert_eq!(shortage(line), None, "{line}");
        }
    }
}
