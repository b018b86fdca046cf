//! Collections that come into being while a migration runs whose pattern names them: whoever meets one asks
//! here, and goes on once it is part of the migration.

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::model::namespace::Namespace;

/// Why a collection does not become part of a migration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Declined {
    /// It cannot move, in words.
    #[error("{0}")]
    Refused(String),
    /// Not now: a cluster does not answer, or the migration is over.
    #[error("{0}")]
    NotNow(String),
}

/// Whether it is part of the migration now; `false` when it does not exist and nobody wants it made.
pub type Admitted = Result<bool, Declined>;

/// A collection that somebody has met.
pub struct Newcomer {
    /// Which.
    pub namespace: Namespace,
    /// It is about to be written: if it is not there, it is made.
    pub make: bool,
    /// Who waits.
    pub answer: oneshot::Sender<Admitted>,
}

/// Where newcomers are told.
pub struct Newcomers {
    asked: mpsc::UnboundedSender<Newcomer>,
    answering: Mutex<Option<mpsc::UnboundedReceiver<Newcomer>>>,
}

impl Default for Newcomers {
    fn default() -> Self {
        let (asked, answering) = mpsc::unbounded_channel();
        Self { asked, answering: Mutex::new(Some(answering)) }
    }
}

impl Newcomers {
    /// Asks for a collection, and waits for the answer. Whoever stops waiting takes nothing back.
    ///
    /// # Errors
    /// [`Declined`].
    pub async fn ask(&self, namespace: Namespace, make: bool) -> Admitted {
        let over = || Declined::NotNow("its migration has ended or is being ended".into());
        let (answer, answered) = oneshot::channel();
        self.asked.send(Newcomer { namespace, make, answer }).map_err(|_| over())?;
        answered.await.map_err(|_| over())?
    }

    /// What was asked and will be; `None` when somebody answers already.
    #[must_use]
    pub fn answering(&self) -> Option<mpsc::UnboundedReceiver<Newcomer>> {
        self.answering.lock().take()
    }
}
