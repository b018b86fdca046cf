//! A rollback without new, and bringing back what only new has acknowledged once it is there again.
//!
//! Old takes back by its own record what new has, or a part of it (`taking`); whatever only new has acknowledged of that is
//! named as far as this process knows it (`naming`). When new is there again, its stream tells all of it, and each document comes back, unless the
//! application has written it on old since: then what old has stands, and what new had is kept (`bringing`, `list`).
mod bringing;
pub(super) mod list;
mod naming;
mod since;
mod taking;
mod view;

pub use view::{
    AcknowledgeUnreturned, Unreturned, UnreturnedList, UnreturnedPage, UnreturnedState, UnreturnedView,
    WithoutNew,
};
