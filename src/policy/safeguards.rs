//! Safeguards that the simulator switches off one by one to see that each is missed.

/// Which safeguards are on. Production runs with all of them; there is no way to configure this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Safeguards {
    /// The mirror's change stream is followed too.
    pub mirror_stream: bool,
    /// Mirror sessions of the dead, and those with an unknown outcome, are barred before a move.
    pub barrier: bool,
    /// Converge reads the mirror before the authority.
    pub mirror_read_first: bool,
    /// Mirror writes compare before they set.
    pub guard: bool,
    /// A write is sent, and sent again, only under the lease that it began under.
    pub send_check: bool,
    /// A reply is forwarded only under the lease that its write began under.
    pub reply_check: bool,
    /// A fence waits for the streams to pass its markers.
    pub markers: bool,
    /// Work under an older table is waited for.
    pub epoch_guard: bool,
    /// Tailers and repair obey fences too.
    pub workers_fenced: bool,
    /// A retry after a move asks the former authority first.
    pub probe: bool,
    /// A retry of a write of unknown outcome is refused once its slots have moved.
    pub unsettled: bool,
    /// The streams read with majority.
    pub majority_reads: bool,
    /// Checkpoints follow what is done.
    pub checkpoint_after_done: bool,
    /// The backfill converges keys that changed while it copied them.
    pub backfill_second_look: bool,
    /// Where a range is taken up again, what the mirror has beyond that is compared.
    pub backfill_looks_ahead: bool,
    /// A reply waits for the mirror no longer than `mirror_timeout`.
    pub mirror_bound: bool,
    /// Before a read can meet a mirror, writes that nobody waits for end, and the streams pass them.
    pub mirrors_current: bool,
    /// A mirror write waits for a majority where the application left that to its servers.
    pub mirror_majority: bool,
    /// While history is copied only the streams write to the mirror.
    pub streams_alone: bool,
    /// Nothing is made equal where what only new has is yet to be brought back.
    pub returning_waits: bool,
    /// Writes move to new only after both sides were compared in full.
    pub verified: bool,
}

impl Safeguards {
    /// All on.
    pub const ALL: Self = Self {
        mirror_stream: true,
        barrier: true,
        mirror_read_first: true,
        guard: true,
        send_check: true,
        reply_check: true,
        markers: true,
        epoch_guard: true,
        workers_fenced: true,
        probe: true,
        unsettled: true,
        majority_reads: true,
        checkpoint_after_done: true,
        backfill_second_look: true,
        backfill_looks_ahead: true,
        mirror_bound: true,
        mirrors_current: true,
        mirror_majority: true,
        streams_alone: true,
        returning_waits: true,
        verified: true,
    };
}

impl Default for Safeguards {
    fn default() -> Self {
        Self::ALL
    }
}
