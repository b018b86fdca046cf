//! The acts in which reads and writes move, there, back, and there again.

use anyhow::{Result, bail, ensure};

use crate::api::Problem;
use crate::load::{CUSTOMERS, ORDERS};
use crate::screen::thousands;
use crate::script::Play;

const READS: [u8; 6] = [5, 10, 25, 50, 75, 100];
const WRITES: [u8; 4] = [5, 25, 50, 100];

impl Play<'_> {
    pub(crate) async fn reads(&self) -> Result<()> {
        self.screen.phase(
            &format!("Reads move to new: {} %", READS.map(|percent| percent.to_string()).join(" - ")),
            "Old still decides about writes. From now on a write is acknowledged when new has it too, and a document \
             that new may not have yet is read from old: a read sees all that was acknowledged before it.",
        );
        self.application.set_phase("moving reads");
        for percent in READS {
            for migration in self.migrations() {
                self.reads_to(migration, percent).await?;
            }
            let served = self.served_while(self.let_run(self.args.step())).await?;
            let (old, new) = served;
            self.screen.done(&format!(
                "reads {percent:>3} %   served by old {:>6}, by new {:>6} ({:.1} %)",
                thousands(old),
                thousands(new),
                crate::served::share(served)
            ));
        }
        Ok(())
    }

    pub(crate) async fn writes_by_percent(&self) -> Result<()> {
        self.screen.phase(
            &format!(
                "Writes of orders move to new: {} % of the documents",
                WRITES.map(|percent| percent.to_string()).join(" - ")
            ),
            "Only writes to documents that change hands wait, and only until both clusters are equal on them. If \
             that takes longer than 500 ms it is given up: the waiting writes go on where they were, and it is \
             tried again.",
        );
        self.application.set_phase("moving writes");
        for percent in WRITES {
            self.writes_to(ORDERS, percent).await?;
            self.let_run(self.args.step()).await;
        }
        Ok(())
    }

    pub(crate) async fn writes_in_one_step(&self) -> Result<()> {
        self.screen.phase(
            "Writes of customers move to new in one step",
            "A unique index and transactions need one authority for all documents, so a part is refused, \
             whoever asks.",
        );
        match self.api().writes(CUSTOMERS, 50).await {
            Ok(_) => bail!("50 % of the writes of {CUSTOMERS} should have been refused"),
            Err(error) => match error.downcast_ref::<Problem>() {
                Some(problem) if problem.code == "single-step" => {
                    self.screen.done(&format!("50 % is refused: {}", problem.detail));
                    for reason in &problem.reasons {
                        self.screen.note(reason);
                    }
                }
                _ => return Err(error),
            },
        }
        self.writes_to(CUSTOMERS, 100).await?;
        self.let_run(self.args.step()).await;
        Ok(())
    }

    pub(crate) async fn rollback(&self) -> Result<()> {
        self.screen.phase(
            "Rollback of orders: old decides again",
            "Old was kept equal all the time, by the same machinery the other way round. So the way back is the \
             way there: a short wait, and nothing to restore.",
        );
        self.roll_back(ORDERS).await?;
        let now = self.api().progress(ORDERS).await?;
        ensure!(now.writes_percent == 0 && now.reads_percent == 0, "the rollback left {now:?}");
        self.let_run(self.args.step()).await;
        self.screen.done("orders: reads 0 %, writes 0 %; the application went on");
        self.screen.phase("Forward again", "Nothing has to be copied again: both clusters are equal.");
        self.reads_to(ORDERS, 100).await?;
        for percent in [50, 100] {
            self.writes_to(ORDERS, percent).await?;
            self.let_run(self.args.step()).await;
        }
        Ok(())
    }

    pub(crate) async fn after(&self) -> Result<()> {
        self.screen.phase(
            "Complete: new alone",
            "Here, before the hold period is over, that needs force and a reason, which the audit keeps. Old is \
             not written any more.",
        );
        for migration in self.migrations() {
            self.watch(self.api().complete(migration)).await?;
        }
        self.application.resume("after");
        self.let_run(self.args.calm()).await;
        let pulse = self.application.pulse();
        self.screen
            .done(&format!("the application went on: p50 {:.1} ms, p99 {:.1} ms", pulse.p50, pulse.p99));
        Ok(())
    }
}
