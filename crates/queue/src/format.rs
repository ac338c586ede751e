//! The envelope of everything that is written once and believed later:
//! `{"schema":1,"sum":"<16 hex digits>","body":{...}}`, the sum over the exact bytes of the body.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

/// The newest schema this build reads; it is the only one so far.
pub(crate) const SCHEMA: u32 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    schema: u32,
    #[serde(borrow)]
    sum: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// The bytes of a value in its envelope, a line.
pub(crate) fn seal<T: Serialize>(value: &T) -> Vec<u8> {
    let body = serde_json::to_string(value).expect("our own types serialise: string keys, no NaN");
    let mut text = format!(
        "{{\"schema\":{SCHEMA},\"sum\":\"{}\",\"body\":",
        sum(body.as_bytes())
    );
    text.push_str(&body);
    text.push_str("}\n");
    text.into_bytes()
}

/// Reads an envelope; the error says in words what is wrong.
pub(crate) fn unseal<T: DeserializeOwned>(bytes: &[u8]) -> std::result::Result<T, String> {
    if bytes.is_empty() {
        return Err("it is empty".to_owned());
    }
    // Read first, so that a newer file is named as newer and not as malformed.
    #[derive(Deserialize)]
    struct Version {
        schema: u32,
    }
    let version: Version = serde_json::from_slice(bytes)
        .map_err(|error| format!("it is not a Rigor file: {error}"))?;
    if version.schema != SCHEMA {
        return Err(format!(
            "its schema is {}, and this build reads {SCHEMA}; use the Rigor that wrote it",
            version.schema
        ));
    }
    let envelope: Envelope<'_> =
        serde_json::from_slice(bytes).map_err(|error| format!("it is malformed: {error}"))?;
    debug_assert_eq!(envelope.schema, SCHEMA);
    let body = envelope.body.get();
    let actual = sum(body.as_bytes());
    if envelope.sum != actual {
        return Err(format!(
            "its checksum is {actual}, not {} as it says: it was damaged or edited",
            envelope.sum
        ));
    }
    serde_json::from_str(body).map_err(|error| format!("it does not say what it must: {error}"))
}

/// What to add to the refusal of a file without an envelope: its schema, where that is newer.
pub(crate) fn newer(bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Version {
        schema: u32,
    }
    match serde_json::from_slice::<Version>(bytes) {
        Ok(version) if version.schema > SCHEMA => format!(
            "; its schema is {}, and this build reads {SCHEMA}",
            version.schema
        ),
        _ => String::new(),
    }
}

/// Whether bytes that [`unseal`] refuses are whole all the same: of another version, or with fields
/// that this build does not know. Neither is torn, and neither must count as absent.
pub(crate) fn is_whole(bytes: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Sealed<'a> {
        #[serde(borrow)]
        sum: std::borrow::Cow<'a, str>,
        #[serde(borrow)]
        body: &'a RawValue,
    }
    serde_json::from_slice::<Sealed<'_>>(bytes)
        .is_ok_and(|sealed| sealed.sum == sum(sealed.body.get().as_bytes()))
}

fn sum(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let digest = Sha256::digest(bytes);
    digest[..8]
        .iter()
        .fold(String::with_capacity(16), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_is_seen() {
        let sealed = seal(&serde_json::json!({"command": "echo hello", "n": 17}));
        assert!(unseal::<serde_json::Value>(&sealed).is_ok());
        for at in 0..sealed.len() - 1 {
            for bit in 0..8 {
                let mut damaged = sealed.clone();
                damaged[at] ^= 1 << bit;
                assert!(
                    unseal::<serde_json::Value>(&damaged).is_err(),
                    "byte {at} bit {bit}"
                );
            }
        }
    }

    #[test]
    fn a_newer_schema_is_refused_by_name() {
        let error = unseal::<serde_json::Value>(br#"{"schema":2,"sum":"x","body":{},"new":1}"#);
        assert!(error.unwrap_err().contains("its schema is 2"));
    }

    #[test]
    fn torn_files_are_refused() {
        let sealed = seal(&serde_json::json!({"a": [1, 2, 3]}));
        for length in 0..sealed.len() - 1 {
            assert!(
                unseal::<serde_json::Value>(&sealed[..length]).is_err(),
                "{length} bytes"
            );
        }
    }
}
