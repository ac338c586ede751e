//! `fault-driver act OPERATION RIG`: one operation of the queue in one thread, so that system calls
//! can be counted and failed one by one. Prints a line when the operation is acknowledged. The
//! words `prepare`, `restart` and `again` in place of `act` are what comes before and after it.
//! Only for tests: see `rigor_tests::driver`.

use std::path::Path;
use std::process::ExitCode;

use rigor_tests::driver::{self, Operation};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [what, operation, rig] = &words[..] else {
        eprintln!("usage: fault-driver prepare|act|restart|again OPERATION RIG");
        return ExitCode::from(2);
    };
    let Some(operation) = Operation::parse(operation) else {
        eprintln!("fault-driver: no operation {operation:?}");
        return ExitCode::from(2);
    };
    let rig = Path::new(rig);
    let done = match what.as_str() {
        "prepare" => driver::prepare(operation, rig),
        "act" => driver::act(operation, rig),
        "restart" => driver::restart(rig).map(|()| Vec::new()),
        "again" => driver::again(operation, rig),
        other => {
            eprintln!("fault-driver: no {other:?}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(ids) => {
            println!("{}", driver::acknowledgement(&ids));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("fault-driver: {error:#}");
            ExitCode::FAILURE
        }
    }
}
