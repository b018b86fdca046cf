//! reshard: a transparent MongoDB proxy that moves live data from an old cluster to a new one.
//!
//! # Layout
//! A module imports only from lower rows; `tests/architecture.rs` fails otherwise.
//! ```text
//! 9  main, cli                         commands: serve, check-config, migrate ...
//! 8  app                               composition root
//! 7  config                            composes the sections that modules own
//! 6  listener            | admin       edges
//! 5  router              | migration   data plane | control plane
//! 4  converge                          the one primitive, used by both planes
//! 3  state                             routing snapshot, leases, checkpoints, audit
//! 2  cluster                           topology, pools, authentication, TLS; the seam to a cluster
//! 1  wire                | policy      bytes without IO | decisions without IO
//! 0  model telemetry clock shutdown handover   vocabulary and leaf utilities
//! ```
pub mod admin;
pub mod app;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod converge;
pub mod handover;
pub mod listener;
pub mod migration;
pub mod model;
pub mod policy;
pub mod router;
pub mod shutdown;
pub mod state;
pub mod telemetry;
pub mod wire;
