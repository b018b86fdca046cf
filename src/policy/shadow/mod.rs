//! Shadow reads: which reads may also run on the other cluster, and what a difference between two replies is.
//!
//! One cluster has *served* the read, the other one is its *shadow*. Nothing here knows which is old and which is new.
pub mod access;
pub mod answer;
pub mod eligible;
pub mod ends;
pub mod inputs;
pub mod showing;
pub mod sorting;
pub mod stages;
pub mod steady;
