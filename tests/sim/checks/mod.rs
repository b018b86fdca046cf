//! What clients saw, and whether the clusters at the end agree with it.

pub(crate) mod checker;
pub(crate) mod history;
pub(crate) mod one_authority;
