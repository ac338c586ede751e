//! A prompt: its files read, sent to the model, the answer written.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rigor_queue::record::{FailureKind, LlmUse};
use rigor_queue::task::{Prompt, PromptPart, TooLong};
use serde_json::{Value, json};

use crate::Attempt;
use crate::llm::{self, Endpoint, NoAnswer};
use crate::outcome::{Ended, Failure, words};

/// The largest file that a prompt may insert, bytes: far over any context.
const FILE_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// How often a prompt is cut and sent again before it is given up.
const CUTS_MAX: usize = 8;

/// A part of a message.
#[derive(Clone, Debug)]
struct Piece {
    /// The file it comes from; none: literal text.
    file: Option<String>,
    text: String,
    /// Its length before any cut, bytes.
    original: usize,
}

/// An answer, and what it took to get it.
struct Answer {
    /// The text, or the vector as JSON.
    content: String,
    /// What to show people in the output.
    shown: String,
    llm: LlmUse,
    notes: Vec<String>,
}

impl Attempt<'_> {
    /// Sends a prompt and writes the answer. The request runs in a thread of its own: when time
    /// is up or SIGTERM comes it is left behind, and ends with this process, which is how the
    /// server learns that nobody waits any more.
    pub(crate) fn run_prompt(&mut self, prompt: &Prompt) -> Result<Ended, Failure> {
        let endpoint = Endpoint::from_environment()?;
        let plan_dir = &self.spec.plan_dir;
        let system = join(&read_parts(plan_dir, &prompt.system, prompt.too_long)?);
        let user = read_parts(plan_dir, &prompt.user, prompt.too_long)?;
        let answer_to = prompt.output.as_ref().map_or(String::new(), |output| {
            format!(", its answer to {}", plan_dir.join(output).display())
        });
        self.allowed(&format!(
            "a prompt to {} at {}{answer_to}",
            endpoint.model, endpoint.url
        ));
        let (sender, receiver) = mpsc::channel();
        let waker = self
            .signals
            .waker()
            .map_err(|error| Failure::setup(format!("make a pipe: {error}")))?;
        let request = prompt.clone();
        thread::spawn(move || {
            // Nobody listens any more when the attempt was ended meanwhile.
            let _ = sender.send(ask(&endpoint, &request, &system, user));
            waker.wake();
        });
        let answer = loop {
            match receiver.try_recv() {
                Ok(answer) => break answer?,
                Err(mpsc::TryRecvError::Empty) => {}
                Err(mpsc::TryRecvError::Disconnected) => {
                    return Err(Failure::new(
                        FailureKind::LlmError,
                        "the request's thread broke down",
                    ));
                }
            }
            self.wait_for_answer()?;
        };
        for note in &answer.notes {
            self.output.note(note);
        }
        self.output.write(answer.shown.as_bytes());
        if !answer.shown.ends_with('\n') {
            self.output.write(b"\n");
        }
        let ended = Ended {
            llm: Some(answer.llm),
            ..Ended::well()
        };
        if let Some(output) = &prompt.output {
            let path = plan_dir.join(output);
            let temporary = format!(".rigor-{}", self.args.file.attempt_stem());
            if let Err(error) = write_whole(&path, &temporary, answer.content.as_bytes()) {
                let reason = format!("write the answer to {}: {error}", path.display());
                return Ok(ended.but(Failure::setup(reason)));
            }
        }
        Ok(ended)
    }

    /// Waits for the thread, a signal, or a limit; the latter two are errors.
    fn wait_for_answer(&mut self) -> Result<(), Failure> {
        let limit = |s: Option<u64>, kind| {
            s.map(|s| {
                (
                    self.started + Duration::from_secs(s),
                    kind,
                    Duration::from_secs(s),
                )
            })
        };
        let first = [
            limit(self.spec.timeout_s, FailureKind::Timeout),
            limit(self.spec.kill_if_silent_s, FailureKind::Silent),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(at, ..)| *at);
        let now = Instant::now();
        let ran = words(now - self.started);
        if self.signals.terminate() {
            return Err(Failure::new(
                FailureKind::Aborted,
                format!("aborted after {ran}"),
            ));
        }
        match first {
            Some((at, FailureKind::Silent, limit)) if now >= at => {
                let reason = format!(
                    "silent: no answer for {ran} (kill_if_silent {})",
                    words(limit)
                );
                Err(Failure::new(FailureKind::Silent, reason))
            }
            Some((at, kind, limit)) if now >= at => {
                let reason = format!(
                    "timeout: ran {ran}, limit {}; the model had not answered",
                    words(limit)
                );
                Err(Failure::new(kind, reason))
            }
            first => {
                self.signals.wait(None, first.map(|(at, ..)| at));
                Ok(())
            }
        }
    }
}

/// Asks until the prompt fits, which is at once without `too_long: truncate`.
fn ask(
    endpoint: &Endpoint,
    prompt: &Prompt,
    system: &str,
    mut user: Vec<Piece>,
) -> Result<Answer, Failure> {
    for _ in 0..=CUTS_MAX {
        let text = join(&user);
        let sent = Instant::now();
        let asked = if endpoint.embedding {
            let body = json!({"model": endpoint.model, "input": text});
            endpoint.post("/v1/embeddings", &body)
        } else {
            endpoint.post(
                "/v1/chat/completions",
                &llm::chat(&endpoint.model, system, &text, prompt),
            )
        };
        match asked {
            Ok(reply) => {
                let mut answer = read_answer(endpoint, &reply, &user)?;
                answer.llm.request_ms = Some(sent.elapsed().as_millis() as u64);
                return Ok(answer);
            }
            Err(NoAnswer::Failed(failure)) => return Err(failure),
            Err(NoAnswer::TooLong {
                prompt_tokens,
                context,
                message,
            }) => {
                if prompt.too_long == TooLong::Fail {
                    return Err(too_long(
                        prompt_tokens,
                        context,
                        &message,
                        "`too_long: truncate` would cut it",
                    ));
                }
                let reserve = u64::from(prompt.max_tokens.unwrap_or(u32::MAX)).min(context / 4);
                let keep = if prompt_tokens == 0 || context == 0 {
                    0.5
                } else {
                    context.saturating_sub(reserve) as f64 / prompt_tokens as f64
                };
                if !cut(&mut user, system.len(), keep) {
                    return Err(too_long(
                        prompt_tokens,
                        context,
                        &message,
                        "nothing is left to cut",
                    ));
                }
            }
        }
    }
    let reason = format!(
        "the prompt does not fit the context after {CUTS_MAX} cuts; they left {} bytes",
        join(&user).len()
    );
    Err(Failure::new(FailureKind::PromptTooLong, reason))
}

fn too_long(prompt_tokens: u64, context: u64, message: &str, what: &str) -> Failure {
    let counts = if context > 0 {
        format!("the prompt has {prompt_tokens} tokens, the model's context {context}")
    } else {
        format!("the prompt is too long: {message}")
    };
    Failure::new(FailureKind::PromptTooLong, format!("{counts}; {what}"))
}

/// Cuts the end of the longest file, else of the longest text, so that about `keep` of the whole
/// prompt is left. `false`: there is nothing left to cut.
fn cut(pieces: &mut [Piece], system_bytes: usize, keep: f64) -> bool {
    /// Tokens are not spread evenly over bytes: cut a little more than the share says.
    const MARGIN: f64 = 0.95;
    let total = system_bytes + pieces.iter().map(|piece| piece.text.len()).sum::<usize>();
    let wanted = (total as f64 * (keep * MARGIN).clamp(0.0, MARGIN)) as usize;
    let mut excess = total.saturating_sub(wanted).max(1);
    let before = excess;
    while excess > 0 {
        let files_left = pieces
            .iter()
            .any(|piece| piece.file.is_some() && !piece.text.is_empty());
        let longest = pieces
            .iter_mut()
            .filter(|piece| piece.file.is_some() == files_left)
            .max_by_key(|piece| piece.text.len())
            .filter(|piece| !piece.text.is_empty());
        let Some(piece) = longest else { break };
        let length = piece.text.len();
        let end = piece
            .text
            .floor_char_boundary(length.saturating_sub(excess));
        piece.text.truncate(end);
        excess = excess.saturating_sub(length - end);
    }
    excess < before
}

fn read_answer(endpoint: &Endpoint, reply: &Value, user: &[Piece]) -> Result<Answer, Failure> {
    let unexpected = |what: &str| {
        let reason = format!(
            "the server's answer holds no {what}: {}",
            llm::quote(&reply.to_string())
        );
        Failure::new(FailureKind::LlmError, reason)
    };
    let (content, shown, finish) = if endpoint.embedding {
        let vector = reply.pointer("/data/0/embedding").and_then(Value::as_array);
        let vector = vector.ok_or_else(|| unexpected("data[0].embedding"))?;
        let content = Value::from(vector.clone()).to_string();
        (
            content,
            format!("[rigor] a vector of {} dimensions", vector.len()),
            None,
        )
    } else {
        let text = reply
            .pointer("/choices/0/message/content")
            .and_then(Value::as_str);
        let text = text.ok_or_else(|| unexpected("choices[0].message.content"))?;
        let finish = reply
            .pointer("/choices/0/finish_reason")
            .and_then(Value::as_str);
        (text.to_owned(), text.to_owned(), finish)
    };
    let count = |key: &str| {
        reply
            .pointer(&format!("/usage/{key}"))
            .and_then(Value::as_u64)
            .unwrap_or(0)
    };
    let llm = LlmUse {
        model: endpoint.model.clone(),
        prompt_tokens: count("prompt_tokens"),
        completion_tokens: count("completion_tokens"),
        truncated: user.iter().any(|piece| piece.text.len() < piece.original),
        request_ms: None,
    };
    let mut notes: Vec<String> = user
        .iter()
        .filter(|piece| piece.text.len() < piece.original)
        .map(|piece| {
            let what = piece.file.as_deref().unwrap_or("the message");
            format!(
                "prompt cut to fit the model's context: {} of {} bytes of {what} were sent",
                piece.text.len(),
                piece.original
            )
        })
        .collect();
    if finish == Some("length") {
        notes.push(format!(
            "the answer ends at its limit of {} tokens",
            llm.completion_tokens
        ));
    }
    Ok(Answer {
        content,
        shown,
        llm,
        notes,
    })
}

fn join(pieces: &[Piece]) -> String {
    pieces.iter().map(|piece| piece.text.as_str()).collect()
}

fn read_parts(
    plan_dir: &Path,
    parts: &[PromptPart],
    too_long: TooLong,
) -> Result<Vec<Piece>, Failure> {
    parts
        .iter()
        .map(|part| match part {
            PromptPart::Text(text) => Ok(Piece {
                file: None,
                text: text.clone(),
                original: text.len(),
            }),
            PromptPart::File(file) => {
                let (text, original) = read_file(&plan_dir.join(file), too_long)?;
                Ok(Piece {
                    file: Some(file.clone()),
                    text,
                    original,
                })
            }
        })
        .collect()
}

/// A file's text, and how long the file is.
fn read_file(path: &Path, too_long: TooLong) -> Result<(String, usize), Failure> {
    let failed = |error: io::Error| {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => FailureKind::MissingRequirement,
            _ => FailureKind::Setup,
        };
        Failure::new(
            kind,
            format!("the prompt's file {}: {error}", path.display()),
        )
    };
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(Failure::setup(format!(
            "the prompt's file {} is not a regular file",
            path.display()
        )));
    }
    let length = meta.len();
    if length > FILE_MAX_BYTES && too_long == TooLong::Fail {
        let reason = format!(
            "the prompt's file {} has {length} bytes, the limit is {FILE_MAX_BYTES}",
            path.display()
        );
        return Err(Failure::new(FailureKind::PromptTooLong, reason));
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX_BYTES)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let whole = bytes.len() as u64 >= length;
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        // A cut in the middle of a character is ours.
        Err(error) if !whole && error.utf8_error().error_len().is_none() => {
            let end = error.utf8_error().valid_up_to();
            let mut bytes = error.into_bytes();
            bytes.truncate(end);
            String::from_utf8(bytes).expect("it is valid up to there")
        }
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            return Err(Failure::setup(format!(
                "the prompt's file {} is not UTF-8 text (byte {at})",
                path.display()
            )));
        }
    };
    let original = if whole { text.len() } else { length as usize };
    Ok((text, original))
}

/// Writes a file whole or not at all; after a power cut it is whole if the attempt's record is there.
fn write_whole(path: &Path, temporary: &str, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    let temporary = dir.join(temporary);
    let written = (|| {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // Litter on a full disk helps nobody; the error that counts is the first.
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(file: Option<&str>, text: &str) -> Piece {
        Piece {
            file: file.map(str::to_owned),
            text: text.to_owned(),
            original: text.len(),
        }
    }

    #[test]
    fn the_longest_file_is_cut_first_and_text_last() {
        let mut pieces = [
            piece(None, &"q".repeat(300)),
            piece(Some("a"), &"a".repeat(100)),
            piece(Some("b"), &"b".repeat(200)),
        ];
        assert!(cut(&mut pieces, 0, 0.9));
        assert_eq!((pieces[0].text.len(), pieces[1].text.len()), (300, 100));
        assert!(pieces[2].text.len() < 200 && !pieces[2].text.is_empty());
        assert!(cut(&mut pieces, 0, 0.3));
        assert!(
            pieces[1].text.is_empty() && pieces[2].text.is_empty() && pieces[0].text.len() < 300
        );
        assert!(cut(&mut pieces, 0, 0.0));
        assert!(!cut(&mut pieces, 0, 0.5), "nothing is left");
    }

    #[test]
    fn a_cut_never_splits_a_character() {
        let mut pieces = [piece(Some("a"), &"ä€😀".repeat(50))];
        while cut(&mut pieces, 10, 0.9) {}
        assert!(pieces[0].text.is_empty());
    }
}
