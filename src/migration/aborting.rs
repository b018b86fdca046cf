//! An abort does not wait for a call that takes long: that one is cut short.

use std::future::Future;

use futures::future::{Either, select};
use tokio::sync::watch;

use super::control::{ControlError, Refusal};

/// Whether operators have asked for an abort that is still under way.
#[derive(Debug, Clone)]
pub struct Aborting {
    asked: watch::Sender<usize>,
}

/// The abort is under way as long as this lives.
pub struct Asked(watch::Sender<usize>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.send_modify(|asked| *asked -= 1);
    }
}

impl Default for Aborting {
    fn default() -> Self {
        Self { asked: watch::Sender::new(0) }
    }
}

const CODE: &str = "being-aborted";

fn cut_short() -> ControlError {
    let detail = "cut short: the migration is being aborted";
    ControlError::new(Refusal::Conflict, CODE, detail)
}

/// Whether something failed for no other reason than that an abort is asked for, which may fail itself.
#[must_use]
pub fn is_cut_short(error: &ControlError) -> bool {
    error.code == CODE
}

impl Aborting {
    /// Asks whoever is at work on the migration to come to an end.
    #[must_use]
    pub fn ask(&self) -> Asked {
        self.asked.send_modify(|asked| *asked += 1);
        Asked(self.asked.clone())
    }

    /// Refuses what should not begin any more.
    ///
    /// # Errors
    /// [`ControlError`] while an abort is asked for.
    pub fn check(&self) -> Result<(), ControlError> {
        if *self.asked.borrow() == 0 { Ok(()) } else { Err(cut_short()) }
    }

    /// Does work that may be dropped at any await, until an abort is asked for.
    ///
    /// # Errors
    /// [`ControlError`] when it was cut short.
    pub async fn unless_asked<T>(&self, work: impl Future<Output = T>) -> Result<T, ControlError> {
        let mut asked = self.asked.subscribe();
        let asked = asked.wait_for(|asked| *asked > 0);
        futures::pin_mut!(asked, work);
        match select(asked, work).await {
            Either::Left(_) => Err(cut_short()),
            Either::Right((done, _)) => Ok(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn work_ends_when_an_abort_is_asked_for_and_goes_on_when_it_failed() {
        let aborting = Aborting::default();
        assert_eq!(aborting.unless_asked(async { 1 }).now_or_never(), Some(Ok(1)));
        let endless = aborting.unless_asked(futures::future::pending::<()>());
        futures::pin_mut!(endless);
        assert_eq!(endless.as_mut().now_or_never(), None);
        let (first, second) = (aborting.ask(), aborting.ask());
        assert_eq!(endless.now_or_never(), Some(Err(cut_short())));
        drop(first);
        assert_eq!(aborting.check(), Err(cut_short()));
        drop(second);
        assert_eq!(aborting.check(), Ok(()));
    }
}
