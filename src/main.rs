//! The `reshard` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    reshard::cli::main(reshard::app::run)
}
