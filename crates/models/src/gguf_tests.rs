use std::io::Cursor;

use proptest::prelude::*;

use super::*;

/// Writes GGUF headers, byte by byte as the format says.
#[derive(Clone, Default)]
pub(crate) struct Writer {
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    version: u32,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Writer {
    pub(crate) fn new() -> Writer {
        Writer {
            version: 3,
            ..Writer::default()
        }
    }

    pub(crate) fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Writer {
        self.keys
            .push([&text(key), &kind.to_le_bytes()[..], value].concat());
        self
    }

    pub(crate) fn number(self, key: &str, value: u32) -> Writer {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn text(self, key: &str, value: &str) -> Writer {
        self.raw(key, 8, &text(value))
    }

    pub(crate) fn list(self, key: &str, kind: u32, count: u64, items: &[u8]) -> Writer {
        let value = [&kind.to_le_bytes()[..], &count.to_le_bytes(), items].concat();
        self.raw(key, 9, &value)
    }

    pub(crate) fn tensor(mut self, name: &str, offset: u64) -> Writer {
        let shape = [
            &2_u32.to_le_bytes()[..],
            &8_u64.to_le_bytes(),
            &8_u64.to_le_bytes(),
        ]
        .concat();
        // Of a type that no version knows: its size must follow from the offsets.
        let rest = [&999_u32.to_le_bytes()[..], &offset.to_le_bytes()].concat();
        self.tensors.push([text(name), shape, rest].concat());
        self
    }

    pub(crate) fn bytes(&self, data: usize) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.keys.len() as u64).to_le_bytes());
        bytes.extend(self.keys.concat());
        bytes.extend(self.tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
        bytes
    }
}

pub(crate) fn llama(name: &str) -> Writer {
    Writer::new()
        .text("general.architecture", name)
        .number(&format!("{name}.block_count"), 24)
        .number(&format!("{name}.context_length"), 32_768)
        .number(&format!("{name}.embedding_length"), 1024)
        .number(&format!("{name}.feed_forward_length"), 4096)
        .number(&format!("{name}.attention.head_count"), 16)
        .list(
            "tokenizer.ggml.tokens",
            8,
            2,
            &[text("a"), text("b")].concat(),
        )
        .list("tokenizer.ggml.scores", 6, 2, &[0; 8])
        .tensor("token_embd.weight", 0)
        .tensor("output.weight", 320)
        .tensor("blk.0.attn_q.weight", 640)
}

fn read(bytes: &[u8]) -> Result<Part, String> {
    parse(Cursor::new(bytes), bytes.len() as u64)
}

fn whole(bytes: &[u8]) -> Header {
    join([read(bytes).unwrap()]).unwrap()
}

#[test]
fn a_header_gives_the_shape_and_the_bytes() {
    // The architecture's name may have a dash, as gpt-oss has.
    let header = whole(&llama("gpt-oss").bytes(1000));
    assert_eq!(
        header,
        Header {
            architecture: "gpt-oss".into(),
            trained_context: Some(32_768),
            layers: 24,
            width: 1024,
            heads: 16,
            kv_heads: KvHeads::All(16),
            key_length: 64,
            value_length: 64,
            feed_forward: 4096,
            recurrent: None,
            tensor_bytes: 1000,
            input_bytes: 320,
            parts: 1,
        }
    );
    let mut old = llama("llama");
    old.version = 2;
    assert_eq!(whole(&old.bytes(1000)).layers, 24);
}

#[test]
fn an_input_embedding_that_is_the_output_too_goes_to_the_gpu() {
    let tied = Writer::new()
        .text("general.architecture", "llama")
        .tensor("token_embd.weight", 0)
        .tensor("blk.0.attn_q.weight", 320);
    assert_eq!(whole(&tied.bytes(1000)).input_bytes, 0);
}

#[test]
fn heads_by_layer_and_experts_and_states_are_read() {
    let heads: Vec<u8> = [4_u32, 0, 8].iter().flat_map(|n| n.to_le_bytes()).collect();
    let header = whole(
        &llama("hybrid")
            .list("hybrid.attention.head_count_kv", 4, 3, &heads)
            .number("hybrid.attention.key_length", 96)
            .number("hybrid.expert_feed_forward_length", 1000)
            .number("hybrid.expert_used_count", 8)
            .number("hybrid.ssm.state_size", 128)
            .number("hybrid.ssm.conv_kernel", 4)
            .bytes(1000),
    );
    assert_eq!(header.kv_heads, KvHeads::EachLayer(vec![4, 0, 8]));
    assert_eq!((header.key_length, header.value_length), (96, 64));
    assert_eq!(header.feed_forward, 8000);
    assert_eq!(header.recurrent.unwrap().state, 128);
}

fn refused(bytes: &[u8]) -> String {
    read(bytes).unwrap_err()
}

#[test]
fn hostile_headers_are_refused_by_what_is_wrong_and_allocate_nothing() {
    assert!(refused(b"GGU").contains("cut off"));
    assert!(refused(&[0; 100]).contains("not a GGUF"));
    let good = llama("llama").bytes(1000);
    let with = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        bad
    };
    assert!(refused(&with(4, &1_u32.to_le_bytes())).contains("version 1"));
    assert!(refused(&with(4, &3_u32.to_be_bytes())).contains("byte order"));
    for at in [8, 16] {
        for count in [u64::MAX, 1 << 40, 1 << 20] {
            assert!(
                refused(&with(at, &count.to_le_bytes())).contains("no room"),
                "{at} {count}"
            );
        }
    }
    // The first key's length.
    assert!(refused(&with(24, &u64::MAX.to_le_bytes())).contains("bytes"));
    assert!(refused(&with(24, &60_000_u64.to_le_bytes())).contains("cut off"));
    for (kind, count) in [
        (8, u64::MAX),
        (6, u64::MAX),
        (12, u64::MAX / 8),
        (4, 1 << 40),
        (9, 1 << 40),
        (99, 1),
    ] {
        let bad = Writer::new().list("a.b", kind, count, &[]).bytes(100);
        let said = refused(&bad);
        assert!(!said.is_empty(), "{kind} {count}: {said}");
    }
    let mut nested = Vec::new();
    for _ in 0..10_000 {
        nested.extend(9_u32.to_le_bytes());
        nested.extend(1_u64.to_le_bytes());
    }
    assert!(refused(&Writer::new().list("a", 9, 1, &nested).bytes(0)).contains("deep"));
    let text_of = |length: u64| Writer::new().raw("a", 8, &length.to_le_bytes()).bytes(0);
    assert!(refused(&text_of(u64::MAX)).contains("cut off"));
}

#[test]
fn a_download_that_broke_off_is_cut_off() {
    let good = llama("llama").bytes(1000);
    assert!(refused(&good[..good.len() - 500]).contains("cut off: a tensor begins at byte"));
    for end in 0..good.len() - 500 {
        assert!(read(&good[..end]).is_err(), "{end}");
    }
}

#[test]
fn parts_are_put_together_and_the_output_may_lie_in_another() {
    let first = Writer::new()
        .text("general.architecture", "llama")
        .raw("split.count", 2, &2_u16.to_le_bytes())
        .tensor("token_embd.weight", 0)
        .tensor("blk.0.attn_q.weight", 320);
    let second = Writer::new().tensor("output.weight", 0);
    let parts = [first.bytes(1000), second.bytes(500)].map(|bytes| read(&bytes).unwrap());
    let header = join(parts).unwrap();
    assert_eq!(
        (header.tensor_bytes, header.input_bytes, header.parts),
        (1500, 320, 2)
    );
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = bytes;
        let _ = read(&bytes);
        if bytes.len() > 8 {
            bytes[..8].copy_from_slice(b"GGUF\x03\0\0\0");
            let _ = read(&bytes);
        }
    }

    #[test]
    fn no_flipped_bytes_make_it_or_the_estimate_panic(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)
    ) {
        let mut bytes = llama("llama").bytes(1000);
        for (at, with) in flips {
            let at = at.index(bytes.len());
            bytes[at] = with;
        }
        if let Some(header) = read(&bytes).ok().and_then(|part| join([part])) {
            let settings = crate::settings::Settings {
                slots: 4,
                context: Some(u64::MAX),
                cache_k: crate::CacheType::F16,
                cache_v: crate::CacheType::F16,
                micro_batch: u64::MAX,
                no_flash_attention: true,
                gpu_layers: None,
                cache_on_cpu: false,
                gpus: 1,
            };
            let _ = crate::of_gguf(&header, &settings).total_mb();
        }
    }
}
