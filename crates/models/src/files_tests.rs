use std::fs;

use rigor_config::Config;

use super::*;
use crate::gguf::tests::{Writer, llama};
use crate::{By, Catalogue, Found, Origin};

fn model(lines: &str) -> Model {
    let text = format!("[[model]]\nid = \"m\"\n{lines}\n");
    let mut config = Config::parse(&text, Path::new("/rig/rig.toml")).unwrap();
    config.models.remove(0)
}

fn served(lines: &str) -> Settings {
    Settings::of(&model(lines))
}

const LLAMA: &str = "runtime = \"llama-server\"\nfile = \"/m.gguf\"\n";

#[test]
fn arguments_win_over_the_entrys_own_keys() {
    let of = |args: &str| served(&format!("{LLAMA}slots = 2\ncontext = 8192\nargs = {args}"));
    let plain = of("[]");
    assert_eq!(
        (plain.slots, plain.context, plain.micro_batch),
        (2, Some(8192), 512)
    );
    assert_eq!(
        (plain.cache_k, plain.no_flash_attention),
        (crate::CacheType::F16, false)
    );
    let told = of(
        r#"["--cache-type-k", "q8_0", "-ctv", "q4_0", "-c", "1", "-c", "16384", "-np", "8", "-b", "128", "-ngl", "20", "-fa", "off", "-nkvo"]"#,
    );
    assert_eq!(
        (told.slots, told.context, told.micro_batch),
        (8, Some(16_384), 128)
    );
    assert_eq!((told.cache_k.bytes, told.cache_v.bytes), (34, 18));
    assert_eq!(told.gpu_layers, Some(20));
    assert!(told.no_flash_attention && told.cache_on_cpu);
    // Not of other runtimes, whose flags mean other things.
    let other = served("runtime = \"command\"\ncommand = \"x {PORT}\"\nargs = [\"-c\", \"5\"]");
    assert_eq!(other.context, None);
}

#[test]
fn all_parts_of_a_split_file_are_counted_and_a_missing_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |n: u32| dir.path().join(format!("big-{n:05}-of-00002.gguf"));
    let first = llama("llama").raw("split.count", 2, &2_u16.to_le_bytes());
    fs::write(at(1), first.bytes(3 << 20)).unwrap();
    let source = Source::Gguf(at(1));
    let settings = served(LLAMA);
    assert_eq!(
        source.estimate(&settings).unwrap_err(),
        FileProblem::Missing { path: at(2) }
    );
    fs::write(at(2), Writer::new().tensor("blk.1.x", 0).bytes(5 << 20)).unwrap();
    let estimate = source.estimate(&settings).unwrap();
    assert_eq!((estimate.origin, estimate.weights_mb), (Origin::Gguf, 8));
    // A first part whose name hides the others is no model.
    let path = dir.path().join("alone.gguf");
    fs::copy(at(1), &path).unwrap();
    let problem = Source::Gguf(path).estimate(&settings).unwrap_err();
    assert!(problem.to_string().contains("has 2 parts"), "{problem}");
}

#[test]
fn what_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let settings = served(LLAMA);
    let path = dir.path().join("m.gguf");
    let problem = |source: Source| source.estimate(&settings).unwrap_err();
    assert!(matches!(
        problem(Source::Gguf(path.clone())),
        FileProblem::Missing { .. }
    ));
    fs::write(&path, "<html>404</html> and so on and on").unwrap();
    let said = problem(Source::Gguf(path.clone())).to_string();
    assert!(said.contains("not a GGUF file"), "{said}");
    assert!(said.contains(path.to_str().unwrap()), "{said}");
    let said = problem(Source::Gguf(dir.path().to_owned())).to_string();
    assert!(said.contains("not a file"), "{said}");
    // A program of one's own may have any file.
    let estimate = Source::File(path).estimate(&settings).unwrap();
    assert_eq!((estimate.origin, estimate.weights_mb), (Origin::Files, 1));
}

#[test]
fn a_directory_of_the_hub_is_estimated_from_its_config() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let lines = format!(
        "runtime = \"vllm\"\nreference = \"{}\"\nslots = 2\ncontext = 8192",
        path.display()
    );
    let model = model(&lines);
    let source = source(&model).unwrap();
    assert_eq!(source, Source::Directory(path.to_owned()));
    let settings = Settings::of(&model);
    assert!(source.estimate(&settings).is_err());
    fs::write(
        path.join("model-00001-of-00002.safetensors"),
        vec![0; 2 << 20],
    )
    .unwrap();
    fs::write(
        path.join("model-00002-of-00002.safetensors"),
        vec![0; 1 << 20],
    )
    .unwrap();
    // Older weights beside them are not loaded.
    fs::write(path.join("pytorch_model.bin"), vec![0; 4 << 20]).unwrap();
    let config = r#"{"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
        "hidden_size": 512, "intermediate_size": 2048, "rope_scaling": null}"#;
    fs::write(path.join("config.json"), config).unwrap();
    let estimate = source.estimate(&settings).unwrap();
    // 4 layers x 8192 tokens x 4 heads x (64 + 64) values x 2 bytes.
    assert_eq!((estimate.weights_mb, estimate.cache_mb), (3, 32));
    assert_eq!(estimate.origin, Origin::Files);
}

#[test]
fn ollamas_store_is_read_where_it_lies() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path();
    let of = |tag: &str| {
        let lines = format!(
            "runtime = \"ollama\"\nreference = \"{tag}\"\nenv = {{ OLLAMA_MODELS = \"{}\" }}",
            store.display()
        );
        model(&lines)
    };
    assert_eq!(source(&of("tiny:1b")), None);
    let manifest = store.join("manifests/registry.ollama.ai/library/tiny/1b");
    fs::create_dir_all(manifest.parent().unwrap()).unwrap();
    let layers = r#"{"layers": [
        {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:ab", "size": 5242880},
        {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:cd", "size": 999999999}]}"#;
    fs::write(&manifest, layers).unwrap();
    let model = of("tiny:1b");
    let found = source(&model).unwrap();
    assert_eq!(found, Source::Ollama(manifest));
    let settings = Settings::of(&model);
    let estimate = found.estimate(&settings).unwrap();
    assert_eq!((estimate.origin, estimate.weights_mb), (Origin::Files, 5));
    fs::create_dir(store.join("blobs")).unwrap();
    fs::write(store.join("blobs/sha256-ab"), llama("llama").bytes(5 << 20)).unwrap();
    let estimate = found.estimate(&settings).unwrap();
    assert_eq!((estimate.origin, estimate.weights_mb), (Origin::Gguf, 5));
    // No tag leads out of the store.
    for tag in ["../../x", "a/../b", "/x"] {
        assert_eq!(ollama_manifest(tag), None, "{tag}");
    }
    assert_eq!(
        ollama_manifest("hub.example/me/tiny").unwrap(),
        Path::new("manifests/hub.example/me/tiny/latest")
    );
}

#[test]
fn files_are_read_once_until_they_change() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let model = model(&format!(
        "runtime = \"llama-server\"\nfile = \"{}\"",
        path.display()
    ));
    let models = [model];
    let mut catalogue = Catalogue::default();
    let mut now = std::time::Instant::now();
    catalogue.refresh(&models, now);
    assert!(matches!(
        catalogue.found("m"),
        Found::Problem(FileProblem::Missing { .. })
    ));
    assert_eq!(catalogue.need(&models[0], None), None);

    fs::write(&path, llama("llama").bytes(3 << 20)).unwrap();
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    catalogue.refresh(&models, now);
    assert!(
        catalogue.found("m").estimate().is_none(),
        "too soon to look"
    );
    now += std::time::Duration::from_secs(11);
    catalogue.refresh(&models, now);
    let need = catalogue.need(&models[0], None).unwrap();
    assert_eq!(need.by, By::Gguf);
    assert_eq!(need.estimate.unwrap().weights_mb, 3);

    // The same size and time: it is not read again, so damage is not seen.
    fs::write(&path, vec![0; fs::metadata(&path).unwrap().len() as usize]).unwrap();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(before)
        .unwrap();
    now += std::time::Duration::from_secs(11);
    catalogue.refresh(&models, now);
    assert!(catalogue.found("m").estimate().is_some());
    // Another size: it is.
    fs::write(&path, "short").unwrap();
    now += std::time::Duration::from_secs(11);
    catalogue.refresh(&models, now);
    assert!(matches!(
        catalogue.found("m"),
        Found::Problem(FileProblem::Broken { .. })
    ));
}

#[test]
fn the_surest_source_decides() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    fs::write(&path, llama("llama").bytes(3 << 20)).unwrap();
    let lines = format!(
        "runtime = \"llama-server\"\nfile = \"{}\"\n",
        path.display()
    );
    let plain = model(&lines);
    let configured = model(&format!("{lines}vram_mb = 900"));
    let catalogue = Catalogue::of(std::slice::from_ref(&plain));
    let by = |model: &Model, measured| {
        catalogue
            .need(model, measured)
            .map(|need| (need.by, need.mb))
    };
    assert_eq!(by(&configured, Some(700)), Some((By::Measured, 700)));
    assert_eq!(by(&configured, None), Some((By::Configured, 900)));
    assert_eq!(by(&plain, None).map(|of| of.0), Some(By::Gguf));
    // vLLM takes what it is told to, whatever it was seen to take.
    let vllm = model("runtime = \"vllm\"\nreference = \"a/b\"");
    assert_eq!(by(&vllm, Some(700)), None);
}

#[test]
fn what_was_measured_under_other_settings_says_nothing() {
    let plain = model(&format!("{LLAMA}context = 8192"));
    let longer = model(&format!("{LLAMA}context = 16384"));
    let renamed = model(&format!("{LLAMA}context = 8192\ntier = 3\nvram_mb = 5"));
    let mut known = crate::Measurements::default();
    let seen = crate::Measurement {
        vram_mb: Some(700),
        of: Some(crate::fingerprint(&plain)),
        ..crate::Measurement::default()
    };
    known.0.insert(crate::load_key("m", None), seen);
    assert_eq!(known.vram_mb(&plain), Some(700));
    assert_eq!(known.vram_mb(&renamed), Some(700));
    assert_eq!(known.vram_mb(&longer), None);
    // A file of before there were fingerprints is read, its memory not believed.
    let old = r#"{"load:m": {"seconds": 4.0, "runs": 2, "vram_mb": 5}, "p/t": {"seconds": 1.0, "runs": 1}}"#;
    let old: crate::Measurements = serde_json::from_str(old).unwrap();
    assert_eq!(old.vram_mb(&plain), None);
    assert_eq!(old.0["load:m"].seconds, 4.0);
}

#[test]
fn a_file_that_is_not_there_is_named_without_dots() {
    let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
    let said = FileProblem::of(Path::new("/rig/./models/none"), &missing).to_string();
    assert!(said.starts_with("/rig/models/none is not there"), "{said}");
}
