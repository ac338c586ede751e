//! From tracing's events to lines in the record and in the terminal.

use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Map;
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking};
use tracing_subscriber::layer::{Context, Layer};

use crate::level::Level;
use crate::line::{Fields, Line, now};
use crate::queue::{Notice, Queue};

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Short { colour: bool },
    Text,
    Json,
}

impl Form {
    fn write(self, line: &Line<'_>) -> String {
        match self {
            Form::Short { colour } => line.short(colour),
            Form::Text => line.text(),
            Form::Json => line.json(),
        }
    }

    /// How the outputs themselves speak up.
    pub(crate) fn notice(self, component: &str) -> Notice {
        let component = component.to_owned();
        Box::new(move |level, message| {
            self.write(&Line {
                time: now(),
                component: &component,
                level,
                message,
                fields: Map::new(),
            })
        })
    }
}

/// Where lines go.
pub(crate) struct Outputs {
    pub(crate) record: Queue,
    pub(crate) record_form: Form,
    pub(crate) terminal: Option<Terminal>,
}

impl Outputs {
    fn write(&self, line: &Line<'_>) {
        self.record.push(self.record_form.write(line), line.level);
        if let Some(terminal) = &self.terminal {
            terminal.write(line);
        }
    }

    pub(crate) fn flush(&self, limit: Duration) -> bool {
        self.record.flush(limit)
    }
}

/// The record's copy on stderr. It loses lines, and says so, when nobody reads it fast enough.
pub(crate) struct Terminal {
    form: Form,
    writer: Mutex<Writer>,
}

struct Writer {
    writer: NonBlocking,
    counter: ErrorCounter,
    confessed: usize,
}

impl Terminal {
    pub(crate) fn new(writer: NonBlocking, form: Form) -> Terminal {
        let counter = writer.error_counter();
        Terminal {
            form,
            writer: Mutex::new(Writer {
                writer,
                counter,
                confessed: 0,
            }),
        }
    }

    fn write(&self, line: &Line<'_>) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let before = writer.counter.dropped_lines();
        // It only hands over to its thread, and counts where it cannot.
        let _ = writer.writer.write_all(self.form.write(line).as_bytes());
        let dropped = writer.counter.dropped_lines();
        if dropped == before && dropped > writer.confessed {
            let count = dropped - writer.confessed;
            let message = format!("{count} lines are missing here; the log file has them");
            let said = (self.form.notice(line.component))(Level::Warning, message);
            writer.confessed = dropped;
            let _ = writer.writer.write_all(said.as_bytes());
        }
    }
}

/// tracing's side.
pub(crate) struct Lines {
    component: String,
    outputs: Arc<Outputs>,
}

impl Lines {
    pub(crate) fn new(component: &str, outputs: Arc<Outputs>) -> Lines {
        Lines {
            component: component.to_owned(),
            outputs,
        }
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        self.outputs.write(&Line {
            time: now(),
            component: &self.component,
            level: Level::from(*event.metadata().level()),
            message: fields.message,
            fields: fields.fields,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::mpsc;

    use tracing_appender::non_blocking::NonBlockingBuilder;

    use super::*;

    /// Writes when the test lets it, and tells the test what.
    struct Gated {
        gate: mpsc::Receiver<()>,
        written: mpsc::Sender<String>,
    }

    impl io::Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // A gate that is gone is open.
            let _ = self.gate.recv();
            let _ = self
                .written
                .send(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stopped_terminal_holds_nobody_up_and_says_what_is_missing() {
        let (open, gate) = mpsc::channel();
        let (written, read) = mpsc::channel();
        let builder = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(4);
        let (writer, _guard) = builder.finish(Gated { gate, written });
        let terminal = Terminal::new(writer, Form::Text);
        let say = |message: &str| {
            let (level, message) = (Level::Info, message.to_owned());
            terminal.write(&Line {
                time: now(),
                component: "brain",
                level,
                message,
                fields: Map::new(),
            });
        };
        for _ in 0..100 {
            say("while it is stopped");
        }
        drop(open);
        let limit = Duration::from_secs(20);
        // Those that fitted: four that waited, and the one that its thread may have taken.
        let mut shown = 0;
        for _ in 0..4 {
            assert!(
                read.recv_timeout(limit)
                    .unwrap()
                    .ends_with("INFO  while it is stopped\n")
            );
            shown += 1;
        }
        say("again");
        let notice = loop {
            let line = read.recv_timeout(limit).unwrap();
            match line.split_once("WARNING ") {
                Some((_, notice)) => break notice.to_owned(),
                None if line.ends_with("while it is stopped\n") => shown += 1,
                None => assert!(line.ends_with("again\n"), "{line}"),
            }
        };
        assert_eq!(
            notice,
            format!(
                "{} lines are missing here; the log file has them\n",
                100 - shown
            )
        );
    }
}
