//! `simulator TRACE`: the policy over a trace, in simulated time.

use std::process::ExitCode;

fn main() -> ExitCode {
    rigor_simulator::run()
}
