use super::*;
use crate::settings::Settings;

/// The models of random weights that llama.cpp was asked about, by width, layers, feed-forward
/// width and key-value heads; heads of 64.
fn model(width: u64, layers: u64, feed_forward: u64, kv_heads: u64) -> Header {
    Header {
        architecture: "llama".into(),
        trained_context: Some(32_768),
        layers,
        width,
        heads: width / 64,
        kv_heads: KvHeads::All(kv_heads),
        key_length: 64,
        value_length: 64,
        feed_forward,
        tensor_bytes: 34 << 20,
        parts: 1,
        ..Header::default()
    }
}

fn settings(slots: u64, context: u64) -> Settings {
    Settings {
        slots,
        context: Some(context),
        cache_k: CacheType::F16,
        cache_v: CacheType::F16,
        micro_batch: 512,
        no_flash_attention: false,
        gpu_layers: None,
        cache_on_cpu: false,
        gpus: 1,
    }
}

#[test]
fn cache_and_buffers_are_what_llama_cpp_reports() {
    let q8 = CacheType::named("q8_0").unwrap();
    let quantised = |of: Settings| Settings {
        cache_k: q8,
        cache_v: q8,
        ..of
    };
    let plain = |of: Settings| Settings {
        no_flash_attention: true,
        ..of
    };
    let micro = |of: Settings, micro_batch| Settings { micro_batch, ..of };
    let small = || model(512, 4, 2048, 8);
    let mid = || model(1024, 24, 4096, 16);
    // The last two: "KV buffer size" and "compute buffer size" of its log, MiB.
    let seen = [
        (small(), settings(2, 4096), 32, 19),
        (small(), settings(4, 16_384), 128, 21),
        (small(), plain(settings(4, 16_384)), 128, 80),
        (small(), quantised(settings(4, 16_384)), 68, 21),
        (small(), settings(1, 4096), 32, 21),
        (mid(), settings(2, 8192), 768, 38),
        (mid(), plain(micro(settings(2, 8192), 256)), 768, 76),
        (model(512, 2, 512, 8), settings(1, 2048), 8, 9),
        (model(512, 2, 1024, 8), settings(1, 2048), 8, 11),
        (model(512, 2, 4096, 8), settings(1, 2048), 8, 31),
        (model(512, 2, 512, 2), settings(1, 2048), 2, 8),
        (model(512, 2, 4096, 2), settings(1, 2048), 2, 31),
        (model(512, 2, 512, 8), settings(1, 16_384), 64, 23),
        (model(512, 2, 4096, 8), plain(settings(1, 2048)), 8, 44),
    ];
    for (header, settings, cache, buffers) in seen {
        let estimate = of_gguf(&header, &settings);
        assert_eq!(estimate.cache_mb, cache, "{header:?} {settings:?}");
        let said = estimate.buffers_mb - GPU_CONTEXT_MB;
        assert!(
            said >= buffers && said <= buffers + 2,
            "{said} for {buffers}: {header:?} {settings:?}"
        );
    }
}

#[test]
fn the_context_is_that_of_all_slots_together_and_rounded_up_for_each() {
    let header = model(512, 4, 2048, 8);
    let cache = |slots, context| of_gguf(&header, &settings(slots, context)).cache_mb;
    assert_eq!(cache(1, 8192), cache(4, 8192), "more slots share it");
    assert_eq!(cache(1, 4096), 32);
    // 1000 tokens for each of 4: 1024 cells each.
    assert_eq!(cache(4, 4000), 32);
}

#[test]
fn a_context_that_is_not_set_is_the_least_that_llama_server_keeps() {
    let unset = Settings {
        context: None,
        ..settings(2, 1)
    };
    let estimate = of_gguf(&model(512, 4, 2048, 8), &unset);
    assert_eq!(
        (estimate.context, estimate.context_assumed),
        (Some(4096), true)
    );
    assert!(
        estimate.words().contains("`context` is not set"),
        "{}",
        estimate.words()
    );
    let short = Header {
        trained_context: Some(2048),
        ..model(512, 4, 2048, 8)
    };
    assert_eq!(of_gguf(&short, &unset).context, Some(2048));
}

#[test]
fn only_what_is_on_the_gpu_counts() {
    let header = Header {
        tensor_bytes: 1000 << 20,
        input_bytes: 100 << 20,
        ..model(1024, 24, 4096, 16)
    };
    let all = settings(2, 8192);
    assert_eq!(of_gguf(&header, &all).weights_mb, 900);
    let some = Settings {
        gpu_layers: Some(5),
        ..all
    };
    let estimate = of_gguf(&header, &some);
    assert_eq!((estimate.weights_mb, estimate.cache_mb), (180, 154));
    let many = Settings {
        gpu_layers: Some(999),
        cache_on_cpu: true,
        ..all
    };
    let estimate = of_gguf(&header, &many);
    assert_eq!((estimate.weights_mb, estimate.cache_mb), (900, 0));
    let split = Settings { gpus: 3, ..all };
    let estimate = of_gguf(&header, &split);
    assert_eq!(
        estimate.total_mb(),
        900 + 768 + 3 * estimate.buffers_mb,
        "each GPU has buffers"
    );
}

#[test]
fn layers_without_attention_cache_nothing_and_recurrent_ones_a_state() {
    let header = Header {
        kv_heads: KvHeads::EachLayer(vec![8, 0, 0, 8]),
        ..model(512, 4, 2048, 8)
    };
    assert_eq!(of_gguf(&header, &settings(1, 4096)).cache_mb, 16);
    let recurrent = Header {
        kv_heads: KvHeads::All(0),
        recurrent: Some(crate::Recurrent {
            kernel: 4,
            inner: 8192,
            state: 128,
            groups: 8,
        }),
        ..model(512, 64, 2048, 8)
    };
    // 64 layers x (3 x (8192 + 2 x 8 x 128) + 128 x 8192) x 4 bytes, whatever the context.
    for context in [512, 65_536] {
        assert_eq!(of_gguf(&recurrent, &settings(1, context)).cache_mb, 264);
    }
    assert_eq!(of_gguf(&recurrent, &settings(2, 512)).cache_mb, 527);
}
