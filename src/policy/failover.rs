//! What happens to an operation whose server fails: again, or which error.
//!
//! Clients see one router. It must never tell them that "the primary" is gone, or their drivers would drop
//! every connection to the proxy; so state-change codes of servers end here.

use std::time::Duration;

/// How an operation may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Changes nothing.
    Read,
    /// A write that servers recognise by its session and number.
    RetryableWrite,
    /// Anything else outside a transaction: repeating it could do it twice.
    Once,
    /// `getMore`: repeating it could skip a batch.
    Follower,
    /// A statement of an open transaction.
    Statement,
    /// `commitTransaction`.
    Commit,
    /// `abortTransaction`.
    Abort,
}

/// How an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Surely nothing reached a server.
    NotSent,
    /// Nothing did, since all connections to the server were in use until the end.
    Busy,
    /// The connection was lost; the operation may have run.
    Lost,
    /// The server answered that it is no longer, or not yet, the primary, or that it shuts down.
    NotPrimary,
}

/// What the operation went through so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Attempts that reached, or may have reached, a server.
    pub sent: u32,
    /// Attempts of which surely nothing was sent.
    pub unsent: u32,
    /// No time is left to try again.
    pub late: bool,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Wait so long, then try again, on whichever server fits then.
    Again(Duration),
    /// Answer with `HostUnreachable` and these labels.
    Unreachable(Labels),
    /// Answer with `CursorNotFound`: the cursor died with its server.
    CursorNotFound,
}

/// The labels of an error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Labels {
    /// `RetryableWriteError`.
    pub retryable_write: bool,
    /// `NoWritesPerformed`.
    pub no_writes_performed: bool,
    /// `TransientTransactionError`.
    pub transient_transaction: bool,
    /// `UnknownTransactionCommitResult`.
    pub unknown_commit: bool,
}

/// Most attempts that reach a server. One repetition is what drivers do; a second and a third help while an
/// election flaps, and do no harm to what may be repeated at all.
const MOST_SENT: u32 = 4;
/// Most attempts of which nothing was sent: each one uses up a dead connection of a pool.
const MOST_UNSENT: u32 = 1000;

/// Decides after an attempt that failed; `progress` counts that attempt too.
#[must_use]
pub fn decide(kind: Kind, failure: Failure, progress: Progress) -> Decision {
    let again = !progress.late
        && match failure {
            Failure::NotSent | Failure::Busy => progress.unsent < MOST_UNSENT,
            Failure::Lost | Failure::NotPrimary => repeatable(kind) && progress.sent < MOST_SENT,
        };
    if again {
        return Decision::Again(pause(progress));
    }
    // Of a server that is busy the cursor lives on.
    if kind == Kind::Follower && failure != Failure::Busy {
        return Decision::CursorNotFound;
    }
    Decision::Unreachable(labels(kind, progress))
}

fn repeatable(kind: Kind) -> bool {
    matches!(kind, Kind::Read | Kind::RetryableWrite)
}

/// Nothing at first, then longer: a dead connection is followed by a good one, a dead server is not.
fn pause(progress: Progress) -> Duration {
    match (progress.sent, progress.unsent) {
        (0 | 1, 0..=4) => Duration::ZERO,
        (sent, unsent) => Duration::from_millis(u64::from((sent * 10 + unsent).min(50))),
    }
}

fn labels(kind: Kind, progress: Progress) -> Labels {
    let none = Labels::default();
    match kind {
        Kind::Read | Kind::Follower | Kind::Once => none,
        Kind::RetryableWrite => {
            Labels { retryable_write: true, no_writes_performed: progress.sent == 0, ..none }
        }
        Kind::Statement => Labels { transient_transaction: true, ..none },
        Kind::Commit => Labels { retryable_write: true, unknown_commit: true, ..none },
        Kind::Abort => Labels { retryable_write: true, ..none },
    }
}

/// Whether drivers take this code as a change of the server's state (SDAM: not primary, recovering,
/// shutting down).
#[must_use]
pub fn is_state_change(code: i32) -> bool {
    matches!(code, 10107 | 13435 | 10058 | 11602 | 13436 | 189 | 11600 | 91)
}

/// Whether drivers ask again, once, for a read that is answered with this code although the server did not change
/// its state: it lost somebody behind it (the retryable reads specification; what routers answer for their shards).
#[must_use]
pub fn is_lost_behind(code: i32) -> bool {
    matches!(code, 6 | 7 | 89 | 134 | 262 | 9001)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 7] = [
        Kind::Read,
        Kind::RetryableWrite,
        Kind::Once,
        Kind::Follower,
        Kind::Statement,
        Kind::Commit,
        Kind::Abort,
    ];

    fn sent(sent: u32) -> Progress {
        Progress { sent, ..Progress::default() }
    }

    #[test]
    fn what_was_not_sent_is_always_tried_again_while_there_is_time() {
        for kind in KINDS {
            let progress = Progress { unsent: 1, ..Progress::default() };
            assert!(matches!(decide(kind, Failure::NotSent, progress), Decision::Again(_)));
            let late = Progress { late: true, ..progress };
            assert!(!matches!(decide(kind, Failure::NotSent, late), Decision::Again(_)));
        }
    }

    #[test]
    fn only_what_may_be_repeated_is_repeated() {
        for failure in [Failure::Lost, Failure::NotPrimary] {
            for kind in KINDS {
                let again = matches!(decide(kind, failure, sent(1)), Decision::Again(_));
                assert_eq!(again, matches!(kind, Kind::Read | Kind::RetryableWrite), "{kind:?}");
                assert!(!matches!(decide(kind, failure, sent(MOST_SENT)), Decision::Again(_)));
            }
        }
    }

    #[test]
    fn errors_carry_the_labels_that_drivers_act_on() {
        let of = |kind, progress| decide(kind, Failure::Lost, Progress { late: true, ..progress });
        let none = Labels::default();
        assert_eq!(of(Kind::Read, sent(1)), Decision::Unreachable(none));
        assert_eq!(of(Kind::Once, sent(1)), Decision::Unreachable(none));
        assert_eq!(of(Kind::Follower, sent(1)), Decision::CursorNotFound);
        let retryable = Labels { retryable_write: true, ..none };
        assert_eq!(of(Kind::RetryableWrite, sent(1)), Decision::Unreachable(retryable));
        assert_eq!(of(Kind::Abort, sent(1)), Decision::Unreachable(retryable));
        let nothing = Labels { no_writes_performed: true, ..retryable };
        assert_eq!(of(Kind::RetryableWrite, sent(0)), Decision::Unreachable(nothing));
        let unknown = Labels { unknown_commit: true, ..retryable };
        assert_eq!(of(Kind::Commit, sent(1)), Decision::Unreachable(unknown));
        let transient = Labels { transient_transaction: true, ..none };
        assert_eq!(of(Kind::Statement, sent(1)), Decision::Unreachable(transient));
    }

    #[test]
    fn state_changes_are_those_of_the_specification() {
        let codes = (0..20_000).filter(|code| is_state_change(*code)).collect::<Vec<_>>();
        assert_eq!(codes, [91, 189, 10058, 10107, 11600, 11602, 13435, 13436]);
    }
}
