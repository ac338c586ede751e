//! The operator's command line: `rigor`.
//!
//! Data goes to stdout, talk to stderr. Exit codes: 0 ok, 1 failed, 2 usage; a wait also ends
//! with 3 (cancelled) and 4 (the brain is not running).

mod args;
mod boot;
mod check;
mod clean;
mod components;
mod control;
mod detached;
mod doctor;
mod down;
mod exit;
mod fsck;
mod init;
mod load;
mod log_level;
mod logs;
mod models;
mod nvml;
mod one_task;
mod report;
mod show;
mod status;
mod submit;
mod target;
mod tasks;
mod terminal;
mod tmux;
mod up;
mod wait;
mod why;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Arguments, Command};
use exit::Exit;

/// Runs the command that the process's arguments name.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    match dispatch(&arguments) {
        Ok(exit) => exit.into(),
        // `rigor tasks | head`: the reader has what it wants.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::note(format!("rigor: {error:#}"));
            Exit::Failed.into()
        }
    }
}

fn dispatch(arguments: &Arguments) -> anyhow::Result<Exit> {
    let at = &arguments.rig;
    match &arguments.command {
        Command::Init(args) => init::run(args),
        Command::Up(args) => up::run(at, args),
        Command::Down(args) => down::run(at, args),
        Command::Check(args) => check::run(at, args),
        Command::Submit(args) => submit::run(at, args),
        Command::Run(args) => one_task::run(at, args),
        Command::Status(args) => status::run(at, args),
        Command::Tasks(args) => tasks::run(at, args),
        Command::Models(args) => models::run(at, args),
        Command::Show(args) => show::run(at, args),
        Command::Logs(args) => logs::run(at, args),
        Command::Why(args) => why::run(at, args),
        Command::LogLevel(args) => log_level::run(at, args),
        Command::Wait(args) => wait::run(at, args),
        Command::Cancel(args) => control::cancel(at, args),
        Command::Retry(args) => control::retry(at, args),
        Command::Hold(args) => control::hold(at, args),
        Command::Release(args) => control::release(at, args),
        Command::Pause(args) => control::pause(at, args),
        Command::Resume(args) => control::resume(at, args),
        Command::Drain(args) => control::drain(at, args),
        Command::Load(args) => load::load(at, args),
        Command::Unload(args) => load::unload(at, args),
        Command::Doctor(args) => doctor::run(at, args),
        Command::Fsck(args) => fsck::run(at, args),
        Command::Clean(args) => clean::run(at, args),
        Command::Report(args) => report::run(at, args),
        Command::Completions(args) => completions(args.shell),
        Command::Detached(args) => detached::become_it(args),
    }
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "rigor", &mut script);
    terminal::print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
