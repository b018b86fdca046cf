//! What new has beyond where a range of the copy stands, when that is taken up: by an attempt that failed, or by a
//! process that died.
//!
//! Its documents may have been deleted on old after they had been read and before they were inserted. The event of the
//! deletion found nothing to delete then, that of the insertion was taken for the copy's, and the copy does not meet them
//! again, as old has not got them any more: only this names them.

use std::time::Duration;

use bson::raw::cstr;
use bson::rawdoc;

use super::backfill::{Backfill, unload};
use super::context::mark;
use super::ranges::Range;
use super::scan::{find, max_key};
use crate::cluster::command::{Reply, Request, Target};
use crate::converge::read::{ask, cursor_id};

const MARK_LIMIT: Duration = Duration::from_secs(10);

impl Backfill {
    /// Makes everything equal that new has beyond where the range stands. There is little of it: at the beginning of a
    /// range what the streams have written, and later what was inserted since it was stored last.
    pub(super) async fn look_ahead(&self, range: &Range) -> Result<(), String> {
        if !self.converger.safeguards.backfill_looks_ahead {
            return Ok(());
        }
        let new = &self.clusters.new;
        // By majority, after everything of which an event can have been seen: a marker, as no deposed primary can.
        let after = mark(new, &self.converger.migration, MARK_LIMIT).await?;
        let mut request = find(range, after);
        request.body.append(cstr!("projection"), rawdoc! { "_id": 1 });
        let mut reply = ask(&**new, request).await?;
        let mut field = "firstBatch";
        loop {
            self.make_page_equal(range, &reply, field).await?;
            let cursor = cursor_id(&reply.body);
            if cursor == 0 {
                break;
            }
            let more = rawdoc! { "getMore": cursor, "collection": range.namespace.collection() };
            let request = Request::new(range.namespace.database(), more);
            reply = ask(&**new, request.to(Target::Server(reply.server.clone()))).await?;
            field = "nextBatch";
        }
        if range.high.is_none() {
            let reply = ask(&**new, max_key(range, after)).await?;
            self.make_page_equal(range, &reply, "firstBatch").await?;
        }
        Ok(())
    }

    async fn make_page_equal(&self, range: &Range, reply: &Reply, field: &str) -> Result<(), String> {
        let page = unload(&reply.body, field)?;
        self.make_equal(range, &page.keys).await?;
        self.make_equal(range, &page.special).await
    }
}
