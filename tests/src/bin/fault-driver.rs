//! `fault-driver act OPERATION RIG`: one operation of the queue in one thread, so that system calls
//! can be counted and failed one by one. Only for tests: see `rigor_tests::driver`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    rigor_tests::driver::main(&words)
}
