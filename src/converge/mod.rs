//! The one primitive: make the mirror's document equal the authority's.
//!
//! `converge(K)`: read the mirror; only when its answer is there, read the authority; equal bytes: done; else
//! write the authority's state to the mirror, guarded by the bytes that were read from the mirror; a guard
//! that fails starts again with both reads. Inline mirror writes, both tailers, the backfill and repair are
//! all drivers of this. See `docs/correctness.md`.
pub mod active;
pub mod barriers;
pub mod catalog;
pub mod converger;
pub mod lanes;
pub mod looks;
pub mod mirror;
mod owners;
pub mod read;
pub mod returning;
mod round;
pub mod sessions;
pub mod shards;
pub mod witness;
