//! A shell command: started, watched, ended.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rigor_exec::{WorkerArgs, gpu_memory, oom};
use rigor_queue::record::FailureKind;
use rigor_queue::task::Class;
use rustix::process::{Signal, WaitStatus, kill_process_group};

use crate::Attempt;
use crate::environment::{self, Environment};
use crate::executor::one_line;
use crate::fence;
use crate::outcome::{Ended, Failure, words};
use crate::tree::{Main, group_lives};

/// Read from the pipe at a time, bytes: what a pipe holds.
const READ_BYTES: usize = 64 * 1024;
/// Read at most after everything is dead, bytes: a process that is none of ours may hold the pipe.
const DRAIN_MAX_BYTES: usize = 16 * READ_BYTES;
/// How long processes that outlive the command may take to end by themselves: what `> >(tee log)`
/// started has lines to write.
const LINGER: Duration = Duration::from_millis(200);
/// The kernel's limit for one argument is 32 pages (MAX_ARG_STRLEN, 128 KiB), bytes.
const ARGUMENT_MAX_BYTES: usize = 120 * 1024;
/// How much of the last line of output goes into a reason, bytes.
const QUOTE_BYTES: usize = 200;

/// Why a command is being ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Timeout,
    Silent,
    Aborted,
}

impl Attempt<'_> {
    /// Runs a command to its end, and the end of all that it started.
    pub(crate) fn run_command(&mut self, command: &str) -> Result<Ended, Failure> {
        let environment = environment::of(self.spec)?;
        self.allowed(&format!(
            "bash in {}: {}",
            environment.dir.display(),
            one_line(command)
        ));
        let oom_before = oom::kills();
        let (mut main, mut pipe) = start(command, &environment, self.args)?;
        let watched = self.watch(&mut main, &mut pipe);
        let deadline = Instant::now() + self.args.grace;
        self.args.groups.kill_command();
        match main.kill_descendants(self.signals, deadline) {
            Ok(_) => {}
            Err(pids) => self.log.warning(&format!(
                "task {}: processes {pids:?} survive SIGKILL",
                self.spec.id.short()
            )),
        }
        self.drain(&mut pipe);
        Ok(self.judge(&main, watched, oom_before))
    }

    /// Reads output until the command has ended or was asked to in vain.
    fn watch(&mut self, main: &mut Main, pipe: &mut PipeReader) -> Option<(Cause, Instant)> {
        let mut buffer = vec![0; READ_BYTES];
        let mut open = true;
        let mut last_output = self.started;
        let timeout = self
            .spec
            .timeout_s
            .map(|s| self.started + Duration::from_secs(s));
        let silent = self.spec.kill_if_silent_s.map(Duration::from_secs);
        let mut ending: Option<(Cause, Instant)> = None;
        let mut linger: Option<Instant> = None;
        loop {
            let silent_at = silent.map(|limit| last_output + limit);
            let until = match (ending, linger) {
                (_, Some(until)) => Some(until),
                (Some((_, asked)), None) => Some(asked + self.args.grace),
                (None, None) => timeout.into_iter().chain(silent_at).min(),
            };
            let fd = pipe.as_fd();
            if self.signals.wait(open.then_some(fd), until) {
                match pipe.read(&mut buffer) {
                    Ok(0) => open = false,
                    Ok(n) => {
                        self.output.write(&buffer[..n]);
                        last_output = Instant::now();
                    }
                    Err(error) if again(&error) => {}
                    Err(_) => open = false,
                }
            }
            let alone = main.reap();
            let now = Instant::now();
            if let Some((_, asked)) = ending {
                // Others of its group may still clean up when the shell is gone.
                let over = main.status().is_some() && !group_lives(main.pid());
                if over || now >= asked + self.args.grace {
                    return ending;
                }
                continue;
            }
            if main.status().is_some() {
                let until = *linger.get_or_insert(now + LINGER);
                // Who holds the pipe no more has nothing left to tell.
                if alone || !open || now >= until {
                    return None;
                }
                continue;
            }
            let cause = if self.signals.terminate() {
                Cause::Aborted
            } else if timeout.is_some_and(|at| now >= at) {
                Cause::Timeout
            } else if silent.is_some_and(|limit| now >= last_output + limit) {
                Cause::Silent
            } else {
                continue;
            };
            // It was not reaped, so its group is its own.
            let _ = kill_process_group(main.pid(), Signal::TERM);
            // A stopped process does not see the request before it goes on.
            let _ = kill_process_group(main.pid(), Signal::CONT);
            ending = Some((cause, now));
        }
    }

    /// What a script printed of GPU memory that did not suffice.
    fn gpu_shortage(&self) -> Option<String> {
        if self.spec.class != Class::Script {
            return None;
        }
        let tail = self.output.tail(gpu_memory::TAIL_BYTES)?;
        let line = gpu_memory::shortage(&tail)?;
        Some(line[..line.floor_char_boundary(QUOTE_BYTES)].to_owned())
    }

    /// What is left in the pipe, without waiting for those who hold its other end.
    fn drain(&mut self, pipe: &mut PipeReader) {
        let mut buffer = vec![0; READ_BYTES];
        let mut rest = DRAIN_MAX_BYTES;
        while rest > 0 {
            match pipe.read(&mut buffer) {
                Ok(0) => return,
                Ok(n) => {
                    self.output.write(&buffer[..n]);
                    rest = rest.saturating_sub(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn judge(
        &self,
        main: &Main,
        ending: Option<(Cause, Instant)>,
        oom_before: Option<u64>,
    ) -> Ended {
        let status = main.status();
        let mut ended = Ended::well();
        ended.exit_code = status.and_then(WaitStatus::exit_status);
        ended.signal = status.and_then(WaitStatus::terminating_signal);
        if let Some((cause, asked)) = ending {
            let ran = words(asked - self.started);
            let limit = |s: Option<u64>| words(Duration::from_secs(s.unwrap_or(0)));
            let (kind, mut reason) = match cause {
                Cause::Timeout => {
                    let limit = limit(self.spec.timeout_s);
                    (
                        FailureKind::Timeout,
                        format!("timeout: ran {ran}, limit {limit}"),
                    )
                }
                Cause::Silent => {
                    let limit = limit(self.spec.kill_if_silent_s);
                    let reason = format!(
                        "silent: printed nothing for {limit} (kill_if_silent {limit}), ran {ran}"
                    );
                    (FailureKind::Silent, reason)
                }
                Cause::Aborted => (FailureKind::Aborted, format!("aborted after {ran}")),
            };
            if ended.signal == Some(Signal::KILL.as_raw()) {
                let grace = words(self.args.grace);
                reason.push_str(&format!("; SIGTERM did not end it within {grace}, killed"));
            }
            return self.explained(ended, Failure::new(kind, reason), oom_before);
        }
        let ran = words(self.started.elapsed());
        let failure = match (ended.exit_code, ended.signal) {
            (Some(0), _) => return ended,
            (code, signal) if let Some(line) = self.gpu_shortage() => {
                let how = match (code, signal) {
                    (Some(code), _) => format!("exit code {code}"),
                    (None, signal) => format!("signal {}", signal.unwrap_or(0)),
                };
                let reason = format!("out of GPU memory after {ran} ({how}): {line}");
                Failure::new(FailureKind::OutOfMemory, reason)
            }
            (Some(code), _) => {
                let said = self.output.last_line(QUOTE_BYTES);
                let said = said.map(|line| format!(": {line}")).unwrap_or_default();
                let reason = format!("exit code {code} after {ran}{said}");
                Failure::new(FailureKind::ExitCode, reason)
            }
            (None, Some(signal)) => {
                let name = signal_hook::low_level::signal_name(signal).unwrap_or("unnamed");
                let reason = format!("ended by signal {signal} ({name}) after {ran}");
                Failure::new(FailureKind::Signal, reason)
            }
            (None, None) => Failure::setup("the command's end was never reported"),
        };
        self.explained(ended, failure, oom_before)
    }

    /// The failure, with the limit that it came of.
    fn explained(&self, ended: Ended, failure: Failure, oom_before: Option<u64>) -> Ended {
        let ended_by = (ended.exit_code, ended.signal);
        let said = self.output.last_line(QUOTE_BYTES);
        let ran = self.started.elapsed();
        let said = said.as_deref();
        ended.but(fence::explain(
            failure, self.args, ended_by, oom_before, ran, said,
        ))
    }
}

/// Starts bash in a process group of its own, both its outputs in one pipe.
fn start(
    command: &str,
    environment: &Environment,
    args: &WorkerArgs,
) -> Result<(Main, PipeReader), Failure> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| Failure::setup(format!("{what}: {error}"))
    };
    let (reader, writer) = io::pipe().map_err(failed("make a pipe"))?;
    rustix::io::ioctl_fionbio(&reader, true)
        .map_err(|errno| failed("make a pipe")(errno.into()))?;
    // Held until the child has its copy.
    let script = script(command).map_err(failed("write the command to memory"))?;
    let (shell, launcher) = match environment.launcher.split_first() {
        None => ("bash".into(), &[][..]),
        Some((program, rest)) => (program.clone(), rest),
    };
    let mut bash = Command::new(&shell);
    bash.args(launcher);
    if !environment.launcher.is_empty() {
        bash.arg("bash");
    }
    match &script {
        Some(file) => bash.arg(format!("/proc/self/fd/{}", file.as_raw_fd())),
        // `conda run` refuses arguments of several lines, so it does not see the command.
        None if !environment.launcher.is_empty() => bash
            .args(["-c", r#"eval "$RIGOR_COMMAND""#])
            .env("RIGOR_COMMAND", command),
        None => bash.arg("-c").arg(command),
    };
    for name in &environment.unset {
        bash.env_remove(name);
    }
    bash.envs(&environment.set)
        .current_dir(&environment.dir)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(writer.try_clone().map_err(failed("copy a pipe's end"))?)
        .stderr(writer);
    fence::put_up(&mut bash, args)?;
    let child = bash.spawn();
    let child = child.map_err(failed(&format!("start {}", shell.to_string_lossy())))?;
    // The command holds this process's copies of the pipe's other end.
    drop(bash);
    Ok((Main::new(child.id()), reader))
}

/// A command that is too long for an argument, as a file in memory that the child inherits.
fn script(command: &str) -> io::Result<Option<File>> {
    if command.len() <= ARGUMENT_MAX_BYTES {
        return Ok(None);
    }
    let memory = rustix::fs::memfd_create("command", rustix::fs::MemfdFlags::empty())?;
    let mut file = File::from(memory);
    file.write_all(command.as_bytes())?;
    Ok(Some(file))
}

fn again(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
