//! Real MongoDB clusters for tests.
