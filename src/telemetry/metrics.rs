//! The names of all metrics. Handles are registered once and kept, so that an operation formats nothing.

/// Operations, by `class`, `cluster` and `outcome`.
pub const OPERATIONS: &str = "reshard_operations_total";
/// Seconds from a request's last byte to its reply's first, by `class`.
pub const OPERATION_SECONDS: &str = "reshard_operation_seconds";
/// Attempts after the first, by `cluster`.
pub const RETRIES: &str = "reshard_operation_retries_total";
/// Lines of the log that were lost, as too many waited for whoever reads it.
pub const LOG_LINES_LOST: &str = "reshard_log_lines_lost_total";
/// Connected clients.
pub const CLIENTS: &str = "reshard_clients";
/// Clients turned away at the limit.
pub const CLIENTS_REFUSED: &str = "reshard_clients_refused_total";
/// Clients whose connection was closed because of what they sent.
pub const CLIENTS_MALFORMED: &str = "reshard_clients_malformed_total";
/// Clients that could not agree on keys with a listener that speaks TLS.
pub const CLIENTS_UNENCRYPTED: &str = "reshard_clients_unencrypted_total";
/// Server connections in use, by `cluster` and `server`.
pub const POOL_IN_USE: &str = "reshard_pool_in_use";
/// Server connections not in use, by `cluster` and `server`.
pub const POOL_IDLE: &str = "reshard_pool_idle";
/// Operations that wait for a server connection, by `cluster` and `server`.
pub const POOL_WAITING: &str = "reshard_pool_waiting";
/// Server connections opened, by `cluster` and `server`.
pub const POOL_CREATED: &str = "reshard_pool_created_total";
/// Seconds that operations waited for a server connection when none was at rest, a histogram by `cluster`.
pub const POOL_WAIT: &str = "reshard_pool_wait_seconds";
/// Operations that waited for a server connection and left without, by `cluster` and `server`.
pub const POOL_GAVE_UP: &str = "reshard_pool_gave_up_total";
/// Cursors open through the proxy.
pub const CURSORS: &str = "reshard_cursors";
/// Cursors forgotten at the bound of the table or after their time.
pub const CURSORS_FORGOTTEN: &str = "reshard_cursors_forgotten_total";
/// Cursors that a process before this one left open, and that were found at their servers.
pub const CURSORS_TAKEN_UP: &str = "reshard_cursors_taken_up_total";
/// Transactions remembered.
pub const TRANSACTIONS: &str = "reshard_transactions";

/// Share of reads served by new, by migration.
pub const MIGRATION_READS_PERCENT: &str = "reshard_migration_reads_percent";
/// Share of documents whose authority is new, by migration.
pub const MIGRATION_WRITES_PERCENT: &str = "reshard_migration_writes_percent";
/// The routing epoch, by migration.
pub const MIGRATION_EPOCH: &str = "reshard_migration_epoch";
/// Documents of history copied, by migration.
pub const MIGRATION_COPIED_DOCUMENTS: &str = "reshard_migration_copied_documents";
/// Documents of history there are, by migration.
pub const MIGRATION_TOTAL_DOCUMENTS: &str = "reshard_migration_total_documents";
/// Bytes copied, by migration.
pub const MIGRATION_COPIED_BYTES: &str = "reshard_migration_copied_bytes";
/// Bytes there are, by migration.
pub const MIGRATION_TOTAL_BYTES: &str = "reshard_migration_total_bytes";
/// Documents that were made equal, by migration.
pub const MIGRATION_CONVERGED: &str = "reshard_migration_converged";
/// Documents that verifications made equal, by migration.
pub const MIGRATION_REPAIRED: &str = "reshard_migration_repaired";
/// Inline mirror writes that failed or were late, by migration.
pub const MIGRATION_MIRROR_FAILURES: &str = "reshard_migration_mirror_failures";
/// Reads by `_id` on sharded collections that went to one shard, by migration.
pub const MIGRATION_TARGETED_READS: &str = "reshard_migration_targeted_reads";
/// The same that went to all shards, by migration.
pub const MIGRATION_BROADCAST_READS: &str = "reshard_migration_broadcast_reads";
/// Writes of the last 24 h that went past the proxy, by migration.
pub const MIGRATION_BYPASS_WRITES: &str = "reshard_migration_bypass_writes";
/// Writes that ever went past the proxy, by migration.
pub const MIGRATION_BYPASS_WRITES_TOTAL: &str = "reshard_migration_bypass_writes_total";
/// Changes of which nobody can tell whether they went past the proxy, by migration.
pub const MIGRATION_BYPASS_WRITES_UNJUDGED: &str = "reshard_migration_bypass_writes_unjudged";
/// How often an invariant of the protocol did not hold, by migration and invariant. It never should.
pub const INVARIANT_VIOLATIONS: &str = "reshard_invariant_violations_total";
/// Keys that cannot be made equal now, by migration.
pub const MIGRATION_CONFLICTS: &str = "reshard_migration_conflicts";
/// 1 from a rollback without new until what only new has is back, by migration.
pub const MIGRATION_RETURNING: &str = "reshard_migration_returning";
/// Documents of a rollback without new, by migration and what has become of them.
pub const MIGRATION_UNRETURNED: &str = "reshard_migration_unreturned";
/// Keys that are pinned, by migration and cluster.
pub const MIGRATION_PINS: &str = "reshard_migration_pins";
/// Share of a range's reads that new serves, 0 or 100, by migration and range.
pub const MIGRATION_RANGE_READS_PERCENT: &str = "reshard_migration_range_reads_percent";
/// The same for its writes; not a number in the middle of a move.
pub const MIGRATION_RANGE_WRITES_PERCENT: &str = "reshard_migration_range_writes_percent";
/// What named a key of a range, by migration, range, operation (`reads`, `writes`) and cluster.
pub const MIGRATION_RANGE_OPERATIONS: &str = "reshard_migration_range_operations_total";
/// Pinned keys that are not where they are to be, by migration.
pub const MIGRATION_PINS_NOT_IN_FORCE: &str = "reshard_migration_pins_not_in_force";
/// 1 for what is switched on, by migration and switch.
pub const MIGRATION_SWITCH: &str = "reshard_migration_switch";
/// Collections for which something is switched off, by migration and switch.
pub const MIGRATION_SWITCHED_OFF_COLLECTIONS: &str = "reshard_migration_switched_off_collections";
/// 1 when every gate for moving writes is passed, by migration.
pub const MIGRATION_CAN_CUT_OVER: &str = "reshard_migration_can_cut_over";
/// Differences that the last full verification found, by migration.
pub const MIGRATION_VERIFICATION_MISMATCHES: &str = "reshard_migration_verification_mismatches";
/// Of those, made equal, by migration.
pub const MIGRATION_VERIFICATION_REPAIRED: &str = "reshard_migration_verification_repaired";
/// Differences that the last comparison of a part, or by digests, found, by migration.
pub const MIGRATION_SPOT_CHECK_MISMATCHES: &str = "reshard_migration_spot_check_mismatches";
/// Of those, made equal, by migration.
pub const MIGRATION_SPOT_CHECK_REPAIRED: &str = "reshard_migration_spot_check_repaired";
/// Unix seconds when the last full verification began, by migration.
pub const MIGRATION_VERIFICATION_STARTED: &str = "reshard_migration_verification_started_at_seconds";
/// Unix seconds when the last full verification ended, by migration; NaN until then.
pub const MIGRATION_VERIFICATION_FINISHED: &str = "reshard_migration_verification_finished_at_seconds";
/// Documents each second that the copy may make, by migration; infinite without a limit.
pub const MIGRATION_THROTTLE_DOCUMENTS: &str = "reshard_migration_throttle_documents_per_second";
/// Megabytes each second that the copy may make, by migration; infinite without a limit.
pub const MIGRATION_THROTTLE_MEGABYTES: &str = "reshard_migration_throttle_megabytes_per_second";
/// 1 while an operator has halted it, by migration.
pub const MIGRATION_PAUSED: &str = "reshard_migration_paused";
/// Share of the reads that also run on the other cluster, by migration.
pub const SHADOW_PERCENT: &str = "reshard_shadow_percent";
/// Reads that were in the sample, by migration.
pub const SHADOW_SAMPLED: &str = "reshard_shadow_sampled";
/// Reads that were compared to an end, by migration.
pub const SHADOW_COMPARED: &str = "reshard_shadow_compared";
/// Of those, with the same reply, by migration.
pub const SHADOW_EQUAL: &str = "reshard_shadow_equal";
/// Of those, with a difference that has gone, by migration.
pub const SHADOW_TRANSIENT: &str = "reshard_shadow_transient";
/// Of those, with a difference that stays, by migration; NaN while unknown.
pub const SHADOW_DIFFERENCES: &str = "reshard_shadow_differences";
/// Reads that may differ from themselves, by migration.
pub const SHADOW_NONDETERMINISTIC: &str = "reshard_shadow_nondeterministic";
/// Reads whose difference changed at every look, by migration.
pub const SHADOW_UNSETTLED: &str = "reshard_shadow_unsettled";
/// Reads that a cluster did not answer in time, by migration.
pub const SHADOW_FAILED: &str = "reshard_shadow_failed";
/// Reads in the sample for which there was no room or time, by migration.
pub const SHADOW_DROPPED: &str = "reshard_shadow_dropped";
/// Reads in the sample that are never compared, by migration.
pub const SHADOW_SKIPPED: &str = "reshard_shadow_skipped";
/// How often each read of old also runs on new in a rehearsal, by migration; 0 while there is none.
pub const REHEARSAL_FACTOR: &str = "reshard_rehearsal_factor";
/// Repetitions that new answered, by migration.
pub const REHEARSAL_READS: &str = "reshard_rehearsal_reads";
/// Repetitions that new did not answer in time, or for a reason of its own, by migration.
pub const REHEARSAL_ERRORS: &str = "reshard_rehearsal_errors";
/// Reads and repetitions for which there was no room or time, by migration.
pub const REHEARSAL_DROPPED: &str = "reshard_rehearsal_dropped";
/// Reads that are never repeated, by migration.
pub const REHEARSAL_SKIPPED: &str = "reshard_rehearsal_skipped";
/// Seconds that old's oplog reaches back, by migration.
pub const MIGRATION_OPLOG_WINDOW: &str = "reshard_migration_oplog_window_seconds";
/// Seconds behind, by migration and direction; NaN while unknown.
pub const MIGRATION_LAG: &str = "reshard_migration_lag_seconds";
/// 1 for the phase it is in, by migration and phase.
pub const MIGRATION_PHASE: &str = "reshard_migration_phase";
/// Shapes of commands that are told apart, by migration.
pub const MIGRATION_SHAPE_COUNT: &str = "reshard_migration_shape_count";
/// Operations of shapes beyond the bound, by migration.
pub const MIGRATION_SHAPES_NOT_TOLD_APART: &str = "reshard_migration_shapes_not_told_apart";
/// Operations whose shape was noted, by migration and cluster.
pub const MIGRATION_SHAPE_OPERATIONS: &str = "reshard_migration_shape_operations";
/// Of those, failed in a way that speaks about the cluster, by migration and cluster.
pub const MIGRATION_SHAPE_ERRORS: &str = "reshard_migration_shape_errors";
/// Operations of the last five minutes that did not fail, by migration and cluster.
pub const MIGRATION_SHAPE_RECENT_OPERATIONS: &str = "reshard_migration_shape_recent_operations";
/// Operations of the last five minutes that failed, by migration and cluster.
pub const MIGRATION_SHAPE_RECENT_ERRORS: &str = "reshard_migration_shape_recent_errors";
/// Milliseconds that half of the operations of the last five minutes took at most, by migration and cluster.
pub const MIGRATION_SHAPE_P50: &str = "reshard_migration_shape_p50_ms";
/// The same, for 95 %.
pub const MIGRATION_SHAPE_P95: &str = "reshard_migration_shape_p95_ms";
/// The same, for 99 %.
pub const MIGRATION_SHAPE_P99: &str = "reshard_migration_shape_p99_ms";
/// Seconds that all gates of a ramp have held at its step, by migration.
pub const MIGRATION_RAMP_DWELT: &str = "reshard_migration_ramp_dwelt_seconds";
/// How often a ramp came down, by migration.
pub const MIGRATION_RAMP_SETBACKS: &str = "reshard_migration_ramp_setbacks";
/// 1 while an operator has halted a ramp, by migration.
pub const MIGRATION_RAMP_PAUSED: &str = "reshard_migration_ramp_paused";
/// Looks of a ramp at its gates, by migration and what was decided.
pub const MIGRATION_RAMP_DECISIONS: &str = "reshard_migration_ramp_decisions_total";
/// 1 for each gate of a ramp that was measured and passed, by migration and gate.
pub const MIGRATION_RAMP_GATE: &str = "reshard_migration_ramp_gate";
