//! How a model is served, as far as memory depends on it.

use rigor_config::{Model, Serving};

/// The context that llama-server makes room for at least where none is set: its `--fit` shrinks a
/// context that is not set to what the GPU has free, down to this (`--fit-ctx`, 4096 tokens).
pub(crate) const CONTEXT_UNSET: u64 = 4096;
/// llama-server's micro-batch (`--ubatch-size`).
const MICRO_BATCH: u64 = 512;

/// What a cached value takes: block size in values and bytes of a block, as in ggml's type traits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheType {
    /// Values of a block.
    pub values: u64,
    /// Bytes of a block.
    pub bytes: u64,
}

impl CacheType {
    /// llama-server's default.
    pub const F16: CacheType = CacheType {
        values: 1,
        bytes: 2,
    };

    /// By the name that `--cache-type-k` takes; none for an unknown one.
    pub fn named(name: &str) -> Option<CacheType> {
        let (values, bytes) = match name {
            "f32" => (1, 4),
            "f16" | "bf16" => (1, 2),
            "q8_0" => (32, 34),
            "q5_1" => (32, 24),
            "q5_0" => (32, 22),
            "q4_1" => (32, 20),
            "q4_0" | "iq4_nl" => (32, 18),
            _ => return None,
        };
        Some(CacheType { values, bytes })
    }
}

/// How a model is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Requests at once, at least 1.
    pub slots: u64,
    /// Tokens of context of all slots together; none: the runtime's own choice.
    pub context: Option<u64>,
    /// Type of cached keys.
    pub cache_k: CacheType,
    /// Type of cached values.
    pub cache_v: CacheType,
    /// Tokens that are computed at once.
    pub micro_batch: u64,
    /// Flash attention is off.
    pub no_flash_attention: bool,
    /// Layers on the GPU; none: all.
    pub gpu_layers: Option<u64>,
    /// The cache stays in main memory.
    pub cache_on_cpu: bool,
    /// GPUs that it is spread over, at least 1.
    pub gpus: u64,
}

impl Settings {
    /// Those of a model of the catalogue. `args` of llama-server win over the entry's own keys, the
    /// last one of a repeated flag, as there.
    pub fn of(model: &Model) -> Settings {
        let mut settings = Settings {
            slots: u64::from(model.slots.max(1)),
            context: model.context.map(u64::from),
            cache_k: CacheType::F16,
            cache_v: CacheType::F16,
            micro_batch: MICRO_BATCH,
            no_flash_attention: false,
            gpu_layers: None,
            cache_on_cpu: false,
            gpus: u64::from(model.split_gpu.max(1)),
        };
        if let Serving::LlamaServer { .. } = model.serving {
            settings.read(&model.args);
        }
        settings
    }

    fn read(&mut self, args: &[String]) {
        let mut batch = u64::MAX;
        let mut words = args.iter().map(String::as_str).peekable();
        while let Some(flag) = words.next() {
            let value = words.peek().copied().unwrap_or_default();
            let number = value.parse::<u64>().ok();
            match flag {
                "-c" | "--ctx-size" => self.context = number.filter(|tokens| *tokens > 0),
                "-np" | "--parallel" => self.slots = number.unwrap_or(self.slots).max(1),
                "-b" | "--batch-size" => batch = number.unwrap_or(batch).max(1),
                "-ub" | "--ubatch-size" => {
                    self.micro_batch = number.unwrap_or(MICRO_BATCH).max(1);
                }
                "-ctk" | "--cache-type-k" => {
                    self.cache_k = CacheType::named(value).unwrap_or(self.cache_k);
                }
                "-ctv" | "--cache-type-v" => {
                    self.cache_v = CacheType::named(value).unwrap_or(self.cache_v);
                }
                "-fa" | "--flash-attn" => {
                    self.no_flash_attention = matches!(value, "off" | "0" | "false" | "disabled");
                }
                // Words such as `auto` and `all` mean all of them.
                "-ngl" | "--gpu-layers" | "--n-gpu-layers" => self.gpu_layers = number,
                "-nkvo" | "--no-kv-offload" => self.cache_on_cpu = true,
                _ => {}
            }
        }
        self.micro_batch = self.micro_batch.min(batch);
    }

    /// Tokens of context of all slots together that memory is counted for.
    pub fn counted_context(&self, trained: Option<u64>) -> u64 {
        self.context
            .unwrap_or_else(|| trained.unwrap_or(CONTEXT_UNSET).min(CONTEXT_UNSET))
    }
}
