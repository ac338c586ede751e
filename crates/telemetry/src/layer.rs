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
        Box::new(move |level, message| Some(self.say(&component, level, message)))
    }

    fn say(self, component: &str, level: Level, message: String) -> String {
        self.write(&Line {
            time: now(),
            component,
            level,
            message,
            fields: Map::new(),
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
    /// Missing lines that the terminal was told of.
    confessed: usize,
    /// Notices that did not get through themselves; the counter has them too.
    lost_notices: usize,
}

impl Writer {
    /// Hands a line over; whether there was room for it.
    fn put(&mut self, line: &str) -> bool {
        let before = self.counter.dropped_lines();
        // It only hands over to its thread, and counts where it cannot.
        let _ = self.writer.write_all(line.as_bytes());
        self.counter.dropped_lines() == before
    }
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
                lost_notices: 0,
            }),
        }
    }

    fn write(&self, line: &Line<'_>) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if !writer.put(&self.form.write(line)) {
            return;
        }
        let missing = writer.counter.dropped_lines() - writer.lost_notices;
        if missing > writer.confessed {
            let count = missing - writer.confessed;
            let message = format!("{count} lines are missing here; the log file has them");
            if writer.put(&self.form.say(line.component, Level::Warning, message)) {
                writer.confessed = missing;
            } else {
                writer.lost_notices += 1;
            }
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
        began: mpsc::Sender<()>,
        gate: mpsc::Receiver<()>,
        written: mpsc::Sender<String>,
    }

    struct Stopped {
        terminal: Terminal,
        began: mpsc::Receiver<()>,
        open: mpsc::Sender<()>,
        read: mpsc::Receiver<String>,
        _guard: tracing_appender::non_blocking::WorkerGuard,
    }

    /// A terminal that takes four lines, and one that its thread is writing.
    fn stopped() -> Stopped {
        let (open, gate) = mpsc::channel();
        let (written, read) = mpsc::channel();
        let (begins, began) = mpsc::channel();
        let builder = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(4);
        let (writer, guard) = builder.finish(Gated {
            began: begins,
            gate,
            written,
        });
        Stopped {
            terminal: Terminal::new(writer, Form::Text),
            began,
            open,
            read,
            _guard: guard,
        }
    }

    impl Stopped {
        fn say(&self, message: &str) {
            let (level, message) = (Level::Info, message.to_owned());
            self.terminal.write(&Line {
                time: now(),
                component: "brain",
                level,
                message,
                fields: Map::new(),
            });
        }
    }

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn a_notice_that_finds_no_room_is_made_up_for() {
        let stopped = stopped();
        stopped.say("being written");
        stopped.began.recv_timeout(LIMIT).unwrap();
        for _ in 0..4 {
            stopped.say("waits");
        }
        for _ in 0..5 {
            stopped.say("lost");
        }
        // Room for one: the line gets it, and what it has to say of the five does not.
        stopped.open.send(()).unwrap();
        stopped.began.recv_timeout(LIMIT).unwrap();
        stopped.say("the last that fits");
        drop(stopped.open);
        for _ in 0..6 {
            let line = stopped.read.recv_timeout(LIMIT).unwrap();
            assert!(
                !line.contains("missing") && !line.contains("lost"),
                "{line}"
            );
        }
        let again = Stopped {
            open: mpsc::channel().0,
            ..stopped
        };
        again.say("again");
        assert!(again.read.recv_timeout(LIMIT).unwrap().ends_with("again\n"));
        let notice = again.read.recv_timeout(LIMIT).unwrap();
        assert!(
            notice.contains("WARNING 5 lines are missing here; "),
            "{notice}"
        );
    }

    impl io::Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Not each test wants to know.
            let _ = self.began.send(());
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
        let Stopped {
            terminal,
            open,
            read,
            began: _began,
            _guard,
        } = stopped();
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
        // Those that fitted: four that waited, and the one that its thread may have taken.
        let mut shown = 0;
        for _ in 0..4 {
            assert!(
                read.recv_timeout(LIMIT)
                    .unwrap()
                    .ends_with("INFO  while it is stopped\n")
            );
            shown += 1;
        }
        say("again");
        let notice = loop {
            let line = read.recv_timeout(LIMIT).unwrap();
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
