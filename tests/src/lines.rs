//! Lines of logs, compared with patterns that hold the words of the contract.

use regex::Regex;

/// The first line that the pattern matches.
pub fn find(text: &str, pattern: &str) -> Option<String> {
    let pattern = Regex::new(pattern).expect("a pattern");
    text.lines()
        .find(|line| pattern.is_match(line))
        .map(str::to_owned)
}

/// Every line that the pattern matches.
pub fn all(text: &str, pattern: &str) -> Vec<String> {
    let pattern = Regex::new(pattern).expect("a pattern");
    text.lines()
        .filter(|line| pattern.is_match(line))
        .map(str::to_owned)
        .collect()
}

/// The number that the pattern's first group holds in the line.
pub fn number(line: &str, pattern: &str) -> Option<u64> {
    let pattern = Regex::new(pattern).expect("a pattern");
    pattern.captures(line)?.get(1)?.as_str().parse().ok()
}

/// The time of a line of a log file, seconds since 1970.
pub fn seconds(line: &str) -> Option<f64> {
    let stamp = line.strip_prefix('[')?.split(']').next()?;
    let at: jiff::Timestamp = stamp.parse().ok()?;
    Some(at.as_microsecond() as f64 / 1e6)
}
