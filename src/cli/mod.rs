//! The command line: `serve`, `check-config`, and `migrate …` and `healthcheck`, which speak to the admin API.

mod args;
pub mod client;
mod failure;
mod health;
mod human;
mod migrate;
mod output;
mod pins;
mod ramp;
mod rehearsal;
mod serve;
mod shadow;
mod shapes;
mod show;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use failure::Failure;

use crate::app::{Launch, StartError};
use crate::handover::End;

/// Does what the command line says; `app` runs the proxy until it is told to stop.
///
/// The exit code is 0 when it is done, 1 when it was refused or failed, 2 when the command line or the
/// configuration is wrong, 3 when nobody answers.
pub fn main<App, Run>(app: App) -> ExitCode
where
    App: FnOnce(Launch) -> Run,
    Run: Future<Output = Result<End, StartError>>,
{
    let done = match Cli::parse().command {
        Command::Serve { config } => serve::serve(&config, app),
        Command::CheckConfig { config } => serve::check(&config),
        Command::Healthcheck { admin } => blocking(health::check(&admin)),
        Command::Migrate(args) => {
            let json = args.json;
            let done = blocking(migrate::run(*args));
            return done.map_or_else(|failure| failure.report(json), |()| ExitCode::SUCCESS);
        }
    };
    done.map_or_else(|failure| failure.report(false), |()| ExitCode::SUCCESS)
}

fn blocking(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start: {error}")))?;
    runtime.block_on(work)
}
