//! A rollback without new, and bringing back what only new has acknowledged once it is there again.
//!
//! Old takes back by its own record what new has (`taking`); whatever only new has acknowledged is named as far as this
//! process knows it. When new is there again, its stream tells all of it, and each document comes back, unless the
//! application has written it on old since: then what old has stands, and what new had is kept (`bringing`, `list`).
mod bringing;
pub(super) mod list;
mod since;
mod taking;
mod view;

pub use view::{
    AcknowledgeUnreturned, Unreturned, UnreturnedList, UnreturnedPage, UnreturnedState, UnreturnedView,
    WithoutNew,
};
