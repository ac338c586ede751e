//! Estimates of GPU memory. Pure.

use serde::Serialize;

use crate::gguf::{Header, KvHeads};
use crate::settings::{CacheType, Settings};

/// What a process takes of a GPU before it holds anything, MiB: the driver's context, kernels and
/// the workspaces of its matrix library. An assumption: 300 to 600 are seen, by card and driver.
pub const GPU_CONTEXT_MB: u64 = 512;
/// Files of which nothing is known but their size take so much more memory, percent: a cache,
/// buffers.
const FILE_OVERHEAD_PERCENT: u64 = 15;
/// llama.cpp rounds each slot's context up to this many tokens.
const CONTEXT_STEP: u64 = 256;
const MIB: u128 = 1 << 20;

/// What an estimate was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A GGUF file's metadata.
    Gguf,
    /// The sizes of files.
    Files,
}

/// What a model is expected to take of GPU memory. MB are 2^20 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// What it was made from.
    pub origin: Origin,
    /// Weights, MB.
    pub weights_mb: u64,
    /// The cache of all slots, MB.
    pub cache_mb: u64,
    /// Buffers for computing and the process itself, MB, on each GPU.
    pub buffers_mb: u64,
    /// Tokens of context of all slots that the cache was counted for; none where it was not.
    pub context: Option<u64>,
    /// `context` is not set: the runtime may take more, as far as memory is free.
    pub context_assumed: bool,
    /// GPUs that it is spread over.
    pub gpus: u64,
}

impl Estimate {
    /// What it takes on all of its GPUs together, MB.
    pub fn total_mb(&self) -> u64 {
        let shared = self.weights_mb.saturating_add(self.cache_mb);
        shared.saturating_add(self.buffers_mb.saturating_mul(self.gpus))
    }

    /// The parts in words: `4300 MB weights + 1024 MB cache for 8192 tokens + 600 MB buffers`.
    pub fn words(&self) -> String {
        let mut words = format!("{} MB weights", self.weights_mb);
        if let Some(context) = self.context {
            let assumed = if self.context_assumed {
                " (`context` is not set)"
            } else {
                ""
            };
            words.push_str(&format!(
                " + {} MB cache for {context} tokens{assumed}",
                self.cache_mb
            ));
        }
        words.push_str(&format!(" + {} MB buffers", self.buffers_mb));
        if self.gpus > 1 {
            words.push_str(&format!(" on each of {} GPUs", self.gpus));
        }
        words
    }
}

/// The estimate for a GGUF model. An upper bound where the model slides a window over its context
/// or caches less than keys and values of every head.
///
/// - Weights: all tensors but the input embedding, which stays in main memory unless it is the
///   output matrix too (`llama_model::load_tensors`: the input layer is always on the CPU).
/// - Cache: for each layer `slots x context of a slot x key-value heads x (key length x bytes of a
///   key + value length x bytes of a value)`, the context of a slot rounded up to 256 tokens
///   (`llama_kv_cache`), and the states of recurrent layers (`llama_memory_recurrent`).
/// - Buffers: the larger of what the two halves of a layer need at once for `u` tokens, 4 bytes a
///   value: `feed-forward 3 f + 5 w`, and `attention 7 w`, or without flash attention `h c + 8 w`
///   (w: width, f: feed-forward width, h: heads, c: context of a slot); and the mask, `u c` values
///   of 2 bytes, without flash attention 4. Fitted to what llama.cpp (2026-10) reports for models of
///   random weights, 512 and 1024 wide, of several f, h, c and u: exact or up to 2 MB above, the
///   smallest model 2 of 9 MB. [`GPU_CONTEXT_MB`] comes on top.
pub fn of_gguf(header: &Header, settings: &Settings) -> Estimate {
    let context = settings.counted_context(header.trained_context);
    let slot_context = context
        .div_ceil(settings.slots.max(1))
        .div_ceil(CONTEXT_STEP)
        .saturating_mul(CONTEXT_STEP);
    let cells = u128::from(slot_context) * u128::from(settings.slots.max(1));

    let weights = u128::from(header.tensor_bytes.saturating_sub(header.input_bytes));
    let heads = match &header.kv_heads {
        KvHeads::All(heads) => u128::from(*heads) * u128::from(header.layers),
        KvHeads::EachLayer(layers) => layers.iter().map(|heads| u128::from(*heads)).sum(),
    };
    let of_head = |length: u64, of: CacheType| {
        u128::from(length).saturating_mul(u128::from(of.bytes)) / u128::from(of.values.max(1))
    };
    let cell = of_head(header.key_length, settings.cache_k)
        .saturating_add(of_head(header.value_length, settings.cache_v));
    let cache = cells
        .saturating_mul(heads)
        .saturating_mul(cell)
        .saturating_add(recurrent(header, settings.slots));

    let tokens = u128::from(settings.micro_batch.min(context.max(1)));
    let width = u128::from(header.width);
    let mut attention = width.saturating_mul(7);
    let mut mask = tokens
        .saturating_mul(u128::from(slot_context))
        .saturating_mul(2);
    if settings.no_flash_attention {
        attention = u128::from(header.heads)
            .saturating_mul(u128::from(slot_context))
            .saturating_add(width.saturating_mul(8));
        mask = mask.saturating_mul(2);
    }
    let feed_forward = u128::from(header.feed_forward)
        .saturating_mul(3)
        .saturating_add(width.saturating_mul(5));
    let buffers = attention
        .max(feed_forward)
        .saturating_mul(tokens)
        .saturating_mul(4)
        .saturating_add(mask);

    // The output layer counts as one more.
    let all = u128::from(header.layers).saturating_add(1);
    let on_gpu = settings
        .gpu_layers
        .map_or(all, |layers| all.min(u128::from(layers)));
    let share = |bytes: u128| bytes.saturating_mul(on_gpu) / all;
    Estimate {
        origin: Origin::Gguf,
        weights_mb: mib(share(weights)),
        cache_mb: if settings.cache_on_cpu {
            0
        } else {
            mib(share(cache))
        },
        buffers_mb: mib(buffers).saturating_add(GPU_CONTEXT_MB),
        context: Some(context),
        context_assumed: settings.context.is_none(),
        gpus: settings.gpus,
    }
}

/// The states of recurrent layers, bytes: 4-byte values, for each slot and each layer (also for those
/// with attention in a mixed model: an upper bound).
fn recurrent(header: &Header, slots: u64) -> u128 {
    let Some(state) = header.recurrent else {
        return 0;
    };
    let [kernel, inner, size, groups] =
        [state.kernel, state.inner, state.state, state.groups].map(u128::from);
    let convolution = inner.saturating_add(groups.saturating_mul(size).saturating_mul(2));
    kernel
        .saturating_sub(1)
        .saturating_mul(convolution)
        .saturating_add(inner.saturating_mul(size))
        .saturating_mul(u128::from(header.layers))
        .saturating_mul(u128::from(slots))
        .saturating_mul(4)
}

/// The estimate for weights of which only the size is known.
pub fn of_files(bytes: u64, settings: &Settings) -> Estimate {
    let weights_mb = mib(u128::from(bytes));
    Estimate {
        origin: Origin::Files,
        weights_mb,
        cache_mb: 0,
        buffers_mb: weights_mb
            .saturating_mul(FILE_OVERHEAD_PERCENT)
            .div_ceil(100 * settings.gpus.max(1))
            .saturating_add(GPU_CONTEXT_MB),
        context: None,
        context_assumed: settings.context.is_none(),
        gpus: settings.gpus,
    }
}

fn mib(bytes: u128) -> u64 {
    u64::try_from(bytes.div_ceil(MIB)).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "estimate_tests.rs"]
mod tests;
