//! Random documents of a collection.

use std::time::Duration;

use bson::raw::RawDocumentBuf;

use crate::cluster::command::{Commands, Request};
use crate::model::namespace::Namespace;
use crate::state::records::first_batch;

const LIMIT: Duration = Duration::from_secs(60);
/// A random cursor that has met only documents that it had met before gives up, by chance: "likely a sporadic
/// failure, please try again".
const GAVE_UP: i32 = 28799;
const TRIES: u32 = 10;

/// Runs an aggregation that begins with `$sample`; all that it finds must fit one reply.
///
/// # Errors
/// In words, why there is no answer.
pub(super) async fn sampled(
    cluster: &dyn Commands,
    namespace: &Namespace,
    aggregate: RawDocumentBuf,
) -> Result<Vec<RawDocumentBuf>, String> {
    let mut tries = 0;
    loop {
        tries += 1;
        let request = Request::new(namespace.database(), aggregate.clone()).within(LIMIT);
        let reply = cluster.run(request).await.map_err(|error| error.to_string())?;
        match reply.error() {
            None => return first_batch(&reply.body),
            Some(error) if error.code == GAVE_UP && tries < TRIES => {}
            Some(error) => return Err(format!("taking samples of {namespace}: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::command::{Reply, SendError};
    use async_trait::async_trait;
    use bson::rawdoc;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A server whose random cursor gives up so many times.
    struct Unlucky(AtomicU32);

    #[async_trait]
    impl Commands for Unlucky {
        async fn run(&self, _request: Request) -> Result<Reply, SendError> {
            let left = self.0.load(Ordering::Relaxed);
            let body = if left == 0 {
                rawdoc! { "cursor": { "firstBatch": [{ "_id": 1 }], "id": 0_i64, "ns": "d.c" }, "ok": 1.0 }
            } else {
                self.0.store(left - 1, Ordering::Relaxed);
                rawdoc! { "ok": 0.0, "code": GAVE_UP, "errmsg": "please try again" }
            };
            Ok(Reply { body, operation_time: None, server: "a:1".into() })
        }
    }

    #[tokio::test]
    async fn a_random_cursor_that_gave_up_is_tried_again_for_a_while() {
        let found = async |unlucky: u32| {
            let server = Unlucky(unlucky.into());
            sampled(&server, &Namespace::new("d", "c"), rawdoc! { "aggregate": "c" }).await
        };
        assert_eq!(found(TRIES - 1).await, Ok(vec![rawdoc! { "_id": 1 }]));
        assert!(found(TRIES).await.is_err_and(|why| why.contains("d.c") && why.contains("please try again")));
    }
}
