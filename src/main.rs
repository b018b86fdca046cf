//! The `reshard` program.

use std::process::ExitCode;

use reshard::config::Config;

fn main() -> ExitCode {
    reshard::cli::main(run)
}

/// Stands in for `reshard::app::run`.
async fn run(_config: Config) -> Result<(), String> {
    Err("this build cannot serve yet".to_owned())
}
