//! The traps that have hurt others, each sprung on real servers through a running migration.

#[path = "../support/mod.rs"]
mod support;

mod barriers;
mod clustered;
mod constraints;
mod ddl;
mod keys;
mod late;
mod locks;
mod moments;
mod own_writes;
mod past_the_proxy;
mod sizes;
mod times;
mod unique;
mod unkeyed;
mod upserts;
mod values;
