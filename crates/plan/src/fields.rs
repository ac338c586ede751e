//! The fields of a task, and their scalar values.

use jiff::{SignedDuration, Span, SpanRelativeTo};
use rigor_queue::task::Backoff;

use crate::plan::MaxFailed;

macro_rules! fields {
    ($($variant:ident $name:literal,)*) => {
        /// A field that a task may have.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Field { $($variant,)* }

        impl Field {
            pub(crate) const ALL: &[Field] = &[$(Field::$variant,)*];

            pub(crate) fn name(self) -> &'static str {
                match self { $(Field::$variant => $name,)* }
            }
        }
    };
}

fields! {
    Executor "executor",
    TaskClass "task_class",
    Command "command",
    Prompt "prompt",
    PromptFile "prompt_file",
    System "system",
    Temperature "temperature",
    MaxTokens "max_tokens",
    Seed "seed",
    TooLong "too_long",
    Output "output",
    Schema "schema",
    DependsOn "depends_on",
    Foreach "foreach",
    BatchSize "batch_size",
    MaxParallel "max_parallel",
    Cpus "cpus",
    On "on",
    MaxFailed "max_failed",
    LlmModel "llm_model",
    LlmMinTier "llm_min_tier",
    LlmPlacement "llm_placement",
    VramPolicy "vram_policy",
    VramEstimateMb "vram_estimate_mb",
    Timeout "timeout",
    KillIfSilent "kill_if_silent",
    Retries "retries",
    Backoff "backoff",
    Priority "priority",
    Env "env",
    EnvFile "env_file",
    Venv "venv",
    Conda "conda",
    Secrets "secrets",
    Workdir "workdir",
    Requires "requires",
    Produces "produces",
    Resume "resume",
    OnFailure "on_failure",
}

impl Field {
    pub(crate) fn parse(name: &str) -> Option<Field> {
        Field::ALL
            .iter()
            .copied()
            .find(|field| field.name() == name)
    }

    /// One of the three that say what a task does.
    pub(crate) fn is_work(self) -> bool {
        matches!(self, Field::Command | Field::Prompt | Field::PromptFile)
    }
}

/// The longest wait that a plan may name: a year.
const DURATION_MAX_S: i64 = 366 * 24 * 3600;

/// Whole seconds of `30m`, `1h 30m`, `2d`; rounded up, at least 1.
pub(crate) fn duration(text: &str) -> Result<u64, String> {
    let help = || "a duration is written `90s`, `30m`, `1h 30m` or `2d`".to_owned();
    let span: Span = text.parse().map_err(|_| help())?;
    let length: SignedDuration = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(|_| help())?;
    let seconds = length.as_secs() + i64::from(length.subsec_nanos() > 0);
    match seconds {
        ..=0 => Err("a duration is longer than nothing; leave the field out for none".to_owned()),
        1..=DURATION_MAX_S => Ok(seconds as u64),
        _ => Err("a duration is at most a year".to_owned()),
    }
}

/// `10s..5m`, or one duration for a wait that does not grow.
pub(crate) fn backoff(text: &str) -> Result<Backoff, String> {
    let (first, most) = text.split_once("..").unwrap_or((text, text));
    let (first_s, most_s) = (duration(first.trim())?, duration(most.trim())?);
    if first_s > most_s {
        return Err("the first wait is the shorter one: `10s..5m`".to_owned());
    }
    Ok(Backoff { first_s, most_s })
}

/// `3` or `10%`.
pub(crate) fn max_failed(text: &str) -> Result<MaxFailed, String> {
    let help = || "a count such as `3`, or a percentage such as `10%`".to_owned();
    match text.strip_suffix('%') {
        Some(percent) => percent
            .trim()
            .parse()
            .ok()
            .filter(|percent| (0.0..=100.0).contains(percent))
            .map(MaxFailed::Percent)
            .ok_or_else(help),
        None => text.parse().map(MaxFailed::Count).map_err(|_| help()),
    }
}

/// A whole number of a range.
pub(crate) fn number<T>(text: &str, range: std::ops::RangeInclusive<T>) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    text.parse()
        .ok()
        .filter(|n| range.contains(n))
        .ok_or_else(|| format!("a whole number from {} to {}", range.start(), range.end()))
}

/// The elements of a comma-separated list, each with its offset, without backticks.
pub(crate) fn list(text: &str) -> Vec<(&str, usize)> {
    let mut elements = Vec::new();
    let (mut at, mut depth) = (0, 0_i32);
    // The comma of a pattern such as `*.{png,jpg}` separates nothing.
    let separates = |c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == '\n' || (c == ',' && depth <= 0)
    };
    for part in text.split(separates) {
        let trimmed = part.trim();
        let (element, shift) = crate::markdown::unquoted(trimmed);
        if !element.is_empty() {
            elements.push((element, at + (part.len() - part.trim_start().len()) + shift));
        }
        at += part.len() + 1;
    }
    elements
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, expected) in [
            ("30m", Some(1800)),
            ("1h 30m", Some(5400)),
            ("2d", Some(172_800)),
            ("90s", Some(90)),
            ("1500ms", Some(2)),
            ("0s", None),
            ("-5m", None),
            ("30", None),
            ("400d", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(duration(text).ok(), expected, "of {text:?}");
        }
    }

    #[test]
    fn backoffs() {
        let of = |text| backoff(text).ok().map(|b| (b.first_s, b.most_s));
        assert_eq!(of("10s..5m"), Some((10, 300)));
        assert_eq!(of("30s"), Some((30, 30)));
        assert_eq!(of("5m..10s"), None);
    }

    #[test]
    fn failures_that_are_allowed() {
        assert!(max_failed("10%").unwrap().allows(10, 100));
        assert!(!max_failed("10%").unwrap().allows(11, 100));
        assert!(max_failed("3").unwrap().allows(3, 3));
        assert!(!max_failed("0").unwrap().allows(1, 500));
        assert!(max_failed("101%").is_err() && max_failed("NaN%").is_err());
    }
}
