//! The act in which new is judged by the application's own reads before anybody depends on it.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::screen::thousands;
use crate::script::{LIMIT, Play};

/// Percent of the reads that also run on new.
const PERCENT: u8 = 50;
/// So many reads of each collection are compared at least.
const ENOUGH: u64 = 200;

/// What shadow reads of one collection came to.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Shadowed {
    pub(crate) migration: String,
    /// Reads that were compared.
    pub(crate) compared: u64,
    /// Of those, with a difference that stays.
    pub(crate) different: u64,
    /// Its diff report, a page of HTML.
    pub(crate) report: PathBuf,
}

impl Play<'_> {
    pub(crate) async fn shadow(&self) -> Result<()> {
        self.screen.phase(
            &format!("Shadow reads: {PERCENT} % of the reads also run on new, which nobody reads from yet"),
            "The application gets old's reply and waits for nothing. What new says is compared with it, and a \
             difference counts only if it stays once both change streams have passed it.",
        );
        self.application.set_phase("shadow reads");
        for migration in self.migrations() {
            self.api().shadow(migration, PERCENT).await?;
        }
        self.let_run(self.args.calm()).await;
        for migration in self.migrations() {
            let shadowed = self.watch(self.shadowed(migration)).await?;
            self.api().shadow(migration, 0).await?;
            let text = format!(
                "{migration}: {} reads compared, {} different for good; report: {}",
                thousands(shadowed.compared),
                thousands(shadowed.different),
                shadowed.report.display()
            );
            if shadowed.different == 0 {
                self.screen.done(&text)
            } else {
                self.screen.note(&text)
            }
            self.shadowed.lock().push(shadowed);
        }
        Ok(())
    }

    /// What is known once enough was compared, with its report as a file.
    async fn shadowed(&self, migration: &str) -> Result<Shadowed> {
        let start = std::time::Instant::now();
        let diffs = loop {
            let diffs = self.api().diffs(migration).await?;
            if diffs.shadow_compared >= ENOUGH {
                break diffs;
            }
            ensure!(start.elapsed() < LIMIT, "{migration}: too few reads are compared: {diffs:?}");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        };
        let page = self.api().diffs_page(migration).await?;
        let report = self.args.report_file(migration)?;
        std::fs::write(&report, page).with_context(|| format!("cannot write {}", report.display()))?;
        Ok(Shadowed {
            migration: migration.to_owned(),
            compared: diffs.shadow_compared,
            different: diffs.shadow_differences.unwrap_or(0),
            report,
        })
    }
}

impl crate::Args {
    /// Where the diff report of a migration goes; it outlives the demo.
    fn report_file(&self, migration: &str) -> Result<PathBuf> {
        if let Some(folder) = &self.reports {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
            return Ok(folder.join(format!("diffs-{migration}.html")));
        }
        let prefix = format!("reshard-diffs-{migration}-");
        let file = tempfile::Builder::new().prefix(&prefix).suffix(".html").tempfile()?;
        Ok(file.into_temp_path().keep()?)
    }
}

/// Whether somebody sits before this: a terminal, and a desktop that shows pages.
pub(crate) fn can_open() -> bool {
    let has = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    std::io::stdout().is_terminal() && (cfg!(target_os = "macos") || has("DISPLAY") || has("WAYLAND_DISPLAY"))
}

/// Shows a report in whatever shows pages on this machine.
pub(crate) fn open(report: &Path) -> Result<()> {
    let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let mut command = std::process::Command::new(program);
    command.arg(report).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map(drop).with_context(|| format!("{program} {}", report.display()))
}
